"""A model as one graph: equal to the model whatever is missing, and loaded by torch alone."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import torch

import fleximoe
from tests.launch.api.ward import SMALL, stays, vitals
from trainer.inference.portable.graph.export import batch_of, patterns
from trainer.inference.portable.graph.model import inputs_of
from trainer.inference.portable.model import PortableModel

pytestmark = [pytest.mark.together, pytest.mark.long]  # a minute of tracing

# Torch and what it needs; everything else of ours is as if it were not installed.
ALONE = """
import json, sys
OURS = "trainer parallel data_shards pydantic pyarrow fsspec pandas ray mlflow deepspeed transformers yaml scipy"
sys.modules.update(dict.fromkeys(OURS.split()))
import fleximoe, torch
tensors = torch.load(sys.argv[2], weights_only=True)
print(json.dumps(fleximoe.load(sys.argv[1])(tensors)["died"][:, 0].tolist()))
"""


@pytest.fixture(scope="module")
def ward(place):
    """A run on numbers, categories and vitals."""
    data = fleximoe.pack(records=stays(), vitals=vitals(), tasks="died", out=place / "flat")
    training = {**SMALL["training"], "epochs": 1, "storage": place / "runs"}
    return fleximoe.fit(data, **{**SMALL, "training": training}, name="flat", progress=False)


@pytest.fixture(scope="module")
def graph(ward, place):
    report = ward.export(place / "graph", format="pt2")
    assert report["records"] == 7 and report["difference"] < 1e-5
    return place / "graph"


@pytest.fixture(scope="module")
def model(ward, place):
    ward.export(place / "plain")
    return PortableModel(str(place / "plain"))


def values() -> list[dict[str, Any]]:
    """Records of different lengths."""
    series = {"times": [0.5, 1.0, 7.0], "channels": ["HR", "SpO2", "HR"], "values": [81, 96, 130]}
    return [
        {"vitals": series, "numbers": [77.0, 1.0], "categories": ["sex=m"]},
        {"vitals": {name: own[:1] for name, own in series.items()}},
        {"numbers": [0.0, 0.0], "categories": ["sex=x"]},
        {"vitals": {"times": [], "channels": [], "values": []}, "numbers": [41.0, 1.0]},
    ]


def test_a_graph_answers_as_the_model(graph, model):
    loaded = fleximoe.load(graph)
    given = [*values(), *patterns(model)]
    for part in (given, *([one] for one in given)):
        batch = batch_of(model, part)
        with torch.no_grad():
            expected = model.model(batch).logits["died"]
        torch.testing.assert_close(loaded(inputs_of(batch))["died"], expected, atol=1e-5, rtol=0)
    assert loaded.about["tasks"][0]["name"] == "died"


def test_it_needs_torch_alone(graph, model, tmp_path):
    batch = batch_of(model, values())
    torch.save(inputs_of(batch), tmp_path / "batch.pt")
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(graph), str(tmp_path / "batch.pt")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        expected = model.model(batch).logits["died"][:, 0].tolist()
    assert json.loads(done.stdout) == pytest.approx(expected, abs=1e-5)


def test_a_missing_tensor_is_named(graph, model):
    tensors = inputs_of(batch_of(model, values()))
    del tensors["present"]
    with pytest.raises(ValueError, match="tensor 'present' is missing"):
        fleximoe.load(graph)(tensors)


def test_what_cannot_be_a_graph_is_named(run, tmp_path):
    with pytest.raises(fleximoe.InputError, match=r"modality notes \(timed text\) cannot be in a graph"):
        run.export(tmp_path / "graph", format="pt2")
    with pytest.raises(fleximoe.InputError, match="format='tf': there are safetensors and pt2"):
        run.export(tmp_path / "graph", format="tf")
