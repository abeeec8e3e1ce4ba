"""What a model remembers of its forward passes, taken back when their step is refused.

Weights and moments are untouched by a refused step, but a running mean has by then seen its activations, which are not
finite more often than not: kept, one such step would spoil all later ones.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class StepMemory:
    """The buffers of a model that are part of its state, as they were before the current step."""

    def __init__(self, model: nn.Module) -> None:
        self._places = [
            (module, name)
            for module in model.modules()
            for name in module._buffers
            if name not in module._non_persistent_buffers_set
        ]
        self._before: list[Tensor | None] | None = None

    @torch.no_grad()
    def keep(self) -> None:
        """Before every forward pass of a step; the first one counts."""
        if self._before is None:
            live = [module._buffers[name] for module, name in self._places]
            self._before = [None if buffer is None else buffer.clone() for buffer in live]

    @torch.no_grad()
    def restore(self) -> None:
        """The step was refused."""
        for (module, name), value in zip(self._places, self._before or [None] * len(self._places), strict=True):
            if value is not None:
                module._buffers[name].copy_(value)  # type: ignore[union-attr]
        self._before = None

    def forget(self) -> None:
        """The step was accepted."""
        self._before = None
