"""Handling of DeepSpeed's ZeRO-1/2 optimizer, without importing it.

Left alone, it reduces a gradient when that gradient's hook fires, and skips parameters that got none. Ranks whose
batches lack a modality then reduce different lists: a hang, or gradients added to the wrong parameter. Here its hooks
are removed, and after the backward pass every parameter is reduced in one fixed order, with zeros for what got no
gradient. The price: ZeRO-2 holds all gradients of one micro-batch until its backward pass ends (between micro-batches
they are sharded as usual).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def remove_gradient_hooks(zero: Any) -> None:
    """Gradients stay where autograd puts them until `queue_gradients`."""
    for hook in zero._grad_acc_hooks:
        hook.remove()
    zero._grad_acc_hooks.clear()


def queue_gradients(zero: Any) -> None:
    """Make the gradients of all parameters ready for `DeepSpeedEngine.allreduce_gradients`, in the groups' order."""
    # Fresh buffers: DeepSpeed makes them in the hooks that are removed.
    zero.setup_buckets()
    for index, group in enumerate(zero.bit16_groups):
        for parameter in group:
            # This rank's batch did not touch it, another's may have: it joins every reduction, with zeros.
            if zero.get_gradient_for_reduction(parameter) is None:
                empty = torch.zeros_like(parameter, dtype=zero._gradient_reduction_buffer_dtype())
                setattr(parameter, "grad_accum" if zero.use_grad_accum_attribute else "grad", empty)
            # ZeRO-2 is told of each gradient; ZeRO-1 walks through all of them in `allreduce_gradients`.
            if zero.partition_gradients:
                zero.reduce_ready_partitions_and_remove_grads(parameter, index)


def accumulate_in_fp32(zero: Any) -> None:
    """Have ZeRO-1 add up bf16 gradients in fp32, as ZeRO-2 does.

    Asked for in the configuration, DeepSpeed would pick another optimizer class for stage 1, whose layout of master
    weights differs. The ZeRO-1/2 class has this mode itself (it uses it with offloading) and reads it on every backward
    pass.
    """
    zero.gradient_accumulation_dtype = torch.float32
    zero.use_separate_grad_accum = True
    zero.use_grad_accum_attribute = True


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
