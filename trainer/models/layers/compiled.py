"""Parts of a model that torch may compile."""

from __future__ import annotations

import torch
from torch import nn


def compile_dense_parts(model: nn.Module) -> None:
    """Compile in place what has no data-dependent control flow: heads and feed-forward parts. Names stay as they are.

    Packed attention, routing and grouped layers are left alone: their shapes and launches follow the batch.

    Raises:
        ValueError: this host cannot compile.
    """
    try:
        torch.compile(lambda x: x + 1)(torch.ones(2))
    except Exception as error:  # whatever a missing compiler raises
        reason = str(error).strip().split("\n")[0][:200]
        raise ValueError(
            f"training.compile=true, but torch.compile does not work here ({reason}): install a C++ compiler and "
            "Python's headers, or set training.compile=false"
        ) from error
    for module in model.modules():
        if isinstance(module, nn.Sequential):
            module.compile(dynamic=True)
