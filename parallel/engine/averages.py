"""An exponential moving average of the weights, beside the weights that are trained.

Averaged weights are those of a longer and steadier run: what they answer varies less from step to step and from seed to
seed than what the last step left (Polyak & Juditsky 1992; Izmailov et al. 2018). They are kept as ZeRO keeps moments:
each rank the slice whose master weights it owns, in fp32, so they cost memory and no traffic; only for an evaluation
are they gathered into the model, in place of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


def share_kept(decay: float, update: int) -> float:
    """Of an average its share that stays at an update, counted from 1: `decay`, and less while there were few, so that
    weights of the first steps are soon forgotten."""
    return min(decay, (1 + update) / (10 + update))


class WeightAverages:
    """Averages of a rank's slices of master weights.

    Args:
        slices: 1-D fp32 master weights, live. decay: share of an average that stays at an update, in (0, 1).
    """

    def __init__(self, slices: Sequence[Tensor], decay: float) -> None:
        self.slices, self.decay = [one.detach() for one in slices], decay
        self.tensors = [one.clone() for one in self.slices]

    def follow(self, update: int) -> None:
        """After this update of the weights."""
        if self.tensors:
            torch._foreach_lerp_(self.tensors, self.slices, 1 - share_kept(self.decay, update))

    @contextmanager
    def in_place(self, gather: Callable[[], None]) -> Iterator[None]:
        """Inside, the averages are the master weights. `gather` makes the model's weights from these; collective.

        After an error the master weights are back, and the model's are not: other ranks may be anywhere by then.
        """
        self._exchange()
        try:
            gather()
            yield
        finally:
            self._exchange()
        gather()

    def _exchange(self) -> None:
        for one, other in zip(self.slices, self.tensors, strict=True):
            kept = one.clone()
            one.copy_(other)
            other.copy_(kept)
