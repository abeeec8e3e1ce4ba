"""The process group for control: what ranks tell each other beside a step's payload, through the CPU.

Counts, wishes, agreement and results are few bytes, but a rank may be late to them for good reasons: it commits a
checkpoint, computes a metric, waits for data. On the payload's group such a rank costs the run, because a collective
there gives up after `parallel.timeout_s`, and under NCCL that is an abort of the process. So control has a group of its
own, on gloo whatever the payload's backend is, whose patience is long; who lives is asked meanwhile
(`trainer.worker.heartbeat`).
"""

from __future__ import annotations

import resource
from datetime import timedelta

import torch.distributed as dist

LONGEST_WAIT_S = 6 * 3600.0
"""For a rank that lives and does not come."""
OTHER_FILES = 512
"""That a rank has open beside its connections: shards, loaders, libraries, the payload's own connections."""


class _Made:
    """The group that exists, and the world that it was made in: a process may leave a world and enter another."""

    world: dist.ProcessGroup | None = None
    group: dist.ProcessGroup | None = None


def control_group() -> dist.ProcessGroup | None:
    """The group of all ranks for control; None without a process group. The first call in a world is collective.

    Raises:
        OSError: this process may not open as many connections as there are ranks.
    """
    if not dist.is_initialized():
        return None
    if _Made.world is not dist.group.WORLD:
        backend = "fake" if dist.get_backend() == "fake" else "gloo"
        if backend == "gloo":
            _allow_connections(dist.get_world_size())
        _Made.group = dist.new_group(backend=backend, timeout=timedelta(seconds=LONGEST_WAIT_S))
        _Made.world = dist.group.WORLD
    return _Made.group


def is_control_group(group: dist.ProcessGroup) -> bool:
    """Whether this is the one: its patience is its own."""
    return group is _Made.group


def _allow_connections(world: int) -> None:
    """gloo connects every rank with every other one, and many systems allow a process 1,024 open files at first."""
    needed = world + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise OSError(
                f"a rank of {world} needs {needed} open files and may have {hard}: raise the hard limit of open files "
                "(ulimit -Hn) where workers start"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
