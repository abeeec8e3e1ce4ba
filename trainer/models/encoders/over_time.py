"""From the objects of (sample, modality) pairs, each at its time, to the tokens of the pair; what all ways share.

An object is a text, a picture, a recording, a vector or a code, already encoded. `TokensOverTime` lets each stand for
itself, at its time; `GridOverTime` brings them onto the time grid, as the paper does with what irregular modalities'
encoders give (arXiv 2402.03226, section 3).

Shape legend: O objects of a group, U tokens of an object, Q pairs, N tokens of all pairs, D width, M blocks.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from trainer.models.encoders.layout import PresentPairs
from trainer.models.layers.grouped_linear import Blocks
from trainer.models.layers.token_layout import EncodedGroup


@dataclass(frozen=True)
class ObjectTimes:
    """The objects of a group on the CPU, sorted by pair, then time.

    pair_O: int64, pair of each; time_O: float32, in horizons of its modality; objects: objects of each block.
    """

    pair_O: Tensor
    time_O: Tensor
    objects: Blocks


class OverTime(nn.Module):
    """Encoded objects (O, U, D) at their times (O,), in horizons -> tokens of all pairs (N, D)."""

    @abstractmethod
    def lay_out(self, times: ObjectTimes, present: PresentPairs) -> Any:
        """What the host must know, from the objects on the CPU."""

    @abstractmethod
    def encoded(self, layout: Any, present: PresentPairs) -> EncodedGroup:
        """The tokens that `forward` gives."""

    @abstractmethod
    def forward(self, token_OUD: Tensor, time_O: Tensor, layout: Any) -> Tensor: ...
