"""Which rank is on which node and holds which experts.

Every layer's all-to-all runs inside an expert-parallel group, so a group belongs inside a node, where links are ten to
fifty times faster than between nodes. Ranks are therefore numbered node by node, and GPU by GPU within a node; groups
of neighbouring ranks then stay inside nodes if the group's size divides the number of workers on each node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from parallel import largest_legal
from parallel.mesh import MeshSpec, divisors
from trainer.config import RunConfig


def node_size_problem(config: RunConfig, size: int) -> str | None:
    """Why expert-parallel groups would cross the border of nodes with `size` workers each; None if they do not."""
    degree = config.parallel.expert_parallel
    if size % degree == 0 or config.cluster.experts_across_nodes:
        return None
    return (
        f"parallel.expert_parallel={degree} does not divide the {size} workers of a node, so expert-parallel groups "
        f"would reach across nodes: choose one of {divisors(size)}, or cluster.experts_across_nodes=true if the "
        "network is as fast as the links inside a node"
    )


@dataclass(frozen=True)
class Seat:
    """A worker's place: its node, and its device there."""

    rank: int
    node: str
    device: str


def layout_lines(seats: Sequence[Seat], expert_parallel: int, experts: int) -> list[str]:
    """One line a node: its ranks and the experts that they hold, for a log."""
    mesh = MeshSpec(len(seats), expert_parallel, experts, 1)
    lines = []
    for node in dict.fromkeys(seat.node for seat in seats):
        held = [f"rank {seat.rank} {span(mesh.experts_of(seat.rank))}" for seat in seats if seat.node == node]
        lines.append(f"{node}: {', '.join(held)}")
    return lines


def span(experts: range) -> str:
    """`experts 0-3` for range(4)."""
    if len(experts) == 1:
        return f"expert {experts[0]}"
    return f"experts {experts[0]}-{experts[-1]}"


def planned_seats(workers: int, per_node: int) -> list[Seat]:
    """Where `workers` ranks sit on nodes with `per_node` places each."""
    return [Seat(rank, f"node {rank // per_node}", str(rank % per_node)) for rank in range(workers)]


def legal_degree(config: RunConfig, world: int) -> int:
    """The expert-parallel degree that a run takes on this many workers."""
    return largest_legal(world, config.parallel.expert_parallel, config.model.moe.experts)
