"""Images -> patch tokens, one launch for all image modalities of one shape.

Patches are embedded by a small network with learned positions; the attention of the fusion blocks does the rest.
Hugging Face towers are another kind of encoder with the same interface.

Shape legend: P pairs (sample, modality), C channels, H x W pixels, s patch side, T = H/s * W/s tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from data_shards import ImageGroup
from trainer.models.encoders.layout import Encoder, GroupLayout
from trainer.models.layers.grouped_linear import GroupedMLP
from trainer.models.layers.standardise import Standardiser


class ImageEncoder(Encoder):
    """(P, C, H, W) raw pixels -> (P, T, D).

    Raises:
        ValueError: if the patch side does not divide height and width.
    """

    def __init__(self, shape: tuple[int, ...], standardiser: Standardiser, patch: int, dim: int, blocks: int) -> None:
        super().__init__()
        channels, height, width = shape
        if height % patch or width % patch:
            raise ValueError(
                f"model.image.patch = {patch} must divide the picture's height and width, which are {height} x {width}"
            )
        self.patch, self.standardiser = patch, standardiser
        self.tokens = (height // patch) * (width // patch)
        self.network = GroupedMLP(blocks, channels * patch * patch, 2 * dim, dim)
        self.position_TD = nn.Parameter(torch.randn(self.tokens, dim) * 0.02)

    def forward(self, group: ImageGroup, layout: GroupLayout) -> Tensor:
        pixels_PCHW = group.values_PCHW
        pairs, channels, height, width = pixels_PCHW.shape
        side = self.patch
        # Statistics are per channel: bring channels last, standardise, and put the patch's pixels together.
        last_X = pixels_PCHW.permute(0, 2, 3, 1).reshape(-1, channels)
        scaled = self.standardiser(last_X, layout.block_P.repeat_interleave(height * width))
        scaled = scaled.view(pairs, height // side, side, width // side, side, channels)
        patches_NX = scaled.permute(0, 1, 3, 2, 4, 5).reshape(pairs * self.tokens, channels * side * side)
        tokens_ND = self.network(patches_NX, layout.tokens)
        return tokens_ND.unflatten(0, (pairs, self.tokens)) + self.position_TD
