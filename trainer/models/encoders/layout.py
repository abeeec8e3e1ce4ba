"""Where the rows of one batch group lie: worked out on the CPU, used on the device.

Shape legend: P rows of a group (pairs of sample and modality; objects, where the modality is timed), Q pairs that
records have, B samples, M blocks (modalities of the group).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from data_shards import Batch, Group
from trainer.models.layers.grouped_linear import Blocks
from trainer.models.layers.token_layout import EncodedGroup


@dataclass(frozen=True)
class PresentPairs:
    """The pairs of a group's modalities that records have, with or without objects, sorted by block, then sample."""

    modality_Q: Tensor
    sample_Q: Tensor
    block_Q: Tensor
    blocks: Blocks
    samples: int

    @staticmethod
    def of(batch: Batch, indices: Sequence[int]) -> PresentPairs:
        """Of the modalities with these numbers."""
        numbers_M = torch.tensor(indices, device="cpu")
        block_Q, sample_Q = batch.present_BM[:, numbers_M].T.nonzero(as_tuple=True)
        blocks = Blocks.of(torch.bincount(block_Q, minlength=len(indices)))
        return PresentPairs(numbers_M[block_Q], sample_Q, block_Q, blocks, len(batch))

    def number(self, block_P: Tensor, sample_P: Tensor) -> Tensor:
        """int64 [P]: the pair that each row is of."""
        return torch.searchsorted(self.block_Q * self.samples + self.sample_Q, block_P * self.samples + sample_P)


@dataclass(frozen=True)
class GroupLayout:
    """Rows of a group, sorted by block (the modality's number within the group).

    Attributes:
        block_P: int64, block of each row. pairs, tokens: rows, and rows times tokens, of each block.
        own: what the group's encoder has worked out besides.
    """

    block_P: Tensor
    pairs: Blocks
    tokens: Blocks
    own: Any


class Encoder(nn.Module):
    """(group, layout) -> (P, `tokens`, D), or, if `timed`, the tokens of all pairs, (N, D), placed as it says."""

    tokens: int
    timed = False

    def lay_out(self, group: Any, block_P: Tensor, blocks: int, present: PresentPairs | None) -> Any:
        """What else the host must know of a group, from its tensors on the CPU; `present` where it is timed."""
        return None

    def encoded(self, group: Group, layout: GroupLayout, present: PresentPairs | None) -> EncodedGroup:
        """Which tokens it will give, from the group and its layout on the CPU."""
        return EncodedGroup(group.modality_P, group.sample_P, layout.pairs, self.tokens)


def group_layout_of(
    encoder: Encoder, group: Group, block_P: Tensor, blocks: int, present: PresentPairs | None = None
) -> GroupLayout:
    """The layout of a group on the CPU."""
    pairs = Blocks.of(torch.bincount(block_P, minlength=blocks))
    own = encoder.lay_out(group, block_P, blocks, present)
    return GroupLayout(block_P, pairs, pairs.times(encoder.tokens), own)
