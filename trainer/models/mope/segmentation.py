"""Dense prediction on a prompted Swin: which pixels does the text speak of?

The same frozen towers and prompts as for classification; instead of one vector, the maps after each stage go to a
UperNet head (Xiao et al. 2018, from transformers), which is trained with the prompts. An exploration beyond
classification, as in the paper: a model to build on, with no data set of masks and no job of its own.

Shapes: B records, C classes of a pixel, D channels, H x W pixels.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from data_shards import Batch, DatasetSchema
from data_shards.statistics import SplitStatistics
from trainer.models.mope.seen import Seen
from trainer.models.mope.sites import Flow
from trainer.models.mope.tower_model import TowerModel
from trainer.models.mope.tower_sources import BackboneError
from trainer.models.mope.towers import Tower
from trainer.mope_sections import MopeConfig


class PromptedSegmenter(TowerModel):
    """Pictures and texts -> a class for every pixel.

    Args:
        classes: C, 1 for a mask. hidden: channels of the head.

    Raises:
        BackboneError: the picture tower is no Swin, or is not the one that is prompted.
    """

    def __init__(
        self,
        schema: DatasetSchema,
        statistics: SplitStatistics,
        config: MopeConfig,
        seed: int,
        classes: int = 1,
        hidden: int = 64,
    ) -> None:
        super().__init__(schema, [], statistics, config, seed)
        from transformers import UperNetConfig
        from transformers.models.upernet.modeling_upernet import UperNetHead

        tower = self._towers().get("image")
        if tower is None or tower.family != "swin" or "image" not in self.hosts:
            raise BackboneError("segmentation needs a swin tower that is prompted: mope.image and mope.prompted=image")
        widths = [site.width for site in tower.sites if site.index == 0]
        # A stage's map is taken after it was merged into the next one's width.
        maps = [*widths[1:], widths[-1]]
        # A copy: the head's configuration resets its backbone's choice of attention.
        backbone: Any = copy.deepcopy(tower.model.config)
        settings: Any = UperNetConfig(backbone_config=backbone, hidden_size=hidden, pool_scales=[1, 2, 3])
        settings.num_labels = classes
        self.mask_head: nn.Module = UperNetHead(settings, maps)
        self._maps: list[Tensor] = []

    def masks(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits (B, C, H, W) at the pictures' size, and further terms of the loss."""
        output = self(batch)
        _, height, width = self._towers()["image"].picture_shape
        coarse = self.mask_head(self._maps)
        self._maps = []
        full = functional.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
        return full.float(), output.losses

    def _tower_vector(self, tower: Tower, what: str, seen: Seen, flow: Flow | None) -> Tensor:
        if what != "image":
            return super()._tower_vector(tower, what, seen, flow)
        self._arm(tower, what, flow)
        try:
            self._maps = tower.feature_maps(seen.inputs[0])
        finally:
            self._arm(tower, what, None)
        return self._maps[-1].mean((2, 3))


def mask_loss(logits_BHW: Tensor, mask_BHW: Tensor) -> Tensor:
    """Cross-entropy and Dice: small shapes count as much as large ones."""
    probability_BHW = logits_BHW.sigmoid()
    overlap_B = 2 * (probability_BHW * mask_BHW).flatten(1).sum(1) + 1
    dice = 1 - (overlap_B / (probability_BHW.flatten(1).sum(1) + mask_BHW.flatten(1).sum(1) + 1)).mean()
    return functional.binary_cross_entropy_with_logits(logits_BHW, mask_BHW) + dice


def intersection_over_union(logits_BHW: Tensor, mask_BHW: Tensor) -> Tensor:
    """(B,) of the pixels with a positive logit; 1 where both are empty."""
    said, true = logits_BHW > 0, mask_BHW > 0.5
    union_B = (said | true).flatten(1).sum(1)
    return torch.where(union_B > 0, (said & true).flatten(1).sum(1) / union_B.clamp_min(1), torch.ones_like(union_B))
