"""Metrics against scikit-learn, and by hand where labels are missing."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from sklearn import metrics as reference
from sksurv import metrics as sksurv_metrics
from torchmetrics.functional import classification as oracle

from data_shards import TaskSpec
from data_shards.inspection.labels import label_values
from tests.ranks import run_ranks
from trainer.metrics.formulas import auroc, average_precision, confusion, counts_by_score, macro_f1
from trainer.metrics.predictions import PredictionCollector
from trainer.metrics.scores import metric_names, part_metrics, task_metrics
from trainer.metrics.survival import median_time, risk, survival_at_edges
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


LIFE = TaskSpec("t", "survival", edges=(1.0, 2.0, 4.0), unit="days")


def test_survival_names_are_known_from_the_labels_alone() -> None:
    """Every combination of a few times gives exactly the metrics that were foretold; none of them is NaN."""
    seen = set()
    labels = [(torch.nan, torch.nan), *itertools.product((0.5, 1.0, 1.5, 5.0), (0.0, 1.0))]
    for rows in itertools.product(labels, repeat=3):
        target = torch.tensor(rows)
        got = task_metrics(LIFE, torch.zeros(3, 3), target)
        assert got.keys() == metric_names(LIFE, label_values(LIFE, target.numpy())), rows
        assert all(value == value for value in got.values()), rows
        seen.add(frozenset(got))
    assert len(seen) > 6


def test_survival_by_hand_and_against_the_library() -> None:
    rng = np.random.default_rng(0)
    logits = torch.tensor(rng.normal(size=(200, 3)) - 1)
    time, seen = rng.exponential(2.5, 200).astype(np.float32), rng.random(200) < 0.7
    target = torch.tensor(np.stack([time, seen.astype(np.float32)], axis=1))
    target[:20] = torch.nan
    got = task_metrics(LIFE, logits, target)
    hazard = 1 / (1 + np.exp(-logits[20:].numpy()))
    curve = (1 - hazard).cumprod(axis=1)
    # Area above the curve, which falls by a constant hazard within each interval.
    before, width = np.concatenate([np.ones((180, 1)), curve[:, :-1]], axis=1), np.array([1.0, 1.0, 2.0])
    area = ((before - curve) / np.log(before / curve) * width).sum(axis=1)
    time, seen = time[20:].astype(float), seen[20:]
    assert got["concordance"] == pytest.approx(sksurv_metrics.concordance_index_censored(seen, time, 4 - area)[0])
    labels = np.array(list(zip(seen, time, strict=True)), dtype=[("seen", bool), ("time", float)])
    assert got["concordance_ipcw"] == pytest.approx(
        sksurv_metrics.concordance_index_ipcw(labels, labels, 4 - area, tau=4.0)[0]
    )
    expected = sksurv_metrics.integrated_brier_score(labels, labels, curve, np.array([1.0, 2.0, 4.0]))
    assert got["integrated_brier"] == pytest.approx(expected)
    assert 0 < got["ece"] < 0.5


def test_curves_medians_and_risks_by_hand() -> None:
    """Hazards 0.2, 0.5, 0.75 over (0, 1], (1, 2], (2, 4]; nothing at all; everything at once."""
    logits = torch.tensor([[0.2, 0.5, 0.75], [1e-30, 1e-30, 1e-30], [1.0 - 1e-7] * 3], dtype=torch.float64).logit()
    assert survival_at_edges(logits)[0].tolist() == pytest.approx([0.8, 0.4, 0.1])
    median = median_time(LIFE, logits)
    assert float(median[0]) == pytest.approx(1 + np.log(0.8 / 0.5) / np.log(2))
    assert bool(median[1].isnan()) and 0 < float(median[2]) < 0.05
    lived = 0.2 / np.log(1 / 0.8) + 0.4 / np.log(2) + 0.3 / np.log(4) * 2
    assert risk(LIFE, logits).tolist() == pytest.approx([4 - lived, 0.0, 4 - 1 / np.log(1e7)], abs=1e-5)
    assert float(median_time(LIFE, torch.tensor([[0.0, 0.0, 0.0]]))[0]) == pytest.approx(1.0), "half at an edge"


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
    whole = torch.full((40,), torch.nan)
    if rank != 2:
        collector.add(
            index, whole[: len(index)], {"t": index.float()[:, None] - 20}, {"t": (index > 25).float()[:, None]}
        )
    else:
        for part in index.split(3):
            told = {"t": part.float()[:, None] - 20}, {"t": (part > 25).float()[:, None]}
            collector.add(part, whole[: len(part)], *told)
    predictions = collector.to_first()
    said = str(broadcast_json({"from": rank}))
    if predictions is None:
        return None if rows is None else rows.tolist(), {}, said
    assert predictions.index_B.tolist() == list(range(40)) and predictions.moment_B is None
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
