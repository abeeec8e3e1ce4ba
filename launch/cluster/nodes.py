"""The nodes of a cluster as training sees them: which of them stay, and how many workers fit on those.

Ray still counts a node that is being drained, because its machine is about to be taken away, and for a while one that
has been lost. A group of workers planned on such a node never starts.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray._private.state

from parallel.config import ParallelConfig
from trainer.worker.seats import crossing

CONNECT_SECONDS = 2.0

Resources = Mapping[str, float]


def leaving_nodes() -> set[str]:
    """Ids of nodes that are being drained. Ray offers this list nowhere else."""
    return set(ray._private.state.state.get_draining_nodes())


def staying_nodes() -> dict[str, Resources]:
    """Resources of the nodes that are alive, answer, and are not being drained, by node id."""
    leaving = leaving_nodes()
    nodes = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leaving]
    return {node["NodeID"]: node["Resources"] for node in nodes if _answers(node)}


@dataclass(frozen=True)
class Sizes:
    """How many workers a run may have: from `least` to `most`, each with these resources.

    `degrees` are the expert-parallel degrees that will do, the wanted one first. A node takes whole groups only, so
    that no group reaches across nodes; (1,) where groups may.
    """

    needs: Resources
    least: int
    most: int
    degrees: tuple[int, ...] = (1,)

    @property
    def elastic(self) -> bool:
        return self.least < self.most

    def fitting(self, nodes: Mapping[str, Resources]) -> int:
        """How many workers fit on these nodes, with the greatest degree that leaves at least `least` of them."""
        places = [fitting_workers({name: node}, self.needs) for name, node in nodes.items()]
        workers = 0
        for degree in self.degrees:
            workers = min(sum(count // degree for count in places), self.most // degree) * degree
            if workers >= self.least:
                break
        return workers


def placement_problem(parallel: ParallelConfig, places: Sequence[int]) -> str | None:
    """Why a run of fixed size cannot have its expert-parallel groups inside nodes with so many places for workers;
    None if it can, or if nodes are still to come."""
    degree, most = parallel.expert_parallel, max(places, default=0)
    if degree == 1 or parallel.experts_across_nodes or parallel.workers <= most or sum(places) < parallel.workers:
        return None
    if len(set(places)) > 1 or most % degree:
        return crossing(degree, places)
    return None


def fitting_workers(nodes: Mapping[str, Resources], needs: Resources) -> int:
    """How many workers that need these resources fit on the nodes when nothing else runs there."""
    amounts = {name: amount for name, amount in needs.items() if amount}
    return sum(
        min(int(resources.get(name, 0.0) / amount + 1e-6) for name, amount in amounts.items())
        for resources in nodes.values()
    )


def _answers(node: Mapping[str, Any]) -> bool:
    """Whether the node's Ray accepts a connection: it is known at once, while Ray waits for missed heartbeats."""
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), CONNECT_SECONDS).close()
    except OSError:
        return False
    return True
