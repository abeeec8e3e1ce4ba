"""What each node is busy with, as all ranks agree on it; and where a run comes from."""

from __future__ import annotations

import re
import sys

import psutil
import pytest
import torch

from tests.ranks import run_ranks
from trainer.training.node_usage import HOST, NodeUsage
from trainer.worker.provenance import environment_lock, source_tags


def _read(rank: int, world: int) -> dict[str, float]:
    """Two ranks a node, as launchers number them."""
    return NodeUsage(rank, world, rank % 2, torch.device("cpu")).read()


def test_every_rank_reads_the_same_of_every_node() -> None:
    readings = run_ranks(_read, 4)
    assert all(reading == readings[0] for reading in readings)
    assert set(readings[0]) == {f"system/node{node}/{name}" for node in (0, 1) for name in HOST}
    used = psutil.virtual_memory().used / 2**30
    for node in (0, 1):
        assert readings[0][f"system/node{node}/system_memory_usage_gib"] == pytest.approx(used, rel=0.5)
        assert 0 <= readings[0][f"system/node{node}/cpu_utilization_percentage"] <= 100


def test_rates_are_per_second_since_the_last_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = NodeUsage(0, 1, 0, torch.device("cpu"))
    usage._before = (10.0, 0.0, 0.0, 0.0)
    monkeypatch.setattr(usage, "_counters", lambda: (14.0, 8 * 2**20, 4 * 2**20, 2**20))
    reading = usage.read()
    assert reading["system/node0/network_received_mib_s"] == 2.0
    assert reading["system/node0/network_sent_mib_s"] == 1.0
    assert reading["system/node0/disk_read_mib_s"] == 0.25


def test_a_run_knows_its_command_and_its_packages() -> None:
    tags = source_tags()
    assert tags["command"].startswith("python") and tags["command"] == tags["mlflow.source.name"]
    assert re.fullmatch(r"[0-9a-f]{40}", tags["git.commit"]) and tags["git.dirty"] in ("true", "false")
    lock = environment_lock()
    assert f"torch=={torch.__version__}" in lock and lock.startswith(f"# Python {sys.version.split()[0]}")
    names = [line.split("==")[0].lower() for line in lock.splitlines()[1:]]
    assert names == sorted(names) and len(names) > 20
