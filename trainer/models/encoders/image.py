"""Images -> patch tokens, one launch for all image modalities of one shape.

Patches are embedded with learned positions, each by itself (`patches`) or by stages of residual convolutions that see
what is around it (`convolutions`); the attention of the fusion blocks does the rest.

Shape legend: P pairs (sample, modality), C channels, H x W pixels, s patch side, T = H/s * W/s tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from data_shards import ImageGroup
from trainer.config.sections import ImageEncoderConfig
from trainer.models.convolutions.pictures import PictureLevel, squares
from trainer.models.convolutions.sizes import merges_of, picture_stages
from trainer.models.convolutions.stages import Stages
from trainer.models.encoders.layout import Encoder, GroupLayout
from trainer.models.layers.grouped_linear import Blocks, GroupedLinear, GroupedMLP
from trainer.models.layers.standardise import Standardiser


class ImageEncoder(Encoder):
    """(P, C, H, W) raw pixels -> (P, T, D).

    Raises:
        ValueError: if the patch side does not divide height and width.
    """

    def __init__(
        self, shape: tuple[int, ...], standardiser: Standardiser, config: ImageEncoderConfig, dim: int, blocks: int
    ) -> None:
        super().__init__()
        channels, height, width = shape
        patch = config.patch
        if height % patch or width % patch:
            raise ValueError(
                f"model.image.patch = {patch} must divide the picture's height and width, which are {height} x {width}"
            )
        self.standardiser = standardiser
        self.tokens = (height // patch) * (width // patch)
        self.network: nn.Module
        if config.network == "convolutions":
            self.network = PictureStages(shape, config, dim, blocks)
            self.side = self.network.sides[0]
        else:
            self.network, self.side = GroupedMLP(blocks, channels * patch * patch, 2 * dim, dim), patch
        self.position_TD = nn.Parameter(torch.randn(self.tokens, dim) * 0.02)

    def forward(self, group: ImageGroup, layout: GroupLayout) -> Tensor:
        pixels_PCHW = group.values_PCHW
        pairs, channels, height, width = pixels_PCHW.shape
        # Statistics are per channel: bring channels last, standardise, and put the patch's pixels together.
        last_X = pixels_PCHW.permute(0, 2, 3, 1).reshape(-1, channels)
        scaled = self.standardiser(last_X, layout.block_P.repeat_interleave(height * width))
        patches_NX = squares(scaled.view(pairs, height, width, channels), self.side)
        network = self.network
        blocks = layout.pairs if isinstance(network, PictureStages) else layout.tokens
        tokens_ND = network(patches_NX, blocks)
        return tokens_ND.unflatten(0, (pairs, self.tokens)) + self.position_TD  # type: ignore[no-any-return]


class PictureStages(nn.Module):
    """(P * h * w, C * side * side) squares of pixels -> (P * T, D)."""

    def __init__(self, shape: tuple[int, ...], config: ImageEncoderConfig, dim: int, blocks: int) -> None:
        super().__init__()
        channels, self.height, self.width = shape
        self.sides = merges_of(config.patch)
        sizes = picture_stages(config, channels, dim)
        self.stages = Stages(blocks, sizes)
        self.output = GroupedLinear(blocks, sizes.widths[-1], dim)

    def forward(self, x_NX: Tensor, pictures: Blocks) -> Tensor:
        """`pictures` are those of each modality."""
        levels, height, width = [], self.height, self.width
        for side in self.sides:
            height, width = height // side, width // side
            levels.append(PictureLevel(pictures.times(height * width), height, width))
        return self.output(self.stages(x_NX, levels), levels[-1].blocks)  # type: ignore[no-any-return]
