"""What a recomputed forward pass takes over from the first one: who serves whom, and how many rows go where.

Recomputation runs a layer's forward pass twice, and both must serve the same tokens by the same experts. Their scores
may differ in the last bit (sums on a GPU need not come in one order), and one token that then takes another expert
changes the numbers of rows, so that what comes back no longer fits what was kept. Kept numbers also spare the second
pass its exchange of them, and the host its wait.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

T = TypeVar("T")


class Kept:
    """Decisions of one call of a layer: made in its first forward pass, taken over in any further one.

    Only whole numbers are held here: no activation, and nothing that a gradient passes.

    Args:
        hold: False for a pass that nobody recomputes: everything is decided anew, nothing held.
    """

    def __init__(self, hold: bool = True) -> None:
        self.hold = hold
        self._values: dict[str, Any] = {}

    def once(self, name: str, decide: Callable[[], T]) -> T:
        """What `decide` returned when `name` was first asked for."""
        if name in self._values:
            return self._values[name]  # type: ignore[no-any-return]
        value = decide()
        if self.hold:
            self._values[name] = value
        return value

    def ids_once(self, name: str, decide: Callable[[], Tensor], most: int) -> Tensor:
        """As `once`, for int64 numbers in [0, most], which are kept in as few bytes as they need."""
        if name in self._values:
            return self._values[name].to(torch.int64)  # type: ignore[no-any-return]
        ids = decide()
        if self.hold:
            self._values[name] = ids.to(narrowest(most))
        return ids


def narrowest(most: int) -> torch.dtype:
    """The smallest signed type that holds [0, most]."""
    return next(t for t in (torch.int8, torch.int16, torch.int32, torch.int64) if most <= torch.iinfo(t).max)


def recomputed(block: nn.Module, *arguments: Any) -> Any:
    """block(*arguments, kept=...) without its activations, which the backward pass computes again.

    Random numbers come out the same, and so do decisions, through the `Kept` that both passes are given. Every rank
    must recompute the same blocks in the same order, so that the collectives in them meet.
    """
    return checkpoint(block, *arguments, kept=Kept(), use_reentrant=False)
