"""A model as one graph, of torch or of ONNX: equal to the model whatever is missing, and loaded by one library."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import fleximoe
from tests.launch.api.test_portable import patterns
from trainer.inference.portable.graph.export import batch_of
from trainer.inference.portable.graph.model import inputs_of
from trainer.inference.portable.graph.onnx_graph import write_onnx
from trainer.inference.portable.model import PortableModel

pytestmark = [pytest.mark.together, pytest.mark.long]  # minutes of tracing

FORMS = ["pt2", "onnx"]
# What else we require is as if it were not installed.
ALONE = """
import json, sys
hidden = "data_shards pydantic pyarrow fsspec pandas ray mlflow deepspeed transformers yaml scipy sklearn webdataset"
sys.modules.update(dict.fromkeys((hidden + " " + sys.argv[3]).split()))
import fleximoe, numpy
tensors = dict(numpy.load(sys.argv[2]))
if "onnxruntime" in sys.argv[3]:
    import torch
    tensors = {name: torch.from_numpy(own) for name, own in tensors.items()}
print(json.dumps(fleximoe.load(sys.argv[1])(tensors)["died"][:, 0].tolist()))
"""


@pytest.fixture(scope="module")
def graphs(run, place):
    """Of a run on numbers, categories, vitals and timed notes."""
    for form in FORMS:
        report = run.export(place / form, format=form)
        assert report["records"] == 15 and report["difference"] < 1e-5
    return {form: place / form for form in FORMS}


@pytest.fixture(scope="module")
def model(run, place):
    run.export(place / "plain")
    return PortableModel(str(place / "plain"))


def values() -> list[dict[str, Any]]:
    """Records of different lengths, one of them with nothing."""
    series = {"times": [0.5, 1.0, 7.0], "channels": ["HR", "SpO2", "HR"], "values": [81, 96, 130]}
    two = {"times": [1, 6.5], "values": ["", "slept well"]}
    return [
        {"vitals": series, "numbers": [77.0, 1.0], "categories": ["sex=m"], "notes": two},
        {"vitals": {name: own[:1] for name, own in series.items()}},
        {"numbers": [0.0, 0.0], "categories": ["sex=x"]},
        {"vitals": {"times": [], "channels": [], "values": []}, "notes": {"times": [], "values": []}},
        {},
    ]


@pytest.mark.parametrize("form", FORMS)
def test_a_graph_answers_as_the_model(graphs, model, form):
    loaded = fleximoe.load(graphs[form])
    given = [*values(), *patterns()]
    for part in (given, *([one] for one in given)):
        batch = batch_of(model, part)
        with torch.no_grad():
            expected = model.model(batch).logits["died"]
        found = torch.as_tensor(loaded(inputs_of(batch))["died"])
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert loaded.about["tasks"][0]["name"] == "died"


@pytest.mark.parametrize(("form", "hidden"), [("pt2", "onnxruntime trainer parallel"), ("onnx", "torch")])
def test_it_needs_one_library_alone(graphs, model, tmp_path, form, hidden):
    batch = batch_of(model, values())
    np.savez(tmp_path / "batch.npz", **{name: own.numpy() for name, own in inputs_of(batch).items()})
    words = [sys.executable, "-c", ALONE, str(graphs[form]), str(tmp_path / "batch.npz"), hidden]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        expected = model.model(batch).logits["died"][:, 0].tolist()
    assert json.loads(done.stdout) == pytest.approx(expected, abs=1e-5)


def test_a_graph_of_onnx_is_one_valid_file(graphs):
    assert sorted(path.name for path in graphs["onnx"].iterdir()) == ["graph.json", "model.onnx"]
    made = onnx.load(graphs["onnx"] / "model.onnx", load_external_data=False)
    onnx.checker.check_model(made, full_check=True)
    about = json.loads((graphs["onnx"] / "graph.json").read_text())
    assert [own.name for own in made.graph.input] == about["inputs"] and [o.name for o in made.graph.output] == ["died"]
    assert {own.domain for own in made.opset_import} <= {""} and not made.functions
    assert not any(own.external_data for own in made.graph.initializer)


def test_without_onnxruntime_a_sentence_says_so(graphs, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r"is a graph of ONNX, and running it needs an extra .* 'fleximoe\[onnx\]'"):
        fleximoe.load(graphs["onnx"])


def test_an_operator_that_onnx_has_not_is_named(tmp_path):
    class Sought(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.searchsorted(x, x)

    program = torch.export.export(Sought(), (torch.arange(3.0),))
    with pytest.raises(ValueError, match=r"ONNX cannot hold this model: .*aten.searchsorted.*; export it as pt2"):
        write_onnx(program, ["x"], ["y"], tmp_path / "model.onnx")


def test_a_missing_tensor_is_named(graphs, model):
    tensors = inputs_of(batch_of(model, values()))
    del tensors["present"]
    with pytest.raises(ValueError, match="tensor 'present' is missing"):
        fleximoe.load(graphs["pt2"])(tensors)


def test_another_format_is_refused(run, tmp_path):
    with pytest.raises(fleximoe.InputError, match="format='tf': there are safetensors, pt2 and onnx"):
        run.export(tmp_path / "graph", format="tf")


@pytest.mark.parametrize(
    ("there", "wanted"), [("model.onnx", "safetensors"), ("model.json", "pt2"), ("model.pt2", "onnx")]
)
def test_one_folder_holds_one_model(run, tmp_path, there, wanted):
    """`load` and `serve` would otherwise open the older one."""
    (tmp_path / there).touch()
    with pytest.raises(
        fleximoe.FleximoeError, match=f"holds an export as .* \\({there}\\), .*: export to another folder"
    ):
        run.export(tmp_path, format=wanted)
    assert [path.name for path in tmp_path.iterdir()] == [there]
