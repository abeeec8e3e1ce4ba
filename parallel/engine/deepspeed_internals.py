"""All of DeepSpeed that is not its public interface and that this project uses, in one place, without importing it.

Names below are those of `VERSION`; `tests/parallel/engine/test_deepspeed_internals.py` looks for each, and fails when
one goes. Of ZeRO-1/2 we take the partition (every optimizer group flat, one equal slice of it for each rank), the
update of the slices and the gathering of weights. The way of gradients to their owners is our own
(`parallel.engine.reducer`), and so is their norm, which costs the host one wait instead of two a step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.engine.flat_layout import FlatGroup, FlatLayout
from parallel.engine.reducer import Reduction
from parallel.engine.stages import Stage

if TYPE_CHECKING:
    from parallel.mesh import MeshSpec

VERSION = "0.19.8"

MODULE_NAMES = (
    "deepspeed.ops.__compatible_ops__",
    "deepspeed.runtime.compiler.compile",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "deepspeed.moe.layer.MoE",
    "deepspeed.utils.groups._EXPERT_PARALLEL_GROUP",
    "deepspeed.utils.groups._EXPERT_PARALLEL_GROUP_RANKS",
    "deepspeed.utils.groups._EXPERT_DATA_PARALLEL_GROUP",
    "deepspeed.utils.groups._EXPERT_DATA_PARALLEL_GROUP_RANKS",
    "deepspeed.utils.groups._clone_world_group",
)
"""Imported or read by `parallel.engine.engine` and `use_own_groups`."""

ENGINE_NAMES = ("enable_backward_allreduce", "get_global_grad_norm", "optimizer")
"""Of `deepspeed.DeepSpeedEngine`; forward, backward, step and destroy are public."""

ZERO_NAMES = (
    "_grad_acc_hooks",  # hooks of parameters: removed
    "averaged_gradients",  # number of a group -> this rank's gradient, read by `step`: written
    "bit16_groups",  # parameters of each group
    "bit16_groups_flat",  # the groups flat, padded to equal slices: where parameters live
    "check_overflow",  # asked by `step` first: replaced
    "clip_grad",
    "dp_process_group",  # all ranks
    "optimizer",  # AdamW over the slices
    "overflow",  # whether `step` refused the gradient
    "param_groups",
    "param_names",
    "partition_size",  # elements of a slice
    "real_dp_process_group",  # of each group: between whom it is sliced
    "scaled_global_norm",  # asked by `step` then: replaced
    "single_partition_of_fp32_groups",  # this rank's slice of each group: master weights
    "update_lp_params",  # slices -> parameters on all ranks
)
"""Of `deepspeed.runtime.zero.stage_1_and_2.DeepSpeedZeroOptimizer`; `_hp_mapping` of parameters is in `fragments`."""


# --- process groups ---------------------------------------------------------------------------------------------------


def use_own_groups(groups: Any, name: str, spec: MeshSpec, rank: int) -> dist.ProcessGroup:
    """Make the process groups that this rank is in, and those only, and tell `deepspeed.utils.groups` of them.

    DeepSpeed itself makes those of all ranks on every rank: 136 for 1,024 ranks and 8 expert-parallel ones. Returns the
    expert-parallel group. Collective.
    """
    # As long as the process lives, so that a second engine takes the same ones.
    if name not in groups._EXPERT_PARALLEL_GROUP:
        # Only members meet to make a group, and all ranks make these two in this order.
        copies, experts = spec.expert_data_group(rank), spec.expert_group(rank)
        groups._EXPERT_DATA_PARALLEL_GROUP[name] = dist.new_group(list(copies), use_local_synchronization=True)
        groups._EXPERT_DATA_PARALLEL_GROUP_RANKS[name] = copies
        groups._EXPERT_PARALLEL_GROUP[name] = dist.new_group(list(experts), use_local_synchronization=True)
        groups._EXPERT_PARALLEL_GROUP_RANKS[name] = experts
    group: dist.ProcessGroup = groups._EXPERT_PARALLEL_GROUP[name]
    return group


# --- gradients --------------------------------------------------------------------------------------------------------


def reductions_of(zero: Any, stages: list[Stage]) -> list[list[Reduction]]:
    """What each stage sends: its optimizer groups, dense ones by one collective and experts by another."""
    place = {id(parameter): number for number, stage in enumerate(stages) for _, parameter in stage.parameters}
    together: list[dict[dist.ProcessGroup, list[FlatGroup]]] = [{} for _ in stages]
    for number, (flat, parameters) in enumerate(zip(zero.bit16_groups_flat, zero.bit16_groups, strict=True)):
        starts = [(parameter, parameter.storage_offset() - flat.storage_offset()) for parameter in parameters]
        group = FlatGroup(number, int(zero.partition_size[number]), starts)
        stage = together[place[id(parameters[0])]]
        stage.setdefault(zero.real_dp_process_group[number], []).append(group)
    return [[_reduction(owners, groups) for owners, groups in stage.items()] for stage in together]


def _reduction(owners: dist.ProcessGroup, groups: list[FlatGroup]) -> Reduction:
    ranks = dist.get_world_size(owners)
    return Reduction(FlatLayout(groups, ranks), owners if ranks > 1 else None)


class _Gradient(list[Tensor]):
    """This rank's slice of a group's gradient as `step` takes it: already flat."""

    def __init__(self, flat: Tensor) -> None:
        super().__init__([flat])
        self.flat_partition = flat


def take_over(zero: Any, others: Callable[[], list[Tensor]]) -> None:
    """No gradient moves by itself any more, and `step` asks for our norm. Before the first pass.

    Args:
        others: this rank's gradients that ZeRO does not know, each element on one rank.
    """
    for hook in zero._grad_acc_hooks:
        hook.remove()
    zero._grad_acc_hooks.clear()
    # The norm over all ranks tells of it: it is not finite if a gradient is not. One wait for both.
    zero.check_overflow = lambda partition_gradients=True: None
    zero.scaled_global_norm = lambda norm_type=2: _global_norm(zero, others())


def put_gradients(zero: Any, parts: dict[int, Tensor]) -> None:
    """What the next `step` updates by."""
    zero.averaged_gradients = {number: _Gradient(part) for number, part in parts.items()}


def _global_norm(zero: Any, others: list[Tensor]) -> Tensor:
    """Norm of the whole gradient, on the host. Collective.

    Slices of all groups on all ranks are disjoint and together everything, each expert once.
    """
    parts = [part.flat_partition for part in zero.averaged_gradients.values()] + others
    total = torch.stack(torch._foreach_norm(parts)).double().square().sum()
    if dist.get_world_size(zero.dp_process_group) > 1:
        dist.all_reduce(total, group=zero.dp_process_group)
    # The one wait of a step: whether anything is updated hangs on this number.
    return total.sqrt().float().cpu()


# --- the optimizer's state --------------------------------------------------------------------------------------------


def create_moments(zero: Any) -> None:
    """Adam's state as it would be at its first step, so that it can be read and written before."""
    # Keyed as AdamW keys them: by the flat slice that is its parameter.
    for flat in zero.single_partition_of_fp32_groups:
        zero.optimizer.state[flat].update(
            step=torch.zeros((), dtype=torch.float32, device=flat.device),
            exp_avg=torch.zeros_like(flat, requires_grad=False),
            exp_avg_sq=torch.zeros_like(flat, requires_grad=False),
        )


def states(zero: Any) -> list[dict[str, Tensor]]:
    """Adam's state of every optimizer group: step, exp_avg, exp_avg_sq."""
    return [zero.optimizer.state[flat] for flat in zero.single_partition_of_fp32_groups]
