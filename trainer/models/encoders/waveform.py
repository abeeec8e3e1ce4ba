"""Regularly sampled signals -> a fixed number of tokens, one launch for all waveforms with as many channels.

A signal is cut into patches of consecutive samples, each embedded by a small network; patches are then averaged
into `tokens` equal stretches of the longest signal, so that cost downstream does not grow with the rate.

Shape legend: P pairs (sample, modality), O samples of all signals, C channels, s samples a patch, T tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from data_shards import WaveformGroup
from trainer.models.layers.grouped_linear import GroupedMLP
from trainer.models.layers.ragged import offsets_to_ids, segment_sum
from trainer.models.layers.standardise import Standardiser


class WaveformEncoder(nn.Module):
    """Packed (O, C) samples with offsets -> (P, T, D)."""

    def __init__(
        self, channels: int, longest: int, standardiser: Standardiser, patch: int, tokens: int, dim: int, blocks: int
    ) -> None:
        super().__init__()
        self.standardiser, self.patch = standardiser, patch
        self.patches = -(-longest // patch)
        self.tokens = min(tokens, self.patches)
        self.network = GroupedMLP(blocks, channels * patch, 2 * dim, dim)
        self.position_TD = nn.Parameter(torch.randn(self.tokens, dim) * 0.02)

    def forward(self, group: WaveformGroup, block_P: Tensor, counts_M: Tensor) -> Tensor:
        pairs, channels = len(block_P), group.values_OC.shape[1]
        pair_O = offsets_to_ids(group.offsets, len(group.values_OC))
        value_OC = self.standardiser(group.values_OC, block_P[pair_O])
        sample_O = torch.arange(len(value_OC), device=value_OC.device) - group.offsets[pair_O]
        cell_O = pair_O * (self.patches * self.patch) + sample_O
        padded = value_OC.new_zeros(pairs * self.patches * self.patch, channels).index_copy(0, cell_O, value_OC)
        embedded_ND = self.network(padded.view(pairs * self.patches, self.patch * channels), counts_M * self.patches)
        filled_P = (group.offsets.diff() + self.patch - 1) // self.patch
        return self._pool(embedded_ND.unflatten(0, (pairs, self.patches)), filled_P) + self.position_TD

    def _pool(self, patch_PXD: Tensor, filled_P: Tensor) -> Tensor:
        """Mean of the filled patches in each of the T stretches."""
        pairs, patches, dim = patch_PXD.shape
        index_X = torch.arange(patches, device=patch_PXD.device)
        stretch_X = index_X * self.tokens // patches
        weight_PX = (index_X[None] < filled_P[:, None]).to(patch_PXD.dtype)
        summed = segment_sum((patch_PXD * weight_PX[..., None]).transpose(0, 1).flatten(1), stretch_X, self.tokens)
        count = segment_sum(weight_PX.T, stretch_X, self.tokens).clamp_min(1)
        return (summed.view(self.tokens, pairs, dim) / count[..., None]).transpose(0, 1)
