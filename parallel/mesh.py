"""Who holds which expert: all arithmetic of parallel degrees, and every sentence said when the numbers do not fit.

The dense part of a model is replicated over the whole world. The experts of a layer are spread over `expert_parallel`
neighbouring ranks (an expert-parallel group); the groups hold copies of each other. With world 8 and expert_parallel
4::

    rank            0  1  2  3 | 4  5  6  7
    expert block    0  1  2  3 | 0  1  2  3        block b = experts [b * E / 4, (b + 1) * E / 4)

Neighbouring ranks are on one host in every launcher we know, so the all-to-all stays on the fast links.

Large tables of codes are spread over the whole world, once (`parallel.tables`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist

    from parallel.moe.dispatch import Dispatcher


def divisors(n: int) -> list[int]:
    """Divisors of n in ascending order."""
    return [d for d in range(1, n + 1) if n % d == 0]


def largest_legal(world: int, wanted: int, experts: int) -> int:
    """Largest expert-parallel degree not above `wanted` that divides both the world size and the number of experts.

    After a failure a run may continue with fewer ranks; checkpoints do not depend on the degree, so any legal one will
    do.
    """
    return max(d for d in divisors(world) if d <= max(wanted, 1) and experts % d == 0)


@dataclass(frozen=True)
class MeshSpec:
    """Parallel degrees of a run as plain numbers: `world` ranks, `experts` experts a layer, `top_k` of them a
    decision."""

    world: int
    expert_parallel: int
    experts: int
    top_k: int

    def validate(self) -> MeshSpec:
        """Return self.

        Raises:
            ValueError: if the degrees do not divide each other, or a decision asks for more experts than exist.
        """
        if min(self.world, self.expert_parallel, self.experts, self.top_k) < 1:
            raise ValueError(
                f"World size, parallel.expert_parallel, moe.experts and moe.top_k must be at least 1, but they are "
                f"{self.world}, {self.expert_parallel}, {self.experts} and {self.top_k}."
            )
        if self.world % self.expert_parallel:
            raise ValueError(
                f"parallel.expert_parallel={self.expert_parallel} does not divide the world size {self.world}: "
                f"choose one of {divisors(self.world)} or change parallel.workers."
            )
        if self.experts % self.expert_parallel:
            raise ValueError(
                f"moe.experts={self.experts} cannot be spread evenly over parallel.expert_parallel="
                f"{self.expert_parallel} ranks: "
                f"choose a multiple of {self.expert_parallel} experts, or one of {divisors(self.experts)} ranks."
            )
        if self.experts < self.top_k:
            raise ValueError(
                f"moe.top_k={self.top_k} asks for more experts than moe.experts={self.experts}: "
                "lower top_k or add experts."
            )
        return self

    @property
    def experts_per_rank(self) -> int:
        return self.experts // self.expert_parallel

    @property
    def expert_copies(self) -> int:
        """Number of ranks that hold a copy of the same expert."""
        return self.world // self.expert_parallel

    def expert_rank(self, rank: int) -> int:
        """Position of `rank` in its expert-parallel group."""
        return rank % self.expert_parallel

    def experts_of(self, rank: int) -> range:
        """Global ids of the experts that `rank` holds."""
        first = self.expert_rank(rank) * self.experts_per_rank
        return range(first, first + self.experts_per_rank)

    def expert_group(self, rank: int) -> range:
        """Ranks of the expert-parallel group of `rank`; together they hold each expert once."""
        first = rank - self.expert_rank(rank)
        return range(first, first + self.expert_parallel)

    def expert_data_group(self, rank: int) -> range:
        """Ranks that hold the same experts as `rank`."""
        return range(self.expert_rank(rank), self.world, self.expert_parallel)


@dataclass(frozen=True)
class Mesh:
    """A MeshSpec made real in this process: its rank, its process groups and its device."""

    spec: MeshSpec
    rank: int
    ep_group: dist.ProcessGroup | None
    world_group: dist.ProcessGroup | None
    device: torch.device
    timeout_s: float = 300.0
    """Seconds after which a collective that a peer never joins fails."""
    control_group: dist.ProcessGroup | None = None
    """All ranks, on the CPU, with a patience of its own: `parallel.control`."""

    @property
    def world(self) -> int:
        return self.spec.world

    def dispatcher(self) -> Dispatcher:
        """The row exchange that a model of this mesh needs; experts are local if every rank holds every one."""
        from parallel.moe.dispatch import AllToAllDispatcher, LocalDispatcher

        world_group = self.world_group if self.world > 1 else None
        if self.spec.expert_parallel == 1:
            return LocalDispatcher(world_group)
        if self.ep_group is None:
            raise ValueError(
                f"Mesh of rank {self.rank} has no expert-parallel process group, but parallel.expert_parallel is "
                f"{self.spec.expert_parallel}: make the mesh with parallel.create_mesh."
            )
        return AllToAllDispatcher(self.ep_group, world_group=world_group)
