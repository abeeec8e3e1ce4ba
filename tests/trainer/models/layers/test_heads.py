"""Where heads start: what is said of a record before anything has been learned."""

from __future__ import annotations

import math

import pytest
import torch

from data_shards import TaskSpec
from data_shards.records.statistics import SplitStatistics, TaskStatistics
from data_shards.shards.manifest import Manifest
from tests.trainer.models.tiny_model import batch_of, build
from trainer.models.layers.heads import Head, TaskLoss, answer_scale

BINARY = TaskSpec("died", "binary")
KIND = TaskSpec("kind", "multiclass", classes=("u", "v", "w"))
LABELS = TaskSpec("codes", "multilabel", classes=("p", "q"))
STATISTICS = SplitStatistics(
    100,
    {},
    {
        "died": TaskStatistics(99, (89, 10), (10 / 99,), (0.3,)),
        "kind": TaskStatistics(60, (29, 0, 31), (1.0,), (1.0,)),
        "codes": TaskStatistics(40, (10, 0), (0.25, 0.0), (0.4, 0.0)),
        "days": TaskStatistics(40, (), (5.0,), (2.0,)),
    },
)


def test_by_hand() -> None:
    assert answer_scale(STATISTICS, BINARY, "base") == ([pytest.approx(math.log(10.5 / 89.5))], [1.0])
    mean, std = answer_scale(STATISTICS, KIND, "base")
    assert mean == pytest.approx([math.log(p / 61.5) for p in (29.5, 0.5, 31.5)]) and std == [1.0] * 3
    assert torch.tensor(mean).softmax(0).tolist() == pytest.approx([29.5 / 61.5, 0.5 / 61.5, 31.5 / 61.5])
    mean, _ = answer_scale(STATISTICS, LABELS, "base")
    assert mean == pytest.approx([math.log(10.5 / 30.5), math.log(0.5 / 40.5)])
    days = TaskSpec("days", "regression")
    assert answer_scale(STATISTICS, days, "base") == answer_scale(STATISTICS, days, "zero") == ([5.0], [2.0])


def test_classes_that_weigh_alike_start_alike() -> None:
    assert answer_scale(STATISTICS, BINARY, "base", balanced=True) == ([0.0], [1.0])
    # Of classes that one of is never seen the weights are not balanced either.
    assert answer_scale(STATISTICS, KIND, "base", balanced=True) == answer_scale(STATISTICS, KIND, "base")
    # Weights are of classes, which labels have not.
    assert answer_scale(STATISTICS, LABELS, "base", balanced=True) == answer_scale(STATISTICS, LABELS, "base")
    unseen = SplitStatistics(0)
    for task in (BINARY, KIND, LABELS):
        assert (
            answer_scale(unseen, task, "base")
            == answer_scale(STATISTICS, task, "zero")
            == (
                [0.0] * task.dim,
                [1.0] * task.dim,
            )
        )


def test_a_start_is_the_best_constant() -> None:
    """No other logit has less loss over the training part, but for the half a time that each class is counted more."""
    target = torch.tensor([0.0] * 89_000 + [1.0] * 10_000)[:, None]
    table = SplitStatistics(1, {}, {"died": TaskStatistics(99_000, (89_000, 10_000), (0.1,), (0.3,))})
    (start,), _ = answer_scale(table, BINARY, "base")
    loss = TaskLoss(BINARY, None, [1.0])
    best, *others = [float(loss(torch.full_like(target, start + d), target)) for d in (0.0, -0.01, 0.01)]
    assert best < min(others)


@pytest.mark.parametrize("start", ["zero", "base"])
def test_a_head_answers_about_it(manifest: Manifest, start: str) -> None:
    model = build(manifest, model__head__start=start).eval()
    statistics, batch = manifest.statistics["default"], batch_of(manifest)
    for head in model.heads.values():
        torch.nn.init.zeros_(head.network[-1].weight)  # type: ignore[index]
        torch.nn.init.zeros_(head.network[-1].bias)  # type: ignore[index]
    for task in manifest.schema.tasks:
        expected, _ = answer_scale(statistics, task, start)
        got = model(batch).logits[task.name]
        assert got.tolist() == [pytest.approx(expected)] * len(batch)
        assert (start == "base") == (any(expected)) or task.kind == "regression"


def test_of_a_head_that_starts_at_zero_the_answers_are_those_of_its_network() -> None:
    torch.manual_seed(0)
    head = Head(BINARY, 8, 8, 0.0, [0.0], [1.0])
    x_BX = torch.randn(4, 8)
    assert not head.scaled and torch.equal(head(x_BX), head.network(x_BX))


def test_focal_loss_by_hand() -> None:
    """With p for the true class: -(1 - p)^γ log p, class weights beside it; γ = 0 is the likelihood, bit for bit."""
    logits, target = torch.tensor([[2.0], [-1.0], [0.5]]), torch.tensor([[1.0], [1.0], [0.0]])
    p = [1 / (1 + math.exp(-2)), 1 / (1 + math.exp(1)), 1 - 1 / (1 + math.exp(-0.5))]
    focal = [(1 - own) ** 1.5 * -math.log(own) for own in p]
    assert TaskLoss(BINARY, None, [1.0], 1.5).of_each(logits, target).tolist() == pytest.approx(focal, rel=1e-5)
    weighted = TaskLoss(BINARY, [1.0, 3.0], [1.0], 1.5).of_each(logits, target).tolist()
    assert weighted == pytest.approx([3 * focal[0], 3 * focal[1], focal[2]], rel=1e-5)
    logits, target = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[2.0]])
    chance = math.exp(-1) / (math.e + 1 + math.exp(-1))
    got = TaskLoss(KIND, [1.0, 1.0, 2.0], [1.0], 2.0).of_each(logits, target).tolist()
    assert got == pytest.approx([2 * (1 - chance) ** 2 * -math.log(chance)], rel=1e-5)
    for task in (BINARY, KIND, LABELS):
        logits, target = torch.randn(5, task.dim), torch.tensor([[1.0], [0.0], [1.0], [math.nan], [0.0]])
        target = target.repeat(1, 2) if task is LABELS else target
        assert torch.equal(
            TaskLoss(task, None, [1.0], 0.0)(logits, target), TaskLoss(task, None, [1.0])(logits, target)
        )
    sure = torch.tensor([[40.0]], requires_grad=True)
    TaskLoss(BINARY, None, [1.0], 0.5)(sure, torch.tensor([[1.0]])).backward()
    assert sure.grad is not None and torch.isfinite(sure.grad).all()
