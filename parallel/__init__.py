"""Who holds which expert: mesh, gates, routers, experts, dispatch, and the boundary to DeepSpeed.

Importing this package imports neither DeepSpeed (only `parallel.engine.engine` does, when an engine or a mesh is made)
nor, until a name that needs it is used, torch.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from parallel.config import MoEConfig, ParallelConfig
from parallel.mesh import Mesh, MeshSpec, largest_legal

if TYPE_CHECKING:
    from parallel.engine.engine import Engine, create_mesh, init_distributed
    from parallel.engine.fragments import Fragment
    from parallel.moe.balance import RoutingStats, balance_losses, reduce_stats, summed_over_ranks
    from parallel.moe.dispatch import AllToAllDispatcher, Dispatcher, LocalDispatcher
    from parallel.moe.layer import MoELayer, decision_units
    from parallel.moe.routers import biased_routers, expert_pools
    from parallel.tables.table import CodeTable, TablePlan

# A fresh buffer of many megabytes is handed over by the kernel page by page, on first touch. With pages of 4 KiB that
# costs about as much as a matrix product that writes to it; gradients and optimizer updates of many experts are such
# buffers, in every step. torch reads this when it first allocates memory on a CPU; a kernel may ignore the advice.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

_LAZY = {
    "RoutingStats": "moe.balance",
    "balance_losses": "moe.balance",
    "reduce_stats": "moe.balance",
    "summed_over_ranks": "moe.balance",
    "AllToAllDispatcher": "moe.dispatch",
    "Dispatcher": "moe.dispatch",
    "LocalDispatcher": "moe.dispatch",
    "Engine": "engine.engine",
    "create_mesh": "engine.engine",
    "init_distributed": "engine.engine",
    "Fragment": "engine.fragments",
    "MoELayer": "moe.layer",
    "decision_units": "moe.layer",
    "biased_routers": "moe.routers",
    "expert_pools": "moe.routers",
    "CodeTable": "tables.table",
    "TablePlan": "tables.table",
}

__all__ = [
    "AllToAllDispatcher",
    "CodeTable",
    "Dispatcher",
    "Engine",
    "Fragment",
    "LocalDispatcher",
    "Mesh",
    "MeshSpec",
    "MoEConfig",
    "MoELayer",
    "ParallelConfig",
    "RoutingStats",
    "TablePlan",
    "balance_losses",
    "biased_routers",
    "create_mesh",
    "decision_units",
    "expert_pools",
    "init_distributed",
    "largest_legal",
    "reduce_stats",
    "summed_over_ranks",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'parallel' has no attribute '{name}'")
    return getattr(import_module(f"parallel.{_LAZY[name]}"), name)
