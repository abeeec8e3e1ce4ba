"""LoRA on the queries and values of a tower, through `peft`: what prompts are compared with at equal size."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from torch import nn

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
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ValueError("mope.method=lora needs peft: pip install 'fleximoe[hf]'") from error
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
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(TARGETS)), model)
    return rank
