"""What DeepSpeed is told about a run: optimizer groups and its configuration, as plain data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from parallel.config import Precision
from parallel.engine.stages import Stage
from parallel.mesh import MeshSpec


def group_name(spec: MeshSpec) -> str:
    """DeepSpeed's name for the process groups of an expert-parallel degree."""
    return f"ep_size_{spec.expert_parallel}"


def parameter_groups(
    stages: list[Stage],
    spec: MeshSpec,
    weight_decay: float,
    no_decay: Callable[[str, nn.Parameter], bool],
    lr_of: Callable[[str], float | None] = lambda name: None,
) -> list[dict[str, Any]]:
    """Up to four optimizer groups a stage: dense and expert parameters, with and without weight decay; and as many for
    each learning rate that `lr_of` gives to parameters by their names.

    ZeRO gives every rank a slice of every group, so one reduce-scatter brings a stage's gradients to their owners.
    """
    groups: dict[tuple[int, float, bool, bool], list[nn.Parameter]] = {}
    for number, stage in enumerate(stages):
        for name, parameter in stage.parameters:
            expert = getattr(parameter, "allreduce", True) is False
            # The base rate, which is none of its own, comes first.
            groups.setdefault((number, lr_of(name) or 0.0, expert, not no_decay(name, parameter)), []).append(parameter)
    result: list[dict[str, Any]] = []
    for (_, lr, expert, decayed), parameters in sorted(groups.items()):
        group: dict[str, Any] = {"params": parameters, "weight_decay": weight_decay if decayed else 0.0}
        if lr:
            group["lr"] = lr
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


def deepspeed_config(stage: int, precision: Precision, clip: float, accumulation: int) -> dict[str, Any]:
    """DeepSpeed's configuration for an `Engine` of these settings."""
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,  # the loader owns batch sizes; this only satisfies DeepSpeed's arithmetic
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": clip,
        "steps_per_print": 10**12,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": stage, "overlap_comm": False},
        # It waits for the device before and after every micro-batch.
        "timers": {"throughput": {"enabled": False}},
    }
    if precision == "bf16":
        config["bf16"] = {"enabled": True, "check_grad_overflow": True}
    return config
