"""Tasks of all kinds: what is learned, what is said where nothing can be learned, and the way through a file."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from data_shards import TaskSpec
from trainer.baseline.learners.linear import best_linear
from trainer.baseline.learners.problem import Constant, Learned, Periods, Problem
from trainer.baseline.learners.task_model import UNSEEN, Pair, TaskModel, learn
from trainer.models.layers.hazard import HazardLoss

NONE = float("nan")
SURVIVAL = TaskSpec("death", "survival", edges=(2.0, 4.0, 8.0))


def linear(pairs: Sequence[Pair]) -> list[Learned]:
    return [best_linear(*pair) for pair in pairs]


def rows(number: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(B, 3) and what depends on it, (B,)."""
    rng = np.random.default_rng(seed)
    x_BX = rng.normal(size=(number, 3)).astype(np.float32)
    return x_BX, x_BX[:, 0] + 0.1 * rng.normal(size=number)


@pytest.mark.parametrize(
    ("task", "target"),
    [
        (TaskSpec("a", "binary"), lambda z: (z > 0)[:, None]),
        (TaskSpec("b", "multilabel", classes=("p", "q")), lambda z: np.stack([z > 0, z < 1], axis=1)),
        (TaskSpec("c", "multiclass", classes=("u", "v", "w")), lambda z: np.digitize(z, [-0.5, 0.5])[:, None]),
        (TaskSpec("d", "regression", dim=2), lambda z: np.stack([100 + 10 * z, -z], axis=1)),
    ],
)
def test_each_kind_learns_and_is_kept(task, target) -> None:
    parts = [rows(160, 0), rows(80, 1)]
    train, val = ((x, target(z).astype(np.float32)) for x, z in parts)
    answer = learn(task, train, val, linear)
    said = answer.model.logits(val[0]).numpy()
    assert said.shape == (80, task.dim) and answer.notes == [] and len(answer.chosen) == len(answer.model.scorers)
    if task.kind == "regression":
        assert np.abs(said - val[1]).mean(axis=0) == pytest.approx([2, 0.2], abs=2)
        assert np.corrcoef(said[:, 0], val[1][:, 0])[0, 1] > 0.95
    else:
        right = said.argmax(axis=1) == val[1][:, 0] if task.kind == "multiclass" else (said > 0) == (val[1] == 1)
        assert right.mean() > 0.85
    again = TaskModel.of(task, answer.model.described(), answer.model.arrays())
    torch.testing.assert_close(again.logits(val[0]), answer.model.logits(val[0]), rtol=0, atol=0)


def test_what_training_has_one_answer_for_is_said_of_all() -> None:
    x_BX, z_B = rows(20, 0)
    target_Bt = np.stack([z_B > 0, np.ones(20), np.where(np.arange(20) < 12, 0.0, NONE)], axis=1).astype(np.float32)
    task = TaskSpec("b", "multilabel", classes=("p", "q", "r"))
    answer = learn(task, (x_BX, target_Bt), (x_BX, target_Bt), linear)
    said = answer.model.logits(x_BX[:2])
    # 20 of 20, and 0 of the 12 that are labelled, with half a row on either side.
    torch.testing.assert_close(said[:, 1:], torch.log(torch.tensor([[20.5 / 0.5, 0.5 / 12.5]] * 2)))
    why = "has one answer in training or no label in validation, so the same is said of every record"
    assert answer.notes == [f"b.q {why}", f"b.r {why}"] and len(answer.chosen) == 1


def test_classes_that_training_has_not_are_hardly_ever_said() -> None:
    task = TaskSpec("c", "multiclass", classes=("u", "v", "w", "x"))
    x_BX, z_B = rows(40, 0)
    train = np.where(z_B > 0, 3.0, 1.0)[:, None].astype(np.float32)
    val = train.copy()
    val[:5] = 0
    answer = learn(task, (x_BX, train), (x_BX, val), linear)
    said = answer.model.logits(x_BX)
    assert answer.model.seen == (1, 3) and (said[:, [0, 2]] == UNSEEN).all()
    torch.testing.assert_close(said[:, [1, 3]].exp().sum(dim=1), torch.ones(40))
    assert (said.argmax(dim=1).numpy() == train[:, 0]).mean() > 0.9
    assert answer.notes == ["c: 5 validation samples are of classes that training has not, and choose nothing"]


