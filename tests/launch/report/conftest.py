"""A small run and its page, and a sweep, made once."""

from __future__ import annotations

import json

import pytest

import fleximoe
from tests.launch.api.ward import SMALL, notes, stays, vitals

VALUES = {0: [0.6, 0.7], 1: [0.5, 0.9], 2: [0.8], 3: [0.55, 0.5]}


@pytest.fixture(scope="package")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="package")
def run(place):
    data = fleximoe.pack(records=stays(), vitals=vitals(), notes=notes(), tasks="died", out=place / "ward")
    training = {**SMALL["training"], "storage": place / "runs"}
    return fleximoe.fit(data, **{**SMALL, "training": training}, name="ward", progress=False)


@pytest.fixture(scope="package")
def page(run, place):
    return run.report(place / "run.html", sample=4).read_text(encoding="utf-8")


@pytest.fixture
def sweep(tmp_path):
    """Four trials of two learning rates with two seeds, as a sweep leaves them; one was stopped early."""
    folder = tmp_path / "s"
    words = [[f"optim.lr={lr}", f"training.seed={seed}", f"data.seed={seed}"] for lr in (0.1, 0.001) for seed in (0, 1)]
    folder.mkdir()
    stored = {"metric": "val/auroc", "mode": "max", "trials": words, "recipe": {"name": "s"}}
    (folder / "sweep.json").write_text(json.dumps(stored))
    for number, values in VALUES.items():
        trial = folder / f"s-{number:03d}"
        trial.mkdir()
        lines = [
            {"time": 0, "step": 10 * (at + 1), "metrics": {"val/auroc": value, "train/samples_seen": 100 * (at + 1)}}
            for at, value in enumerate(values)
        ]
        (trial / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        if number == 2:
            (trial / "pruned.json").write_text("{}")
        else:
            (trial / "result.json").write_text(json.dumps({"status": "finished", "metrics": {"test/auroc": 0.4}}))
    return folder
