"""An export opened where torch, safetensors, numpy and pydantic are all that there is, on every kind of modality."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fleximoe
from tests.launch.api.ward import SMALL
from trainer.inference.portable.values import record_of

pytestmark = pytest.mark.long  # trains, and imports torch anew

END = 10.0
OBJECTS = {
    "text": {},
    "vector": {"shape": (2,)},
    "image": {"shape": (1, 8, 8)},
    "waveform": {"shape": (1,), "rate": 4.0},
}
SCHEMA = fleximoe.DatasetSchema(
    "everything",
    (
        fleximoe.ModalitySpec("labs", "series", channels=("K", "Na"), horizon=END),
        fleximoe.ModalitySpec("ward", "codes"),
        fleximoe.ModalitySpec("drugs", "codes", timed=True, valued=True, horizon=END),
        *(fleximoe.ModalitySpec(kind, kind, **more) for kind, more in OBJECTS.items()),  # type: ignore[arg-type]
        *(
            fleximoe.ModalitySpec(f"{kind}s", kind, timed=True, horizon=END, **more)  # type: ignore[arg-type]
            for kind, more in OBJECTS.items()
        ),
    ),
    (
        fleximoe.TaskSpec("died", "binary"),
        fleximoe.TaskSpec("unit", "multiclass", classes=("a", "b", "c")),
        fleximoe.TaskSpec("signs", "multilabel", classes=("p", "q")),
        fleximoe.TaskSpec("days", "regression"),
        fleximoe.TaskSpec("alive", "survival", edges=(1.0, 3.0, 9.0)),
    ),
)
RECORDS = 60


def plain(number: int) -> dict[str, Any]:
    """A record in plain form; each modality is missing now and then."""
    rng = np.random.default_rng(number)
    times = np.sort(rng.uniform(0, END, 3)).round(2).tolist()
    own = {
        "text": lambda: " ".join(f"w{n}" for n in rng.integers(0, 9, 4)),
        "vector": lambda: rng.normal(size=2).round(3).tolist(),
        "image": lambda: rng.integers(0, 256, (1, 8, 8)).tolist(),
        "waveform": lambda: rng.normal(size=(12, 1)).round(3).tolist(),
    }
    values: dict[str, Any] = {
        "labs": {"times": times, "channels": ["K", "Na", "K"], "values": rng.normal(size=3).round(3).tolist()},
        "ward": [f"ward{number % 3}"],
        "drugs": {"codes": ["x", "y", "new"], "times": times, "values": [0.5, None, 2.0]},
        **{kind: make() for kind, make in own.items()},
        **{f"{kind}s": {"times": times[:2], "values": [make(), make()]} for kind, make in own.items()},
    }
    return {"key": f"r{number}", **{name: value for name, value in values.items() if rng.random() < 0.7}}


WITHOUT_TEXTS = replace(SCHEMA, modalities=tuple(own for own in SCHEMA.modalities if own.kind != "text"))


def given(schema: fleximoe.DatasetSchema, number: int) -> dict[str, Any]:
    """A plain record of a schema."""
    return {name: value for name, value in plain(number).items() if name == "key" or name in schema.numbers}


def records(schema: fleximoe.DatasetSchema) -> Iterator[fleximoe.Record]:
    for number in range(RECORDS):
        rng = np.random.default_rng((1, number))
        targets: dict[str, Any] = {
            "died": float(number % 2),
            "unit": float(number % 3),
            "signs": rng.integers(0, 2, 2).astype(np.float32),
            "days": float(rng.exponential()),
            "alive": np.array([rng.exponential(3.0), number % 2], np.float32),
        }
        made = record_of({"vector": [0.0, 1.0], **given(schema, number)}, schema, number)
        yield fleximoe.Record(made.key, made.values, targets)


def trained(place: Path, which: str) -> fleximoe.Run:
    """A run, or an ensemble of two and a linear model, which reads texts by a library of its own."""
    schema = SCHEMA if which == "run" else WITHOUT_TEXTS
    data = fleximoe.pack(records(schema), place / "data", schema=schema)
    here: dict[str, Any] = {"training": {"storage": place / "runs"}, "tracking": {"mlflow": False}}

    def one(name: str, seed: int) -> fleximoe.Run:
        training = {**SMALL["training"], **here["training"], "seed": seed}
        return fleximoe.fit(data, **{**SMALL, "training": training}, name=name, progress=False)

    if which == "run":
        return one("one", 0)
    linear = fleximoe.baseline(data, family="linear", name="flat", **here)
    return fleximoe.ensemble([one("one", 0), one("two", 1)], blend=linear, name="all", **here)


ALONE = """
import json, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        top = name.split(".")[0]
        if top in sys.argv[2].split():
            raise AssertionError(f"{name} is imported")

sys.meta_path.insert(0, Absent())
import fleximoe
model = fleximoe.load(sys.argv[1])
given = json.loads(sys.stdin.read())
said = model.answer(given)
assert model.answer(model.records(given)) == said
print(json.dumps(said))
"""
ABSENT = (
    "pyarrow scipy fsspec pandas mlflow ray deepspeed sklearn yaml aiohttp webdataset transformers "
    "matplotlib typer rich psutil PIL soundfile"
)


@pytest.mark.parametrize("which", ["run", "ensemble"])
def test_it_needs_torch_safetensors_and_pydantic_alone(which, tmp_path):
    run = trained(tmp_path, which)
    run.export(tmp_path / "model")
    schema = SCHEMA if which == "run" else WITHOUT_TEXTS
    asked = [given(schema, number) for number in range(100, 140)]
    assert {name for one in asked for name in one} == {"key", *schema.modality_names}
    words = [sys.executable, "-c", ALONE, str(tmp_path / "model"), ABSENT]
    done = subprocess.run(words, input=json.dumps(asked), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    wanted = run.predict([record_of(one, schema, number) for number, one in enumerate(asked)])
    labels = [f"{task.name}.target" for task in SCHEMA.tasks]
    wanted = wanted.drop(columns=labels)
    assert len(said) == 40 and list(said[0]) == list(wanted.columns)
    for name in wanted:
        own = [row[name] for row in said]
        if wanted[name].dtype == object or isinstance(wanted[name].iloc[0], str):
            assert all(same(a, b) for a, b in zip(own, wanted[name].tolist(), strict=True)), name
        else:
            np.testing.assert_allclose(np.array(own, float), wanted[name].to_numpy(float), atol=1e-5, err_msg=name)
    assert len({round(row["died.logits"], 5) for row in said}) > 30


def same(own: Any, wanted: Any) -> bool:
    """Texts and lists of texts alike, numbers to 1e-5."""
    if isinstance(own, list) and own and not isinstance(own[0], str):
        return bool(np.allclose(own, np.array(wanted, float), atol=1e-5))
    return bool(own == (list(wanted) if isinstance(own, list) else wanted))
