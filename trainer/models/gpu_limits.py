"""What kernels of a GPU cannot take, found in a model before its first step, and what they take slowly.

In bf16 on a GPU the products of experts, of layers with weights per modality and of routers per modality are torch's
grouped product (`parallel.moe.grouped_matmul`). Its kernel has one thread a matrix, so fewer than 1,024 of them, counts
elements of an operand in 32 bits, and wants rows of a multiple of 16 bytes; where they are not, a loop with a wait of
the host for every product takes its place. In fp32, and on a CPU, it is a loop anyway and none of this holds.

The model may be one without memory (`torch.device("meta")`), as `plan` builds it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from parallel import MoELayer
from parallel.moe.gates import Gate
from trainer.models.layers.grouped_linear import GroupedLinear

MOST_MATRICES = 1_023
MOST_ELEMENTS = 2**31 - 1
ALIGNMENT = 8  # bf16 numbers in 16 bytes
OLDEST = (8, 0)  # compute capability whose matrix units know bf16


@dataclass(frozen=True)
class GpuLimits:
    """Sentences: why a model cannot run in bf16 on a GPU, and what makes it slow there."""

    refused: list[str] = field(default_factory=list)
    slow: list[str] = field(default_factory=list)

    def refuse(self) -> None:
        """Raise ValueError with the first reason, if there is one."""
        if self.refused:
            raise ValueError(self.refused[0])


def uses_grouped_kernels(device: torch.device, precision: str) -> bool:
    """Whether the limits hold on this device."""
    return device.type == "cuda" and precision == "bf16"


def refuse_old_gpu(device: torch.device) -> None:
    """Raise ValueError if this GPU has no bf16."""
    if torch.cuda.get_device_capability(device) < OLDEST:
        raise ValueError(
            f"parallel.precision=bf16 needs a GPU of compute capability {OLDEST[0]}.{OLDEST[1]} or newer, and "
            f"{torch.cuda.get_device_name(device)} is older: set parallel.precision=fp32"
        )


def gpu_limits(model: nn.Module) -> GpuLimits:
    """What a bf16 run of this model, which may be of one rank of many, meets on a GPU."""
    found = GpuLimits()
    for name, module in model.named_modules():
        if isinstance(module, MoELayer):
            _experts(module, found)
        elif isinstance(module, GroupedLinear) and len(module.weight) > 1:
            _matrices(f"{name} has a matrix for each of {len(module.weight):,} modalities", len(module.weight), found)
        elif isinstance(module, Gate) and len(module.prototypes) > 1:
            number, experts = len(module.prototypes), module.prototypes.shape[2]
            _matrices(f"moe.router=per_modality has a matrix for each of {number:,} modalities", number, found)
            _alignment("moe.experts", experts, "routers per modality", found)
    return GpuLimits(list(dict.fromkeys(found.refused)), list(dict.fromkeys(found.slow)))


def _experts(layer: MoELayer, found: GpuLimits) -> None:
    held, degree, total = len(layer.experts.ids), layer.dispatcher.size, layer.config.experts
    if held > MOST_MATRICES:
        found.refused.append(
            f"moe.experts={total} at parallel.expert_parallel={degree} puts {held:,} experts on a rank, and the "
            f"grouped product of a GPU takes {MOST_MATRICES:,}: spread them over at least "
            f"{-(-total // MOST_MATRICES)} ranks by parallel.expert_parallel, or set parallel.precision=fp32, which "
            "takes them one by one"
        )
    _alignment("model.dim", layer.dim, "experts", found)
    _alignment("model.moe.hidden", layer.experts.hidden, "experts", found)


def _matrices(what: str, number: int, found: GpuLimits) -> None:
    if number > MOST_MATRICES:
        found.refused.append(
            f"{what}, and the grouped product of a GPU takes {MOST_MATRICES:,} matrices: join modalities into ones of "
            "more channels, or set parallel.precision=fp32, which takes them one by one"
        )


def _alignment(key: str, number: int, what: str, found: GpuLimits) -> None:
    if number % ALIGNMENT:
        found.slow.append(
            f"{key}={number} is not a multiple of {ALIGNMENT}, so a GPU computes {what} one by one and waits for each: "
            f"{-(-number // ALIGNMENT) * ALIGNMENT} is faster"
        )


@dataclass(frozen=True)
class Rows:
    """What the layers of a rank are given at once: `tokens` of an average batch, and which setting makes them fewer."""

    tokens: float
    remedy: str


def batches_at_once(
    tokens: float, world: int, batch_size: int, accumulation: int, eval_batch_size: int | None
) -> list[Rows]:
    """Micro-batches of training and batches of evaluation, for records of so many tokens each.

    Evaluation knows no accumulation.
    """
    return [
        Rows(tokens * batch_size / accumulation / world, "raise training.accumulation"),
        Rows(tokens * (eval_batch_size or batch_size) / world, "lower training.eval_batch_size"),
    ]


def refuse_many_rows(model: nn.Module, batches: list[Rows]) -> None:
    """Raise ValueError if the rows of an average batch, spread evenly, are beyond what a kernel addresses."""
    layers = [module for module in model.modules() if isinstance(module, MoELayer)]
    for batch in batches:
        for layer in layers:
            rows, width = batch.tokens * layer.config.top_k, max(layer.dim, layer.experts.hidden)
            if rows * width > MOST_ELEMENTS:
                raise ValueError(
                    f"the experts of a rank get about {rows:,.0f} rows of {width:,} numbers at once, and the grouped "
                    f"product of a GPU addresses 2^31 numbers: {batch.remedy}, or use more ranks"
                )
