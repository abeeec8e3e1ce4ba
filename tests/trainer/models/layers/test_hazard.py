"""The likelihood of times, of which some are censored, against what it says in words."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from data_shards import TaskSpec
from data_shards.records.statistics import SplitStatistics, TaskStatistics
from data_shards.records.survival import count_intervals
from tests.gpu_branch import Watch, gpu_branch
from trainer.metrics.censored import kaplan_meier
from trainer.metrics.survival import survival_at_edges
from trainer.models.layers.hazard import HazardLoss
from trainer.models.layers.heads import Head, target_scale

TASK = TaskSpec("t", "survival", edges=(1.0, 2.0, 4.0))
HAZARD = (0.2, 0.5, 0.25)
LOGITS = torch.tensor([[math.log(h / (1 - h)) for h in HAZARD]])
nan = math.nan


def loss_of(time: float, seen: float, task: TaskSpec = TASK, logits: torch.Tensor = LOGITS) -> float:
    return float(HazardLoss(task)(logits, torch.tensor([[time, seen]])))


@pytest.mark.parametrize(
    ("time", "seen", "chance"),
    [
        (0.0, 1, 0.2),  # the first interval begins with 0
        (0.7, 1, 0.2),
        (1.0, 1, 0.2),  # an edge lies in the interval that it ends
        (1.0001, 1, 0.8 * 0.5),
        (2.5, 1, 0.8 * 0.5 * 0.25),
        (4.0, 1, 0.8 * 0.5 * 0.25),
        (4.5, 1, 0.8 * 0.5 * 0.75),  # beyond the last edge it came through all of them
        (0.0, 0, 1.0),
        (0.5, 0, 0.8**0.5),  # half of an interval counts half
        (1.0, 0, 0.8),
        (3.0, 0, 0.8 * 0.5 * 0.75**0.5),
        (4.0, 0, 0.8 * 0.5 * 0.75),
        (99.0, 0, 0.8 * 0.5 * 0.75),
        (nan, nan, 1.0),
    ],
)
def test_a_record_costs_what_is_known_of_it(time: float, seen: float, chance: float) -> None:
    assert loss_of(time, seen) == pytest.approx(-math.log(chance), abs=1e-6)


def test_what_can_happen_has_chance_one() -> None:
    total = sum(math.exp(-loss_of(time, 1)) for time in (1, 2, 4, 5))
    assert total == pytest.approx(1, abs=1e-6)


def test_edges_are_compared_as_times_are_kept() -> None:
    """0.1 in float32 lies above 0.1; it lies in the first interval all the same."""
    task = TaskSpec("t", "survival", edges=(0.1, 0.3))
    assert float(torch.tensor(0.1)) > 0.1
    assert loss_of(0.1, 1, task, torch.tensor([[0.0, 3.0]])) == pytest.approx(math.log(2), abs=1e-6)


def test_records_without_a_label_have_neither_loss_nor_gradient() -> None:
    loss, logits = HazardLoss(TASK), torch.zeros(4, 3, requires_grad=True)
    target = torch.tensor([[1.5, 1.0], [nan, nan], [nan, 1.0], [1.5, nan]])
    assert loss.labelled(target).tolist() == [True, False, False, False]
    value = loss(logits, target)
    value.backward()
    assert float(value.detach()) == pytest.approx(2 * math.log(2))
    assert logits.grad is not None and logits.grad.tolist() == [[0.5, -0.5, 0.0]] + [[0.0] * 3] * 3


@pytest.mark.parametrize("size", [1e2, 1e4, 1e30])
def test_no_logit_is_too_large(size: float) -> None:
    """The head's logits are what bf16 made of them; the loss is in fp32, and neither it nor its slope overflows."""
    logits = torch.tensor([[size, -size, size], [-size, size, -size]]).bfloat16().requires_grad_()
    value = HazardLoss(TASK)(logits, torch.tensor([[1.5, 1.0], [1.5, 1.0]]))
    value.backward()
    assert value.dtype == torch.float32
    assert float(value.detach()) == pytest.approx(2 * float(logits.detach()[0, 0]), rel=1e-6)
    assert logits.grad is not None and logits.grad.tolist() == [[1.0, -1.0, 0.0], [0.0, 0.0, 0.0]]


