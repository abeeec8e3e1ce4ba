"""Metrics against scikit-learn, and by hand where labels are missing."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from sklearn import metrics as reference
from torchmetrics.functional import classification as oracle

from data_shards import TaskSpec
from tests.ranks import run_ranks
from trainer.metrics.formulas import auroc, average_precision, confusion, counts_by_score, macro_f1
from trainer.metrics.predictions import PredictionCollector
from trainer.metrics.scores import metric_names, part_metrics, task_metrics
from trainer.models.layers.heads import TaskLoss
from trainer.worker.collectives import broadcast_json, rows_to_first

RNG = np.random.default_rng(0)


def test_binary() -> None:
    logits, truth = RNG.normal(size=200), RNG.integers(0, 2, 200)
    probability = 1 / (1 + np.exp(-logits))
    got = task_metrics(TaskSpec("t", "binary"), torch.tensor(logits)[:, None], torch.tensor(truth).float()[:, None])
    assert got["auroc"] == pytest.approx(reference.roc_auc_score(truth, logits), abs=1e-6)
    assert got["auprc"] == pytest.approx(reference.average_precision_score(truth, logits), abs=1e-6)
    assert got["f1"] == pytest.approx(reference.f1_score(truth, logits > 0), abs=1e-6)
    assert got["accuracy"] == pytest.approx(reference.accuracy_score(truth, logits > 0), abs=1e-6)
    assert got["brier"] == pytest.approx(reference.brier_score_loss(truth, probability), abs=1e-6)


def test_multiclass() -> None:
    logits, truth = RNG.normal(size=(300, 4)), RNG.integers(0, 4, 300)
    task = TaskSpec("t", "multiclass", classes=("a", "b", "c", "d"))
    got = task_metrics(task, torch.tensor(logits), torch.tensor(truth).float()[:, None])
    chosen = logits.argmax(1)
    probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert got["accuracy"] == pytest.approx(reference.accuracy_score(truth, chosen), abs=1e-6)
    assert got["f1"] == pytest.approx(reference.f1_score(truth, chosen, average="macro"), abs=1e-6)
    assert got["auroc"] == pytest.approx(reference.roc_auc_score(truth, probability, multi_class="ovr"), abs=1e-5)


def test_multilabel_with_missing_labels() -> None:
    logits, truth = RNG.normal(size=(100, 2)), RNG.integers(0, 2, (100, 2)).astype(np.float32)
    truth[:40, 1] = np.nan
    got = task_metrics(TaskSpec("t", "multilabel", classes=("p", "q")), torch.tensor(logits), torch.tensor(truth))
    first = reference.roc_auc_score(truth[:, 0], logits[:, 0])
    second = reference.roc_auc_score(truth[40:, 1], logits[40:, 1])
    assert got["auroc"] == pytest.approx((first + second) / 2, abs=1e-6)


def test_regression_in_the_targets_unit() -> None:
    value, target = RNG.normal(size=50), RNG.normal(size=50)
    got = task_metrics(TaskSpec("t", "regression"), torch.tensor(value)[:, None], torch.tensor(target)[:, None])
    assert got["mae"] == pytest.approx(reference.mean_absolute_error(target, value), abs=1e-6)
    assert got["rmse"] == pytest.approx(reference.mean_squared_error(target, value) ** 0.5, abs=1e-6)
    assert got["r2"] == pytest.approx(reference.r2_score(target, value), abs=1e-5)


def test_tied_scores_against_two_references() -> None:
    """Scores of few values, so that most records tie; two classes that nobody chooses, one of them never there."""
    rng = np.random.default_rng(1)
    logits, truth = rng.integers(-3, 4, 500) / 2, rng.integers(0, 2, 500)
    probability = torch.tensor(logits).sigmoid()
    counts = counts_by_score(probability, torch.tensor(truth))
    assert len(counts[0]) == 7 and counts[0][-1] + counts[1][-1] == 500
    assert float(auroc(*counts)) == pytest.approx(reference.roc_auc_score(truth, logits), abs=1e-14)
    assert float(average_precision(*counts)) == pytest.approx(
        reference.average_precision_score(truth, logits), abs=1e-14
    )
    assert float(auroc(*counts)) == pytest.approx(
        float(oracle.binary_auroc(probability, torch.tensor(truth))), abs=1e-6
    )
    assert float(average_precision(*counts)) == pytest.approx(
        float(oracle.binary_average_precision(probability, torch.tensor(truth))), abs=1e-6
    )
    chosen, several = torch.tensor(rng.integers(0, 3, 500)), torch.tensor(rng.integers(0, 4, 500))
    assert confusion(chosen, several, 5).tolist() == oracle.multiclass_confusion_matrix(chosen, several, 5).tolist()
    expected = float(oracle.multiclass_f1_score(chosen, several, 5, average="macro"))
    assert float(macro_f1(chosen, several, 5)) == pytest.approx(expected, abs=1e-6)
    # By hand: a positive above one of two negatives, and level with the other.
    by_hand = counts_by_score(torch.tensor([0.9, 0.5, 0.5]), torch.tensor([0, 1, 0]))
    assert [count.tolist() for count in by_hand] == [[1, 2], [0, 1]]
    assert (float(auroc(*by_hand)), float(average_precision(*by_hand))) == (0.25, 1 / 3)


def test_one_class_only_and_no_label() -> None:
    task = TaskSpec("t", "binary")
    assert "auroc" not in task_metrics(task, torch.zeros(3, 1), torch.ones(3, 1))
    assert task_metrics(task, torch.zeros(3, 1), torch.full((3, 1), torch.nan)) == {}


KINDS = [
    TaskSpec("t", "binary"),
    TaskSpec("t", "multiclass", classes=("a", "b", "c")),
    TaskSpec("t", "multilabel", classes=("p", "q")),
    TaskSpec("t", "regression", dim=2),
]


@pytest.mark.parametrize("task", KINDS, ids=lambda task: task.kind)
def test_names_are_known_from_the_labels_alone(task: TaskSpec) -> None:
    """Every combination of a few labels gives exactly the metrics that were foretold."""
    known = {"regression": (1.5, 2.5), "multiclass": (0.0, 1.0, 2.0)}.get(task.kind, (0.0, 1.0))
    seen = set()
    for rows in itertools.product((torch.nan, *known), repeat=3 if task.width == 1 else 4):
        target = torch.tensor(rows).view(-1, task.width)
        got = task_metrics(task, torch.zeros(len(target), task.dim), target)
        values = [{value for value in column.tolist() if value == value} for column in target.T]
        assert got.keys() == metric_names(task, values), rows
        assert all(value == value for value in got.values()), "none of them is NaN"
        seen.add(frozenset(got))
    assert len(seen) >= 3


def test_without_a_positive_there_is_no_f1() -> None:
    task = TaskSpec("t", "binary")
    assert task_metrics(task, torch.ones(3, 1), torch.zeros(3, 1)).keys() == {"accuracy", "brier", "ece"}
    several = TaskSpec("t", "multilabel", classes=("p", "q"))
    got = task_metrics(several, torch.ones(2, 2), torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    assert got["f1"] == pytest.approx(2 / 3), "the mean over labels that have one"


def test_losses_by_hand_and_unlabelled_records_do_not_count() -> None:
    nan = torch.nan
    binary = TaskLoss(TaskSpec("t", "binary"), [1.0, 3.0], [1.0])
    logits = torch.tensor([[0.0], [0.0], [5.0]], requires_grad=True)
    loss = binary(logits, torch.tensor([[1.0], [0.0], [nan]]))
    assert float(loss.detach()) == pytest.approx(4 * np.log(2), rel=1e-6)
    loss.backward()
    assert logits.grad is not None and logits.grad[2] == 0
    assert binary.labelled(torch.tensor([[1.0], [nan]])).tolist() == [True, False]
    several = TaskLoss(TaskSpec("t", "multilabel", classes=("p", "q")), None, [1.0, 1.0])
    assert float(several(torch.zeros(1, 2), torch.tensor([[1.0, nan]]))) == pytest.approx(np.log(2), rel=1e-6)
    days = TaskLoss(TaskSpec("t", "regression"), None, [2.0])
    assert float(days(torch.tensor([[5.0]]), torch.tensor([[4.0]]))) == pytest.approx(0.125)
    classes = TaskLoss(TaskSpec("t", "multiclass", classes=("a", "b", "c")), None, [1.0])
    assert float(classes(torch.zeros(2, 3), torch.tensor([[1.0], [nan]]))) == pytest.approx(np.log(3), rel=1e-6)


def _gather_uneven(rank: int, world: int) -> tuple[list[int] | None, dict[str, float], str]:
    rows = rows_to_first(torch.arange(rank * 10, rank * 10 + rank))
    collector = PredictionCollector([TaskSpec("t", "binary")])
    index = torch.arange(rank, 40, world)  # interleaved, so that order must be restored
    if rank != 2:
        collector.add(index, {"t": index.float()[:, None] - 20}, {"t": (index > 25).float()[:, None]})
    else:
        for part in index.split(3):
            collector.add(part, {"t": part.float()[:, None] - 20}, {"t": (part > 25).float()[:, None]})
    predictions = collector.to_first()
    said = str(broadcast_json({"from": rank}))
    if predictions is None:
        return None if rows is None else rows.tolist(), {}, said
    assert predictions.index_B.tolist() == list(range(40))
    assert predictions.logits["t"][:, 0].tolist() == [float(number - 20) for number in range(40)]
    assert rows is not None
    return rows.tolist(), part_metrics("test", collector.tasks, predictions), said


def test_gathering_over_ranks_is_exact() -> None:
    results = run_ranks(_gather_uneven, 3)
    assert results[1:] == [(None, {}, "{'from': 0}")] * 2
    rows, values, said = results[0]
    assert rows == [10, 20, 21]
    assert said == "{'from': 0}"
    assert values["test/auroc"] == 1.0
    assert values["test/accuracy"] == pytest.approx(35 / 40)
