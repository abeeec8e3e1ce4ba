"""After a step whose gradient is not finite all is as if it had not been: also what the model remembers itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from parallel import Engine, MoEConfig, ParallelConfig, create_mesh, init_distributed
from tests.parallel.runs import Case, make_engine, train_steps
from tests.parallel.state import read_state
from tests.ranks import run_ranks

pytestmark = pytest.mark.together


def _with_and_without(rank: int, world: int, cases: list[Case]) -> list[Any]:
    """Losses, weights and t of six steps, without and with a refused one after the third."""
    init_distributed("cpu", 60)
    found = []
    for case in cases:
        ways = []
        for refused in (False, True):
            engine = make_engine(rank, world, case)
            losses, norms = train_steps(engine, case, rank, world, 0, 3)
            if refused:
                for _ in range(case.accumulation):
                    factor = float("nan") if rank == 1 else 1.0
                    engine.backward(sum(p.float().sum() for p in engine.module.parameters()) * factor)  # type: ignore[arg-type]
                assert not engine.step() and engine.grad_norm() == float("inf")
            after = engine.optimizer_step
            rest = train_steps(engine, case, rank, world, 3, 6)
            ways.append((losses + rest[0], norms + rest[1], after, engine.optimizer_step, read_state(engine)))
            engine.close()
        found.append(ways)
    return found


def test_a_refused_step_changes_no_bit_of_what_follows() -> None:
    cases = [
        Case(2, stage, precision=precision, accumulation=accumulation)
        for stage in (1, 2)
        for precision in ("fp32", "bf16")
        for accumulation in (1, 2)
    ]
    for rank in run_ranks(_with_and_without, 2, cases):
        for (losses, norms, t, last, state), (losses_2, norms_2, t_2, last_2, state_2) in rank:
            assert (losses, norms, t, last) == (losses_2, norms_2, t_2, last_2) and (t, last) == (3, 6)
            for a, b in zip(state, state_2, strict=True):
                for part in ("master", "exp_avg", "exp_avg_sq"):
                    np.testing.assert_array_equal(a[part], b[part])


class Remembering(nn.Module):
    """A layer with a running mean of its input, as whole and in place, and a table of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1)
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("seen", torch.zeros(1))
        self.register_buffer("table", torch.arange(3.0), persistent=False)
        self.mean: Tensor
        self.seen: Tensor

    def forward(self, x: Tensor) -> Tensor:
        self.mean = 0.5 * self.mean + 0.5 * x.detach().mean(0)
        self.seen += 1
        return self.layer(x)


def test_running_means_forget_a_refused_step() -> None:
    run_ranks(_running_means, 1)


def _running_means(rank: int, world: int) -> None:
    init_distributed("cpu", 60)
    engine = Engine(Remembering(), create_mesh(ParallelConfig(), MoEConfig(experts=2, top_k=1)), lr=0.1, accumulation=2)

    def step(value: float) -> bool:
        for _ in range(2):
            engine.backward(engine(torch.full((2, 3), value)).sum())
        return engine.step()

    assert step(4.0)
    expected = {"mean": [3.0] * 3, "seen": [2.0]}
    assert {name: buffer.tolist() for name, buffer in engine.buffers().items()} == expected
    assert not step(float("nan"))
    assert {name: buffer.tolist() for name, buffer in engine.buffers().items()} == expected
    # An evaluation between steps is no part of one.
    engine.eval()
    with torch.no_grad():
        engine(torch.zeros(2, 3))
    engine.train()
    assert engine.buffers()["seen"].item() == 3
    assert not step(float("inf"))
    assert engine.buffers()["seen"].item() == 3 and engine.buffers()["mean"].tolist() == [1.5] * 3