def test_sums_in_fp32_of_bf16_logits_are_those_of_doubles() -> None:
    rng = np.random.default_rng(0)
    task = TaskSpec("t", "survival", edges=tuple(np.cumsum(rng.random(20) + 0.1).tolist()))
    time, seen = rng.random(500) * 15, rng.integers(0, 2, 500)
    logits = torch.tensor(rng.normal(size=(500, 20)) * 6).bfloat16()  # as a head of a bf16 run rounds them
    end = np.array(task.edges)
    begin = np.concatenate([[0.0], end[:-1]])
    expected = 0.0
    for t, d, row in zip(time, seen, logits.double().numpy(), strict=True):
        share = np.clip((t - begin) / (end - begin), 0, 1)
        here = (t > begin) & (t <= end) if d else np.zeros(20, bool)
        expected += (np.logaddexp(0, row) * np.where(here, 0, share) + np.logaddexp(0, -row) * here).sum()
    got = HazardLoss(task)(logits, torch.tensor(np.stack([time, seen], 1)).float())
    assert float(got) == pytest.approx(expected, rel=1e-6)


def test_a_gpu_is_asked_nothing_and_nothing_is_added_by_index() -> None:
    loss = HazardLoss(TASK)
    logits = torch.randn(64, 3).bfloat16().requires_grad_()
    target = torch.stack([torch.rand(64) * 5, (torch.rand(64) < 0.5).float()], dim=1)
    target[::5] = nan
    with gpu_branch(), Watch() as watch, watch.phase("loss"):
        loss(logits, target).backward()
    assert watch.kernels["loss"] > 10 and watch.found_waits == [] and watch.scatters == []


def best_logits(task: TaskSpec, target: torch.Tensor) -> torch.Tensor:
    logits = torch.zeros(1, task.dim, dtype=torch.float64, requires_grad=True)
    loss = HazardLoss(task)
    search = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def cost() -> torch.Tensor:
        search.zero_grad()
        value = loss(logits.expand(len(target), -1), target) / len(target)
        value.backward()
        return value

    search.step(cost)
    return logits.detach()


def test_the_best_hazards_of_times_on_edges_are_those_of_kaplan_and_meier() -> None:
    rng = np.random.default_rng(1)
    time, seen = rng.integers(1, 7, 300).astype(np.float32), rng.random(300) < 0.6
    task = TaskSpec("t", "survival", edges=tuple(float(edge) for edge in range(1, 7)))
    target = torch.from_numpy(np.stack([time, seen.astype(np.float32)], 1))
    found = survival_at_edges(best_logits(task, target))[0].numpy()
    assert found == pytest.approx(kaplan_meier(time.astype(float), seen).at(np.arange(1.0, 7.0)), abs=1e-4)


def test_the_best_hazard_within_an_interval_is_the_actuarial_one() -> None:
    """Censored in the middle of an interval: at risk for half of it. 10 / (10 + 20 + 30 / 2) of those who enter."""
    task = TaskSpec("t", "survival", edges=(1.0, 2.0))
    rows = [(0.3, 1)] * 10 + [(0.5, 0)] * 30 + [(1.5, 1)] * 20
    found = best_logits(task, torch.tensor(rows, dtype=torch.float32)).sigmoid()
    assert float(found[0, 0]) == pytest.approx(10 / 45, abs=1e-4)


def test_a_head_begins_with_the_life_table() -> None:
    rows = np.array([(0.3, 1)] * 10 + [(0.5, 0)] * 30 + [(1.5, 1)] * 20 + [(2.5, 0)] * 7, np.float32)
    table = TaskStatistics(67, tuple(count_intervals(TASK.edges, rows).tolist()), (0.0, 0.0), (1.0, 1.0))
    mean, std = target_scale(SplitStatistics(67, {}, {"t": table}), TASK)
    assert torch.tensor(mean).sigmoid().tolist() == pytest.approx([10.5 / 53, 20.5 / 28, 0.5 / 4.5])
    head = Head(TASK, 4, 8, 0.0, mean, std)
    for parameter in head.network.parameters():
        torch.nn.init.zeros_(parameter)
    assert head(torch.randn(2, 4)).tolist() == [pytest.approx(mean)] * 2
    assert target_scale(SplitStatistics(0), TASK) == ([0.0] * 3, [1.0] * 3)
