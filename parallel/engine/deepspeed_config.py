"""What DeepSpeed is told about a run: optimizer groups and its configuration, as plain data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from parallel.config import Precision
from parallel.mesh import MeshSpec

# Elements reduced by one collective. Gradients are copied into buckets, larger ones go alone: on a CPU a copy into
# fresh memory costs more than another call, on a GPU it is the other way round.
MAX_BUCKET = {"cpu": 2_000_000, "cuda": 50_000_000}


def group_name(spec: MeshSpec) -> str:
    """DeepSpeed's name for the process groups of an expert-parallel degree."""
    return f"ep_size_{spec.expert_parallel}"


def parameter_groups(
    model: nn.Module, spec: MeshSpec, weight_decay: float, no_decay: Callable[[str, nn.Parameter], bool]
) -> list[dict[str, Any]]:
    """Up to four optimizer groups: dense and expert parameters, with and without weight decay."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            expert = getattr(parameter, "allreduce", True) is False
            groups.setdefault((expert, not no_decay(name, parameter)), []).append(parameter)
    result: list[dict[str, Any]] = []
    for (expert, decayed), parameters in sorted(groups.items()):
        group = {"params": parameters, "weight_decay": weight_decay if decayed else 0.0}
        marks = {"name": group_name(spec), "moe": True} if expert else {"name": "dense"}
        result.append(group | marks)
    return result


def refuse_scalars(model: nn.Module) -> None:
    """Raise ValueError if a parameter has no dimension."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 0:
            raise ValueError(
                f"Parameter '{name}' has no dimension, which DeepSpeed cannot broadcast: give it shape (1,)."
            )


def deepspeed_config(
    model: nn.Module, device: torch.device, stage: int, precision: Precision, clip: float, accumulation: int
) -> dict[str, Any]:
    """DeepSpeed's configuration for an `Engine` of these settings."""
    elements = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    bucket = min(MAX_BUCKET[device.type], elements)
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,  # the loader owns batch sizes; this only satisfies DeepSpeed's arithmetic
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": clip,
        "steps_per_print": 10**12,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": stage,
            "overlap_comm": False,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": 2 * ((bucket + 1) // 2),
        },
    }
    if precision == "bf16":
        config["bf16"] = {"enabled": True, "check_grad_overflow": True}
        if stage == 2:  # for stage 1 see zero.accumulate_in_fp32
            config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config
