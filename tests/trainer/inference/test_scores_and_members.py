"""A run with whole series, normal scores, steps and heads of members: interrupted, predicted, explained, exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from data_shards import StepLoader, open_manifest, pack
from tests.trainer.jobs.test_train import STEADY, job, losses
from tests.trainer.tiny import Reordered, TinyOptions, config, packed, predictor_of
from trainer.checkpoints.evaluation_recipe import evaluation_config
from trainer.checkpoints.find import open_checkpoint
from trainer.inference.export import export_model
from trainer.inference.exported import load_model
from trainer.inference.request import Request
from trainer.metrics.prediction_table import read_predictions

ALL: dict[str, Any] = {
    **STEADY,
    "model__series__statistics": "token",
    "model__scale": "quantile",
    "model__vector__numbers": "piecewise",
    "model__head__start": "base",
    "model__head__members": 3,
    "training__focal": 1.0,
    "training__epochs": 2,
}


def predicted(run: Path, data: str, **more: Any) -> pa.Table:
    recipe = evaluation_config(open_checkpoint(str(run)), data)
    predictor = predictor_of(Request(recipe, part="test", **more))
    return pa.concat_tables([predictor(stretch)[0] for stretch in predictor.stretches()])


@pytest.mark.long
def test_it_goes_on_as_it_would_have_and_says_the_same_everywhere(tmp_path: Path) -> None:
    data = packed(tmp_path / "data")
    job(1, config(data, tmp_path / "whole", **ALL))
    job(1, config(data, tmp_path / "parts", **ALL), stop_at=3)
    job(2, config(data, tmp_path / "parts", **ALL, parallel__workers=2, parallel__expert_parallel=2))
    whole, parts = losses(tmp_path / "whole"), losses(tmp_path / "parts")
    assert list(whole) == list(parts) == list(range(1, 9))
    assert list(parts.values()) == pytest.approx(list(whole.values()), rel=1e-4)

    run = tmp_path / "whole" / "run"
    tasks, logged = read_predictions(run / "predictions" / "test.parquet")
    own = predicted(run, data)
    for task in tasks:
        name = f"{task.name}.{'value' if task.kind == 'regression' else 'logits'}"
        got = np.array(own[name].to_pylist(), np.float32).reshape(len(own), -1)
        np.testing.assert_allclose(got, logged.logits[task.name], rtol=1e-4, atol=1e-5)

    # Quantiles are the checkpoint's, by channel, whatever data it meets.
    pack(Reordered(TinyOptions()), str(tmp_path / "other"), chunk_records=6)
    other = predicted(run, str(tmp_path / "other"))
    assert all(own[name].equals(other[name]) for name in own.column_names)
    explained = predicted(run, data, explain=True).to_pylist()
    assert all(sum(v or 0.0 for v in row["died.modality_share"].values()) == pytest.approx(1) for row in explained)

    export_model(str(run), str(tmp_path / "model"))
    model = load_model(str(tmp_path / "model"))
    loader = StepLoader(open_manifest(data), config(data, tmp_path).data, "test", 100, shuffle=False)
    batch = next(loader.steps(0)).micro_batches[0]
    with torch.no_grad():
        days = model(batch).logits["days"][:, 0]
    np.testing.assert_allclose(days.numpy(), np.array(own["days.value"]), rtol=1e-4, atol=1e-5)
