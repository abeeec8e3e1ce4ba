"""LoRA, low-rank changes of frozen weights, through `peft`: on the attention of towers, and in pretrained encoders."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from torch import nn

from trainer.models.pretrained.loading.backbone import BackboneError

logger = logging.getLogger(__name__)

TARGETS = ("q_proj", "v_proj", "query", "value", "q_lin", "v_lin", "project", "over_time", "over_modalities")


def lora_sizes(model: nn.Module) -> int:
    """Parameters that each rank of LoRA adds."""
    return sum(
        layer.in_features + layer.out_features
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and name.rsplit(".", 1)[-1] in TARGETS
    )


def add_lora(models: Sequence[nn.Module], rank: int, match: int | None) -> int:
    """Add LoRA to the attention of frozen models, in place; returns the rank.

    Args:
        match: number of parameters that the rank is chosen for; None = `rank` as it is.

    Raises:
        ValueError: peft is not installed, or a model has no linear attention projection.
    """
    each = sum(lora_sizes(model) for model in models)
    if not each:
        raise ValueError(
            "mope.method=lora: this backbone has no linear attention projection (attention per_modality is grouped): "
            "use another baseline"
        )
    if match is not None:
        rank = max(1, round(match / each))
        logger.info("LoRA of rank %d trains %d parameters, for %d asked", rank, rank * each, match)
    for model in models:
        _inject(model, rank, TARGETS, "mope.method=lora")
    return rank


def add_lora_to(model: nn.Module, rank: int, targets: tuple[str, ...], label: str) -> None:
    """Add LoRA to the layers of a frozen model whose names end so, in place.

    Raises:
        BackboneError: peft is not installed, or the family has no such layers.
    """
    if not targets:
        raise BackboneError(f"{label}: train=lora is not known for models of this type: set train to none or all")
    try:
        _inject(model, rank, targets, f"{label}: train=lora")
    except ValueError as error:
        raise BackboneError(str(error)) from error


def _inject(model: nn.Module, rank: int, targets: tuple[str, ...], what: str) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ValueError(f"{what} needs peft: pip install 'fleximoe[hf]'") from error
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(targets)), model)