@pytest.mark.parametrize(("part", "why"), [("train", "to learn from"), ("val", "by which settings are chosen")])
def test_no_label_is_said(part: str, why: str) -> None:
    x_BX, z_B = rows(10, 0)
    known, none = (z_B > 0)[:, None].astype(np.float32), np.full((10, 1), NONE, np.float32)
    parts = {"train": known, "val": known} | {part: none}
    with pytest.raises(ValueError, match=f"part {part} has no label of task a, {why}"):
        learn(TaskSpec("a", "binary"), (x_BX, parts["train"]), (x_BX, parts["val"]), linear)


def test_survival_is_one_row_for_each_interval_that_was_entered() -> None:
    # Seen at 3: came through (0, 2], not through (2, 4]. Censored at 6: half of (4, 8]. Seen at 4, an edge: in (2, 4].
    # Censored beyond the last edge: all three. Censored at 0: nothing is known.
    target = np.array([[3, 1], [6, 0], [4, 1], [9, 0], [0, 0]], np.float32)
    periods = Periods(SURVIVAL.edges, np.array([-1.0, -2.0, -3.0]))
    found = periods.problem(np.arange(5, dtype=np.float32)[:, None], target)
    rows_ = list(zip(*found.x_BX.T.tolist(), found.y_B.tolist(), found.weight_B.tolist(), strict=True))
    assert rows_ == [
        (0, -1, 0, 1),
        (0, -2, 1, 1),
        (1, -1, 0, 1),
        (1, -2, 0, 1),
        (1, -3, 0, 0.5),
        (2, -1, 0, 1),
        (2, -2, 1, 1),
        (3, -1, 0, 1),
        (3, -2, 0, 1),
        (3, -3, 0, 1),
    ]


def test_the_loss_of_the_rows_is_that_of_the_hazards() -> None:
    rng = np.random.default_rng(0)
    target = np.stack([rng.uniform(0, 10, 30), rng.integers(0, 2, 30)], axis=1).astype(np.float32)
    logits = torch.from_numpy(rng.normal(size=(30, 3)).astype(np.float32))
    problem = Periods(SURVIVAL.edges, np.arange(3.0)).problem(np.arange(30, dtype=np.float32)[:, None], target)
    row, interval = problem.x_BX.astype(int).T
    total = problem.loss(logits.numpy().astype(np.float64)[row, interval][:, None]) * problem.weight_B.sum()
    assert total == pytest.approx(float(HazardLoss(SURVIVAL).of_each(logits, torch.from_numpy(target)).sum()), rel=1e-5)


def test_survival_learns_who_dies_early() -> None:
    x_BX, z_B = rows(300, 0)
    time = np.exp(1 - z_B)
    target = np.stack([np.minimum(time, 7), time < 7], axis=1).astype(np.float32)
    answer = learn(SURVIVAL, (x_BX[:200], target[:200]), (x_BX[200:], target[200:]), linear)
    said = answer.model.logits(x_BX[200:])
    assert said.shape == (100, 3)
    assert np.corrcoef(said[:, 0].numpy(), z_B[200:])[0, 1] > 0.9
    again = TaskModel.of(SURVIVAL, answer.model.described(), answer.model.arrays())
    torch.testing.assert_close(again.logits(x_BX[200:]), said, rtol=0, atol=0)


def test_a_loss_is_the_mean_over_weighted_rows() -> None:
    problem = Problem("binary", np.empty((2, 0)), np.array([1.0, 0.0]), np.array([3.0, 1.0]))
    log3 = np.log(3.0)
    # log(1 + 1/3) and log(1 + 3).
    assert problem.loss(np.array([[log3], [log3]])) == pytest.approx((3 * np.log(4 / 3) + np.log(4)) / 4)
    assert Constant(np.array([2.0])).scores(np.empty((3, 1))).tolist() == [[2], [2], [2]]
