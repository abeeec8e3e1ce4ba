"""Sums and means of a line of the log, on made-up steps."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from data_shards import Batch
from tests.gpu_branch import Watch
from trainer.training.meter import Meter, routing_metrics, step_line


class NoCounter:
    features = ("records",)

    def measure(self, batch: Batch) -> torch.Tensor:
        return torch.zeros(1, dtype=torch.float64)

    def step_flops(self, features_X: torch.Tensor) -> float:
        return 0.0


def meter() -> Meter:
    return Meter(torch.device("cpu"), NoCounter(), 1, 1.0, {"a": 2.0, "b": 1.0})


def part(**values: float) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value) for name, value in values.items()}


def test_a_part_is_a_mean_over_the_steps_that_had_it() -> None:
    own = meter()
    own.add_losses(part(a=1.0, balance=0.25, loss=2.25))
    own.end_step(4)
    own.add_losses(part(balance=0.75))
    own.end_step(4)
    own.add_losses(part(a=1.5, balance=0.0))  # two micro-batches of one step
    own.add_losses(part(a=1.5, b=1.0, balance=0.5, loss=7.5))
    own.end_step(3)
    metrics, counts, tokens = own.read()
    assert metrics["train/a"] == 2.0 and metrics["train/b"] == 1.0 and metrics["train/balance"] == 0.5
    assert metrics["train/loss"] == 2.0 * 2.0 + 1.0 + 0.5
    assert metrics["perf/samples_per_s"] * metrics["perf/step_s"] == pytest.approx(11 / 3)
    assert "perf/tokens_per_s" not in metrics and counts == [] and tokens == 0


def test_where_every_step_had_everything_the_loss_is_the_mean_of_losses() -> None:
    own = meter()
    for value in (0.1, 0.2, 0.4):
        own.add_losses(part(a=value, loss=value * 3))
        own.end_step(1)
    sums = (torch.tensor(0.1 * 3) + torch.tensor(0.2 * 3) + torch.tensor(0.4 * 3)).double()
    assert own.read()[0]["train/loss"] == float(sums / 3)


def test_nothing_has_no_figure() -> None:
    own = meter()
    own.end_step(2)
    metrics, *_ = own.read()
    assert not any(name.startswith("train/") for name in metrics) and metrics["perf/samples_per_s"] > 0
    line = step_line(3, 9, 0, {**metrics, "train/lr": 0.1, "train/grad_norm": 1.0})
    assert "loss - ()" in line and "tokens/s" not in line and "dead" not in line


def test_layers_without_tokens_and_single_modalities() -> None:
    nothing, one = torch.zeros(2, 3), torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    assert routing_metrics([]) == routing_metrics([nothing]) == {}
    found = routing_metrics([nothing, one])
    assert found.keys() == {"moe/load_ratio", "moe/dead_share", "moe/evenness"}
    assert found["moe/load_ratio"] == pytest.approx(2.0) and found["moe/dead_share"] == pytest.approx(1 / 3)
    apart = routing_metrics([torch.tensor([[2.0, 0.0], [0.0, 2.0]])])
    assert apart["moe/specialisation"] == pytest.approx(1.0)


def test_losses_of_a_refused_step_are_in_no_mean() -> None:
    own = meter()
    own.add_losses(part(a=1.0, loss=1.0))
    own.end_step(2)
    own.add_losses(part(a=float("nan"), b=float("inf"), loss=float("nan")))
    own.end_step(2, accepted=False)
    own.add_losses(part(a=2.0, loss=2.0))
    own.end_step(2)
    metrics, *_ = own.read()
    assert metrics["train/a"] == 1.5 and metrics["train/loss"] == 1.5 and "train/b" not in metrics
    assert metrics["perf/samples_per_s"] * metrics["perf/step_s"] == pytest.approx(2.0), "its records were read"


def test_what_is_on_the_device_is_read_in_one_copy() -> None:
    own = meter()
    counts = [torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([[5.0, 0.0], [1.0, 2**24 + 2.0]])]
    seen = torch.tensor([3.0, 2**24 + 5.0])
    stats: Any = [SimpleNamespace(count_ME=count, tokens_M=seen) for count in counts]
    own.add_routing(stats)
    own.add_losses(part(a=1.0, b=3.0))
    own.end_step(2)
    with Watch() as watch:
        metrics, got, tokens = own.read()
    # What follows the copy is on the host.
    assert [found.name for found in watch.found_waits] == ["cpu"], watch.found_waits
    assert tokens == int(seen.sum()) and metrics["train/a"] == 1.0 and metrics["train/b"] == 3.0
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(got, counts, strict=True))
