"""A run whose parts count as too large for one worker ends with the figures of one whose predictions were gathered."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.trainer.jobs.test_train import job
from tests.trainer.tiny import config, packed
from trainer.checkpoints.evaluation_recipe import evaluation_config
from trainer.checkpoints.find import open_checkpoint
from trainer.config.run_config import RunConfig
from trainer.metrics.prediction_table import read_predictions
from trainer.metrics.predictions import Predictions


def read(path: Path) -> Predictions:
    return read_predictions(path)[1]


@pytest.mark.long
def test_a_large_part_is_measured_as_a_small_one(tmp_path: Path) -> None:
    data = packed(tmp_path / "data", records=60)
    results, lines = {}, {}
    for samples in (1 << 22, 1):
        storage = tmp_path / str(samples)
        results[samples] = job(2, config(data, storage, training__epochs=1, training__gathered_samples=samples))
        lines[samples] = [json.loads(line) for line in (storage / "run" / "metrics.jsonl").read_text().splitlines()]
    whole, spread = results[1 << 22]["metrics"], results[1]["metrics"]
    assert whole.keys() == spread.keys() and len(whole) > 15
    assert spread == pytest.approx(whole, rel=1e-12, abs=1e-15)
    # So are those of the validation part, by which the best step is chosen
    val = [
        {k: v for line in own for k, v in line.get("metrics", {}).items() if k.startswith("val/")}
        for own in lines.values()
    ]
    assert val[0].keys() == val[1].keys() and val[1] == pytest.approx(val[0], rel=1e-12, abs=1e-15)
    expected = read(tmp_path / str(1 << 22) / "run" / "predictions" / "test.parquet")
    folder = tmp_path / "1" / "run" / "predictions"
    assert sorted(path.name for path in folder.rglob("*")) == ["part-00000.parquet", "part-00001.parquet", "test"]
    parts = [read(path) for path in sorted((folder / "test").iterdir())]
    assert all(len(part) for part in parts)
    np.testing.assert_array_equal(np.concatenate([p.index_B.numpy() for p in parts]), expected.index_B.numpy())
    for task, logits in expected.logits.items():
        np.testing.assert_array_equal(np.concatenate([p.logits[task].numpy() for p in parts]), logits.numpy())
    figures = [{p.name for p in (tmp_path / str(n) / "run" / "figures").iterdir()} for n in (1, 1 << 22)]
    assert figures[0] < figures[1] and "roc_died.png" in figures[1] - figures[0]
    # Evaluated on another number of ranks, without a modality
    checkpoint = open_checkpoint(str(tmp_path / "1" / "run"))
    found = {}
    for samples in (1 << 22, 1):
        tree = evaluation_config(checkpoint, drop=["age"]).model_dump(mode="json")
        tree["training"]["gathered_samples"] = samples
        tree["parallel"]["workers"] = 3
        found[samples] = job(3, RunConfig.of(tree))["metrics"]
    assert found[1] == pytest.approx(found[1 << 22], rel=1e-12, abs=1e-15) != spread
