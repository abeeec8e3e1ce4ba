"""Which rank is on which node, and holds which experts: read from the ranks themselves, checked, and said.

A layer's all-to-all runs inside an expert-parallel group, so a group belongs inside a node, where links are many times
faster than between nodes. Launchers number ranks node by node and device by device; groups of neighbouring ranks then
stay inside nodes if the degree divides the number of ranks on each node. That is looked at here, not believed.
"""

from __future__ import annotations

import itertools
import json
import math
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from parallel.config import ParallelConfig
from parallel.mesh import MeshSpec, divisors, largest_legal

if TYPE_CHECKING:
    from trainer.worker.context import Context

LONGEST = 192  # bytes that describe a seat
NODES_SHOWN = 16


class Seat(NamedTuple):
    """A rank's place."""

    node: str
    device: str


def gather_seats(context: Context) -> list[Seat]:
    """Where every rank is, in the order of the ranks. Collective."""
    import torch  # late: plans and cluster files are checked without it

    from trainer.worker.collectives import sum_over_ranks

    own = json.dumps([socket.gethostname()[-100:], str(context.device)]).encode()
    table = torch.zeros(context.world, LONGEST, dtype=torch.uint8)
    table[context.rank, : len(own)] = torch.frombuffer(bytearray(own), dtype=torch.uint8)
    return [Seat(*json.loads(bytes(text.numpy()).rstrip(b"\0"))) for text in sum_over_ranks(table)]


def planned_seats(workers: int, per_node: int, kind: str) -> list[Seat]:
    """Seats of `workers` ranks on nodes with `per_node` devices, for a cluster that nobody has started yet."""
    return [
        Seat(f"node{rank // per_node}", f"cuda:{rank % per_node}" if kind == "cuda" else kind)
        for rank in range(workers)
    ]


def node_sizes(seats: Sequence[Seat]) -> list[int]:
    """Ranks on each node, in the order of the ranks; a node whose ranks are not neighbours counts several times."""
    return [len(list(group)) for _, group in itertools.groupby(seats, lambda seat: seat.node)]


def fitting_degree(parallel: ParallelConfig, experts: int, seats: Sequence[Seat]) -> int:
    """The expert-parallel degree for these seats: as asked for if all workers are there, else the largest legal one.

    Raises:
        ValueError: groups of the degree asked for would reach across nodes.
    """
    world, wanted = len(seats), parallel.expert_parallel
    sizes = node_sizes(seats)
    within = world if parallel.experts_across_nodes else math.gcd(*sizes)
    if world != parallel.workers:
        return largest_legal(within, wanted, experts)
    if within % wanted:
        raise ValueError(crossing(wanted, sizes))
    return wanted


def crossing(degree: int, sizes: Sequence[int]) -> str:
    """The sentence for groups that reach across nodes of these sizes."""
    alike = len(set(sizes)) == 1
    nodes = f"nodes of {sizes[0]} workers" if alike else f"nodes of {', '.join(map(str, sizes[:8]))} workers"
    choose = f"choose one of {divisors(math.gcd(*sizes))}" + ("" if alike else ", use nodes of one size")
    return (
        f"expert-parallel groups of parallel.expert_parallel={degree} ranks would reach across {nodes}: {choose}, or "
        "set parallel.experts_across_nodes=true if the network is as fast as the links inside a node"
    )


def layout_lines(seats: Sequence[Seat], expert_parallel: int, experts: int) -> list[str]:
    """One line a node: its ranks, their devices, and the experts that they hold."""
    mesh = MeshSpec(len(seats), expert_parallel, experts, 1)
    lines, rank = [], 0
    for node, group in itertools.groupby(seats, lambda seat: seat.node):
        parts = []
        for seat in group:
            parts.append(f"rank {rank} {seat.device} {_span(mesh.experts_of(rank))}")
            rank += 1
        lines.append(f"{node}: {', '.join(parts)}")
    left = len(lines) - NODES_SHOWN
    return lines if left <= 0 else [*lines[:NODES_SHOWN], f"and {left} more nodes in the same way"]


def _span(experts: range) -> str:
    if len(experts) == 1:
        return f"expert {experts[0]}"
    return f"experts {experts[0]}-{experts[-1]}"
