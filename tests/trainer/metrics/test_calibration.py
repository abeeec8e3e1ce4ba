"""Calibration against torchmetrics and against temperatures that are known; predictions that survive a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torchmetrics.functional import classification

from data_shards import TaskSpec
from trainer.metrics.calibration import fit_temperature, nll, reliability, statements, statements_name
from trainer.metrics.prediction_table import predictions_table, read_predictions, write_predictions
from trainer.metrics.predictions import Predictions
from trainer.metrics.said import plain_rows
from trainer.metrics.scores import task_metrics

BINARY = TaskSpec("died", "binary")
CLASSES = TaskSpec("kind", "multiclass", classes=("u", "v", "w"))
LABELS = TaskSpec("codes", "multilabel", classes=("p", "q"))
DAYS = TaskSpec("days", "regression", unit="days")
LEFT = TaskSpec("left", "survival", edges=(1.0, 2.0))


def drawn(task: TaskSpec, records: int, sharpness: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels drawn from the probabilities of honest logits, and those logits times `sharpness`."""
    generator = torch.Generator().manual_seed(0)
    logits_BC = torch.randn(records, task.dim, generator=generator) * 2
    if task.kind == "multiclass":
        target_Bt = torch.multinomial(logits_BC.softmax(1), 1, generator=generator).float()
    else:
        target_Bt = torch.bernoulli(logits_BC.sigmoid(), generator=generator)
    return logits_BC * sharpness, target_Bt


@pytest.mark.parametrize("task", [BINARY, CLASSES, LABELS], ids=lambda task: task.kind)
def test_the_temperature_that_was_put_in_is_found(task: TaskSpec) -> None:
    logits_BC, target_Bt = drawn(task, 20_000, 3.0)
    target_Bt[:500] = torch.nan
    temperature = fit_temperature(task, logits_BC, target_Bt)
    assert temperature == pytest.approx(3.0, rel=0.05)
    around = [nll(task, logits_BC / t, target_Bt) for t in (temperature / 1.1, temperature, temperature * 1.1)]
    assert around[1] < min(around[0], around[2])
    before, after = (statements(task, logits_BC / t, target_Bt) for t in (1.0, temperature))
    assert before is not None and after is not None
    assert reliability(*before).error > 0.05 and reliability(*after).error < 0.02


def test_nothing_to_fit_leaves_logits_as_they_are() -> None:
    assert fit_temperature(DAYS, torch.zeros(3, 1), torch.ones(3, 1)) == 1.0
    assert fit_temperature(BINARY, torch.zeros(3, 1), torch.full((3, 1), torch.nan)) == 1.0
    assert statements(DAYS, torch.zeros(3, 1), torch.ones(3, 1)) is None


def test_calibration_error_and_brier_agree_with_torchmetrics() -> None:
    logits_B1, target_B1 = drawn(BINARY, 500, 1.5)
    got = task_metrics(BINARY, logits_B1, target_B1)
    expected = classification.binary_calibration_error(logits_B1[:, 0].sigmoid(), target_B1[:, 0].long(), n_bins=15)
    assert got["ece"] == pytest.approx(float(expected), abs=1e-5)
    logits_BC, target_B1 = drawn(CLASSES, 500, 1.5)
    got = task_metrics(CLASSES, logits_BC, target_B1)
    expected = classification.multiclass_calibration_error(logits_BC.softmax(1), target_B1[:, 0].long(), 3, n_bins=15)
    assert got["ece"] == pytest.approx(float(expected), abs=1e-5)
    wrong = np.eye(3)[target_B1[:, 0].long().numpy()] - logits_BC.double().softmax(1).numpy()
    assert got["brier"] == pytest.approx((wrong**2).sum(1).mean(), abs=1e-6)


def test_several_labels_together_are_called_so_as_their_error_is_another_number_than_the_mean_over_labels() -> None:
    logits_BC, target_BC = torch.full((2, 2), 2.0), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    stated, chance = statements(LABELS, logits_BC, target_BC), 1 / (1 + np.exp(-2.0))
    assert stated is not None and reliability(*stated).error == pytest.approx(chance - 0.5)
    assert float(task_metrics(LABELS, logits_BC, target_BC)["ece"]) == pytest.approx(((1 - chance) + chance) / 2)
    assert statements_name(LABELS) == "codes, labels together" and statements_name(BINARY) == "died"


def test_predictions_survive_a_file_and_read_well(tmp_path: Path) -> None:
    tasks = [BINARY, CLASSES, LABELS, DAYS, LEFT]
    logits = {task.name: torch.arange(2.0 * task.dim).view(2, task.dim) - 1 for task in tasks}
    targets = {"died": torch.tensor([[1.0], [torch.nan]]), "kind": torch.tensor([[2.0], [0.0]])}
    targets |= {"codes": torch.tensor([[1.0, torch.nan], [0.0, 1.0]]), "days": torch.tensor([[3.5], [torch.nan]])}
    targets["left"] = torch.tensor([[1.5, 1.0], [3.0, 0.0]])
    logits["left"] = torch.tensor([[-3.0, -3.0], [1.0, 2.0]])
    said = Predictions(torch.tensor([4, 9]), logits, targets, moment_B=torch.tensor([torch.nan, 2.0]))
    rows = predictions_table(tasks, said, ["a", "b"]).to_pylist()
    row = rows[1]
    labels = {f"{task.name}.target" for task in tasks}
    assert rows[0]["left.median"] is rows[0]["moment"] is None and rows[1]["left.median"] is not None
    assert plain_rows(tasks, said, ["a", "b"]) == [{k: v for k, v in own.items() if k not in labels} for own in rows]
    assert (row["record"], row["key"], row["died.prediction"], row["died.target"]) == (9, "b", 0, None)
    assert row["kind.prediction"] == "w" and sum(row["kind.probability"]) == pytest.approx(1)
    assert row["codes.prediction"] == ["p", "q"] and row["days.value"] == 0.0
    write_predictions(tmp_path / "p.parquet", tasks, said)
    found, again = read_predictions(tmp_path / "p.parquet")
    assert found == tasks and torch.equal(again.index_B, said.index_B)
    for task in tasks:
        assert torch.equal(again.logits[task.name], said.logits[task.name])
        torch.testing.assert_close(again.targets[task.name], said.targets[task.name], equal_nan=True)
    (tmp_path / "wrong").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match="holds no predictions"):
        read_predictions(tmp_path / "wrong")
