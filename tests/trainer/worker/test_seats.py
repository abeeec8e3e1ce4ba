"""Ranks, nodes and experts: groups that stay inside nodes, and the sentence when they would not."""

from __future__ import annotations

import pytest

from parallel.config import ParallelConfig
from tests.ranks import run_ranks
from trainer.worker.context import TorchrunContext
from trainer.worker.seats import Seat, fitting_degree, gather_seats, layout_lines, node_sizes, planned_seats


def on(*nodes: str) -> list[Seat]:
    """A seat on each of these nodes."""
    return [Seat(node, "cpu") for node in nodes]


def test_every_node_gets_a_line_with_its_ranks_and_their_experts():
    assert layout_lines(planned_seats(4, 2, "cuda"), 2, 6) == [
        "node0: rank 0 cuda:0 experts 0-2, rank 1 cuda:1 experts 3-5",
        "node1: rank 2 cuda:0 experts 0-2, rank 3 cuda:1 experts 3-5",
    ]
    assert layout_lines(planned_seats(2, 8, "cpu"), 2, 2) == ["node0: rank 0 cpu expert 0, rank 1 cpu expert 1"]
    lines = layout_lines(planned_seats(800, 8, "cuda"), 8, 64)
    assert len(lines) == 17 and lines[-1] == "and 84 more nodes in the same way"


@pytest.mark.parametrize(
    ("nodes", "workers", "degree", "fits"),
    [
        ("aabb", 4, 2, 2),
        ("aabb", 4, 1, 1),
        ("aaab", 4, 2, "nodes of 3, 1 workers"),
        ("abab", 4, 2, "nodes of 1 workers: choose one of"),  # a launcher that does not number by node
        ("aabb", 4, 4, r"nodes of 2 workers: choose one of \[1, 2\], or set parallel.experts_across_nodes=true"),
        ("aabb", 8, 4, 2),  # half of the workers are left
        ("aaab", 8, 4, 1),
        ("aaa", 8, 4, 1),  # 3 does not divide the experts
    ],
)
def test_groups_stay_inside_nodes(nodes, workers, degree, fits):
    parallel = ParallelConfig(workers=workers, expert_parallel=degree)
    if isinstance(fits, int):
        assert fitting_degree(parallel, 8, on(*nodes)) == fits
        return
    with pytest.raises(ValueError, match=fits):
        fitting_degree(parallel, 8, on(*nodes))
    across = parallel.model_copy(update={"experts_across_nodes": True})
    assert fitting_degree(across, 8, on(*nodes)) == degree


def test_node_sizes():
    assert node_sizes(on(*"aabbb")) == [2, 3] and node_sizes(on(*"aba")) == [1, 1, 1]


def _gather(rank: int, world: int) -> None:
    environ = {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    seats = gather_seats(TorchrunContext(environ=environ))
    assert len(seats) == world and len(set(seats)) == 1 and seats[0].device == "cpu" and seats[0].node


def test_ranks_tell_each_other_where_they_are():
    run_ranks(_gather, 2)
