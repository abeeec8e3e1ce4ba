"""A rank that never comes: the others say so in time, with their rank and step, and not after torch's half an hour."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from tests.ranks import RankError, run_ranks
from tests.trainer.tiny import config, packed
from trainer.config.run_config import RunConfig
from trainer.jobs.job import run
from trainer.worker.collectives import PeerError, named_failures
from trainer.worker.context import SingleContext

TIMEOUT_S, HANGS_AT = 4.0, 3


class Sleeper(SingleContext):
    """One of two ranks; rank 1 hangs in step HANGS_AT."""

    def __init__(self, rank: int, world: int) -> None:
        super().__init__("cpu")
        self.rank, self.world, self.local_rank, self.asked = rank, world, rank, 0

    def should_stop(self) -> bool:
        self.asked += 1
        if self.rank == 1 and self.asked == HANGS_AT:
            time.sleep(10 * TIMEOUT_S)
        return False


def _hang(rank: int, world: int, tree: dict[str, Any]) -> None:
    start = time.monotonic()
    try:
        run(RunConfig.model_validate(tree), Sleeper(rank, world))
    finally:
        assert time.monotonic() - start < 5 * TIMEOUT_S


def test_a_hang_names_rank_and_step_within_the_timeout(tmp_path):
    parallel = {"parallel__workers": 2, "parallel__expert_parallel": 2, "parallel__timeout_s": TIMEOUT_S}
    tree = config(packed(tmp_path / "data"), tmp_path, **parallel)
    with pytest.raises(RankError, match=rf"rank 0 waited more than {TIMEOUT_S:g} s at step {HANGS_AT}"):
        run_ranks(_hang, 2, tree.model_dump(mode="json"))


def _uneven(rank: int, world: int) -> list[float]:
    """Rank 0 alone enters an exchange of the expert-parallel group."""
    from parallel import Engine, MoEConfig, MoELayer, ParallelConfig, create_mesh, init_distributed

    parallel = ParallelConfig(workers=2, expert_parallel=2, timeout_s=2.0)
    moe = MoEConfig(experts=2, top_k=1, hidden=8)
    init_distributed("cpu", parallel.timeout_s)
    mesh = create_mesh(parallel, moe)
    Engine(MoELayer(8, moe, 1, 0, 0, mesh.dispatcher()), mesh, lr=0.1)
    waited = []
    if rank == 0:
        start = time.monotonic()
        with pytest.raises(PeerError, match="rank 0 waited more than 2 s at step 7"), named_failures(0, lambda: 7, 2.0):
            torch.distributed.all_reduce(torch.zeros(1), group=mesh.ep_group)
        waited.append(time.monotonic() - start)
    return waited


def test_groups_that_deepspeed_makes_keep_to_the_timeout_as_well():
    assert run_ranks(_uneven, 2)[0][0] < 20


def test_other_errors_pass_as_they_are():
    with pytest.raises(RuntimeError, match="shape") as caught, named_failures(0, lambda: 1, 1.0):
        raise RuntimeError("shape mismatch")
    assert not isinstance(caught.value, PeerError)
