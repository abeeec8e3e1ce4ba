"""Where the pairs of one batch group lie: worked out on the CPU, used on the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from data_shards import Group
from trainer.models.layers.grouped_linear import Blocks


@dataclass(frozen=True)
class GroupLayout:
    """Pairs of a group, sorted by block (the modality's number within the group).

    Attributes:
        block_P: int64, block of each pair. pairs, tokens: pairs and encoded rows of each block.
        own: what the group's encoder has worked out besides.
    """

    block_P: Tensor
    pairs: Blocks
    tokens: Blocks
    own: Any


class Encoder(nn.Module):
    """(group, layout) -> (P, `tokens`, D)."""

    tokens: int

    def lay_out(self, group: Any, block_P: Tensor, blocks: int) -> Any:
        """What else the host must know of a group, from its tensors on the CPU."""
        return None


def group_layout_of(encoder: Encoder, group: Group, block_P: Tensor, blocks: int) -> GroupLayout:
    """The layout of a group on the CPU."""
    pairs = Blocks.of(torch.bincount(block_P, minlength=blocks))
    return GroupLayout(block_P, pairs, pairs.times(encoder.tokens), encoder.lay_out(group, block_P, blocks))
