"""The mean of what models say, against its definition in chances."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from data_shards import TaskSpec
from trainer.ensemble.choose import DRAWS, GRID, choose_weight
from trainer.ensemble.combine import combined, mean_logits
from trainer.ensemble.run import member_weights
from trainer.metrics.bootstrap.intervals import draw_weights
from trainer.metrics.predictions import Predictions
from trainer.metrics.scores import task_metrics
from trainer.metrics.survival import survival_at_edges

WEIGHTS = (0.5, 0.3, 0.2)
TASKS = {
    "binary": (TaskSpec("a", "binary"), 1, torch.sigmoid),
    "multilabel": (TaskSpec("a", "multilabel", classes=("x", "y", "z")), 3, torch.sigmoid),
    "multiclass": (TaskSpec("a", "multiclass", classes=("x", "y", "z")), 3, lambda x: x.softmax(dim=1)),
    "regression": (TaskSpec("a", "regression"), 2, lambda x: x),
    "survival": (TaskSpec("a", "survival", edges=(1.0, 2.0, 5.0, 9.0), unit="days"), 4, survival_at_edges),
}


@pytest.mark.parametrize("kind", TASKS)
def test_the_mean_is_of_chances(kind: str) -> None:
    task, width, chances = TASKS[kind]
    members = [3 * torch.randn(7, width, generator=torch.Generator().manual_seed(n)) for n in range(3)]
    found = chances(mean_logits(task, members, WEIGHTS).double())
    expected = sum(weight * chances(own.double()) for weight, own in zip(WEIGHTS, members, strict=True))
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=1e-6)
    assert not torch.allclose(found, chances(sum(w * x for w, x in zip(WEIGHTS, members, strict=True)).double())) or (
        kind == "regression"
    ), "a mean of logits is another thing"


def test_chances_near_nothing_are_not_cut() -> None:
    task = TASKS["binary"][0]
    low, high = (mean_logits(task, [torch.tensor([[x]]), torch.tensor([[x - 10]])], (0.5, 0.5)) for x in (-90.0, 90.0))
    # Half of exp(-90), and, of the other, log(2 / (1 + exp(10)) ...): against 200 digits.
    assert float(low) == pytest.approx(-90 - math.log(2) + math.log1p(math.exp(-10)), rel=1e-6)
    assert float(high) == pytest.approx(80 + math.log(2) - math.log1p(math.exp(-10)), rel=1e-6)


def test_one_member_that_counts_alone_is_itself() -> None:
    members = [torch.randn(5, 1), torch.randn(5, 1)]
    assert torch.equal(mean_logits(TASKS["binary"][0], members, (0.0, 1.0)), members[1])


def _said(logits: torch.Tensor, target: torch.Tensor, first: int = 0) -> Predictions:
    return Predictions(torch.arange(first, first + len(logits)), {"a": logits[:, None]}, {"a": target[:, None]})


def test_members_that_read_other_samples_are_refused() -> None:
    task, x = TASKS["binary"][0], torch.randn(4)
    with pytest.raises(ValueError, match="members 1 and 2 did not read the same samples: 4 and 4"):
        combined([task], [_said(x, x > 0), _said(x, x > 0, first=1)], {"a": (0.5, 0.5)})


def test_of_weights_that_are_not_told_from_the_best_the_nearest_to_one_half_is_taken() -> None:
    task, draw = TASKS["binary"][0], torch.Generator().manual_seed(0)
    truth = (torch.rand(400, generator=draw) < 0.4).float()
    good, noise = 2 * truth + torch.randn(400, generator=draw), torch.randn(400, generator=draw)
    choice = choose_weight(task, [_said(noise, truth), _said(noise, truth)], _said(good, truth))
    assert choice.metric == "val/auroc" and choice.scores.keys() == set(GRID)
    equal = noise[:, None]

    def auroc(weight: float, rows: torch.Tensor) -> float:
        logits = mean_logits(task, [equal, good[:, None]], (1 - weight, weight))
        return task_metrics(task, logits[rows], truth[rows, None])["auroc"]

    everyone = torch.arange(400)
    for weight in (0.0, 0.35, 1.0):
        assert choice.scores[weight] == pytest.approx(auroc(weight, everyone), abs=1e-12)
    assert choice.scores[choice.best] == max(choice.scores.values()) and choice.weight < choice.best
    # The same by records drawn one by one: the weight is near, the next one towards one half is not.
    drawn = [
        torch.from_numpy(np.repeat(np.arange(400), times.astype(int))) for times in draw_weights(400, DRAWS)[1:]
    ]  # fmt: skip
    for weight, near in ((choice.weight, True), (round(choice.weight - 0.05, 2), False)):
        apart = [auroc(choice.best, rows) - auroc(weight, rows) for rows in drawn]
        assert (auroc(choice.best, everyone) - auroc(weight, everyone) <= np.std(apart)) == near
    same = choose_weight(task, [_said(good, truth)], _said(good, truth))
    assert same.weight == same.best == 0.5


@pytest.mark.parametrize("kind", TASKS)
def test_every_kind_of_task_is_weighed_by_its_main_metric(kind: str) -> None:
    task, width, _ = TASKS[kind]
    draw = torch.Generator().manual_seed(5)
    own, other = (torch.randn(60, width, generator=draw) for _ in range(2))
    target = {
        "binary": lambda: (torch.rand(60, 1, generator=draw) < 0.5).float(),
        "multilabel": lambda: (torch.rand(60, 3, generator=draw) < 0.5).float(),
        "multiclass": lambda: torch.randint(0, 3, (60, 1), generator=draw).float(),
        "regression": lambda: torch.randn(60, 2, generator=draw),
        "survival": lambda: torch.stack([10 * torch.rand(60, generator=draw), torch.arange(60) % 2], 1),
    }[kind]()
    said = [Predictions(torch.arange(60), {"a": logits}, {"a": target}) for logits in (own, other)]
    choice = choose_weight(task, said[:1], said[1])
    name = {"regression": "r2", "multiclass": "accuracy", "survival": "concordance"}.get(kind, "auroc")
    assert choice.metric == f"val/{name}"
    for weight in (0.0, 0.4, 1.0):
        metrics = task_metrics(task, mean_logits(task, [own, other], (1 - weight, weight)), target)
        assert choice.scores[weight] == pytest.approx(metrics[name], rel=1e-9)


def test_moments_of_a_record_are_drawn_together() -> None:
    """Ten of each say no more than one: the weight is the same, where ten times the records would tell more apart."""
    task, draw = TASKS["binary"][0], torch.Generator().manual_seed(8)
    truth = (torch.rand(300, generator=draw) < 0.4).float()
    good, fair = 2 * truth + torch.randn(300, generator=draw), truth + torch.randn(300, generator=draw)

    def many(logits: torch.Tensor, index: torch.Tensor) -> Predictions:
        moment = torch.arange(10.0).repeat(300)
        target = {"a": truth.repeat_interleave(10)[:, None]}
        return Predictions(index, {"a": logits.repeat_interleave(10)[:, None]}, target, moment_B=moment)

    one = choose_weight(task, [_said(good, truth)], _said(fair, truth))
    together = torch.arange(300).repeat_interleave(10)
    found = choose_weight(task, [many(good, together)], many(fair, together))
    apart = choose_weight(task, [many(good, torch.arange(3000))], many(fair, torch.arange(3000)))
    assert found.weight == one.weight > apart.weight and found.best == one.best == apart.best


def test_what_the_blend_leaves_is_shared_by_the_runs() -> None:
    task, draw = TASKS["binary"][0], torch.Generator().manual_seed(1)
    truth = (torch.rand(400, generator=draw) < 0.4).float()
    runs = [_said(2 * truth + torch.randn(400, generator=draw), truth) for _ in range(3)]
    weights, choices = member_weights([task], runs, _said(truth + torch.randn(400, generator=draw), truth))
    blend = choices["a"].weight
    assert blend < 0.4, "the second opinion is the worse one, and half of everything would hide a mistake"
    assert weights["a"] == pytest.approx([(1 - blend) / 3] * 3 + [blend])
    assert member_weights([task], runs, None) == ({"a": pytest.approx([1 / 3] * 3)}, {})
