"""An export takes records in plain form and says what `predict` says, whichever modalities are there."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import fleximoe
from data_shards.records.vocabulary import Vocabulary
from trainer.inference.exported import exported_vocabularies
from trainer.inference.portable.model import PortableModel

FIELDS: dict[str, Any] = {
    "vitals": {
        "times": [0.5, 1.0, 6.0, 12.0],
        "channels": ["HR", "SpO2", "HR", "SpO2"],
        "values": [80, 97, 80, 97],
    },
    "numbers": [41.0, 1.0],
    "categories": ["sex=f"],
    "notes": {"times": [4], "values": ["patient number 1 had a quiet night and eats well"]},
}


def patterns() -> list[dict[str, Any]]:
    """All 15 ways to have some of the modalities."""
    names = list(FIELDS)
    chosen = [c for n in range(1, len(names) + 1) for c in itertools.combinations(names, n)]
    return [{"key": "-".join(c), **{name: FIELDS[name] for name in c}} for c in chosen]


@pytest.fixture(scope="module")
def portable(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("portable") / "model"
    run.export(out)
    return PortableModel(str(out))


def records() -> list[fleximoe.Record]:
    series = fleximoe.Series(
        np.array([0.5, 1.0, 6.0, 12.0], np.float32), np.array([0, 1, 0, 1]), np.array([80, 97, 80, 97], np.float32)
    )
    values = {
        "vitals": series,
        "numbers": np.array([41.0, 1.0], np.float32),
        "categories": fleximoe.Codes(["sex=f"]),
        "notes": fleximoe.Objects(np.array([4.0]), ["patient number 1 had a quiet night and eats well"]),
    }
    return [
        fleximoe.Record(fields["key"], {name: values[name] for name in fields if name != "key"})
        for fields in patterns()
    ]


def test_plain_records_are_predicted_as_records_whatever_is_missing(run, portable):
    said = portable.predict(portable.records(patterns())).to_pandas()
    wanted = run.predict(records())
    assert said["key"].tolist() == wanted["key"].tolist() and len(said) == 15
    np.testing.assert_allclose(said["died.logits"], wanted["died.logits"], atol=1e-5)
    assert said["died.logits"].round(6).nunique() > 10 and said["record"].tolist() == list(range(15))
    assert "died.target" not in said.columns


def test_plain_answers_are_the_rows_of_the_table(portable):
    rows = portable.answer(patterns())
    assert rows == portable.predict(portable.records(patterns())).to_pylist() == portable.answer(records())
    assert portable.answer([]) == []


def test_vocabularies_are_those_of_training_also_as_an_earlier_version_left_them(portable, tmp_path):
    wanted, about = portable.answer(patterns()), json.dumps(portable.about)
    vocabulary = exported_vocabularies(portable.url, portable.about)["categories"]
    (tmp_path / "vocabularies").mkdir()
    (tmp_path / "model.json").write_text(about)
    shutil.copy(f"{portable.url}/model.safetensors", tmp_path)
    before = tmp_path / "vocabularies" / "categories.parquet"
    before.write_bytes(vocabulary.to_bytes())
    assert PortableModel(str(tmp_path)).answer(patterns()) == wanted
    before.write_bytes(Vocabulary(tuple(reversed(vocabulary.names))).to_bytes())
    with pytest.raises(ValueError, match="vocabulary of categories is not the one that the model was trained with"):
        PortableModel(str(tmp_path))
    before.unlink()
    with pytest.raises(ValueError, match="the vocabulary of categories cannot be read"):
        PortableModel(str(tmp_path))


# What training, tracking and serving need is as if it were not installed.
LIGHT = """
import json, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in sys.argv[2].split():
            raise ModuleNotFoundError(f"{name} is not installed here")

sys.meta_path.insert(0, Absent())
import fleximoe
model = fleximoe.load(sys.argv[1])
said = model.predict(model.records(json.loads(sys.stdin.read())))
print(json.dumps(said["died.logits"].to_pylist()))
"""


@pytest.mark.long  # imports torch anew
def test_it_needs_nothing_that_trains_tracks_or_serves(portable):
    absent = "ray mlflow deepspeed webdataset pandas sklearn matplotlib typer rich transformers aiohttp psutil"
    words = [sys.executable, "-c", LIGHT, portable.url, absent]
    done = subprocess.run(words, input=json.dumps(patterns()), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = portable.predict(portable.records(patterns()))["died.logits"].to_pylist()
    assert json.loads(done.stdout) == pytest.approx(expected, abs=1e-6)
