"""The group for control: all ranks, on the CPU whatever the payload's backend, with a patience of its own."""

from __future__ import annotations

import resource
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from parallel import Engine, MoEConfig, MoELayer, ParallelConfig, create_mesh, init_distributed
from parallel.control import LONGEST_WAIT_S, _allow_connections, control_group
from tests.ranks import run_ranks

TIMEOUT_S = 2.0


def _late(rank: int, world: int) -> tuple[bool, float, list[float]]:
    """Rank 1 is later to control than the payload's patience; then the payload still works."""
    parallel, moe = ParallelConfig(workers=2, timeout_s=TIMEOUT_S), MoEConfig(experts=2, top_k=1, hidden=8)
    init_distributed("cpu", parallel.timeout_s)
    early = control_group()
    mesh = create_mesh(parallel, moe)
    Engine(MoELayer(8, moe, 1, 0, 0, mesh.dispatcher()), mesh, lr=0.1)
    assert mesh.control_group is early is control_group() is not None
    assert dist.get_process_group_ranks(early) == [0, 1]
    time.sleep(2 * TIMEOUT_S * rank)
    values = torch.tensor([1.0 + rank, 3.0])
    dist.all_reduce(values, group=mesh.control_group)
    payload = early._get_backend(torch.device("cpu")).options._timeout
    return early is not dist.group.WORLD, payload.total_seconds(), values.tolist()


def test_a_rank_may_be_later_to_control_than_to_the_payload():
    assert run_ranks(_late, 2) == [(True, LONGEST_WAIT_S, [3.0, 6.0])] * 2


def _fake(rank: int, world: int) -> tuple[str, int]:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.destroy_process_group()
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=1024, timeout=timedelta(seconds=9))
    group = control_group()
    assert group is not None
    return dist.get_backend(group), dist.get_world_size(group)


def test_a_world_that_only_pretends_has_control_that_pretends():
    assert run_ranks(_fake, 1) == [("fake", 1024)]


def test_connections_to_all_ranks_are_allowed_or_refused_in_a_sentence(monkeypatch):
    limits = [(1024, 4096)]
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda kind, pair: limits.append(pair))
    _allow_connections(256)
    assert limits == [(1024, 4096)]
    _allow_connections(1024)
    assert limits[-1] == (1536, 4096)
    with pytest.raises(OSError, match="a rank of 8192 needs 8704 open files and may have 4096: raise the hard limit"):
        _allow_connections(8192)
