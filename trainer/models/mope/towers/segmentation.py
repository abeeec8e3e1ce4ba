"""Dense prediction on a prompted Swin: which pixels does the text speak of?

The same frozen towers and prompts as for classification; instead of one vector, the maps after each stage go to a
UperNet head (Xiao et al. 2018, from transformers), which is trained with the prompts. An exploration beyond
classification, as in the paper. The masks are a modality of the data: pictures of class numbers that no tower reads.

Shapes: B records, P those with a mask, C classes of a pixel, H x W pixels.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from data_shards import Batch, DatasetSchema, ImageGroup, ModalitySpec
from data_shards.records.statistics import SplitStatistics
from parallel import summed_over_ranks
from trainer.config.mope import MopeConfig
from trainer.models.layers.ragged import pick_rows
from trainer.models.layers.staging import plan_of
from trainer.models.mope.towers.inputs import Seen, places_of
from trainer.models.mope.towers.model import TowerModel
from trainer.models.mope.towers.sites import Flow
from trainer.models.mope.towers.tower import Tower
from trainer.models.output import Fused
from trainer.models.pretrained.loading.backbone import BackboneError

UNLABELLED = 255
CHANNELS_OF_A_GROUP = 4


@dataclass(frozen=True)
class Masks:
    """Rows of a batch that have a mask with a labelled pixel, and the pairs of its group where these lie."""

    rows_P: Tensor
    place_P: Tensor


class PromptedSegmenter(TowerModel):
    """Pictures and texts -> a class for every pixel, as section `mope.mask` says.

    Raises:
        BackboneError: the picture tower is no Swin, is not the one that is prompted, or the data have no such masks.
    """

    measures = ("loss", "iou", "pixel_accuracy")

    def __init__(
        self,
        schema: DatasetSchema,
        statistics: SplitStatistics,
        config: MopeConfig,
        seed: int,
        weights: bool = True,
    ) -> None:
        assert config.mask is not None
        spec = _mask_modality(schema, config.mask.modality)
        super().__init__(schema, [], statistics, config, seed, weights=weights)
        tower = self._towers().get("image")
        if tower is None or tower.family != "swin" or config.prompted != "image":
            raise BackboneError("mope.mask needs a swin tower that is prompted: mope.image and mope.prompted=image")
        if config.missing != "refuse":
            raise BackboneError(
                f"mope.mask needs a picture in every record: mope.missing={config.missing} has no map to offer"
            )
        if spec.shape[1:] != tower.picture_shape[1:]:
            raise BackboneError(
                f"masks in modality {spec.name} have {spec.shape[1:]} pixels (height, width), and the tower's pictures "
                f"{tower.picture_shape[1:]}: pack both at one size"
            )
        self._mask_group, self._mask_modality = spec.group, schema.numbers[spec.name]
        self.classes = config.mask.classes
        self.mask_head = _uper_head(tower, self.classes, config.mask.hidden)
        self._maps: list[Tensor] = []

    def masks(self, batch: Batch) -> tuple[Tensor, Fused]:
        """Logits (B, C, H, W) at the pictures' size, and what the towers give besides."""
        output = super().forward(batch)
        _, height, width = self.tower("image").picture_shape
        maps, self._maps = self._maps, []
        if not len(batch):
            unused = torch.stack([parameter.sum() for parameter in self.mask_head.parameters()]).sum() * 0
            return unused.expand(0, self.classes, height, width).float(), output
        full = functional.interpolate(self.mask_head(maps), size=(height, width), mode="bilinear", align_corners=False)
        return full.float(), output

    def forward(self, batch: Batch) -> Fused:
        """No logits of tasks; the loss over all ranks' records, and measures of each record (NaN without a mask)."""
        logits_BCHW, output = self.masks(batch)
        rows_P, mask_PHW = self.true_masks(batch)
        logits_PCHW = pick_rows(logits_BCHW, rows_P)
        loss_P = mask_loss(logits_PCHW, mask_PHW)
        losses, empty = dict(output.losses), frozenset[str]()
        if self.training and torch.is_grad_enabled():
            sums = torch.stack([loss_P.sum() + logits_BCHW.sum() * 0, loss_P.new_full((), len(loss_P))])
            shared = summed_over_ranks(sums)
            losses["mask"] = shared[0] / shared[1].detach().clamp_min(1)
            # The host waits for the number, as a loss of no mask at all is no loss of 0.
            empty = frozenset() if float(shared[1].detach()) else frozenset({"mask"})
        found_P = {"loss": loss_P.detach(), **agreement(logits_PCHW.detach(), mask_PHW)}
        measures = {
            name: value_P.new_full((len(batch),), torch.nan).index_copy(0, rows_P, value_P)
            for name, value_P in found_P.items()
        }
        return Fused({}, [], output.pooled_BX, losses, output.experts, measures, empty)

    def true_masks(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Rows (P,) of the batch that have a mask with a labelled pixel, and int64 class numbers (P, H, W)."""
        group, masks = batch.groups[self._mask_group], plan_of(self, batch)["mask"]
        assert isinstance(group, ImageGroup)
        return masks.rows_P, group.values_PCHW.index_select(0, masks.place_P)[:, 0].long()

    def lay_out(self, batch: Batch) -> dict[str, Any]:
        """Besides what the towers read, where the masks are.

        Raises:
            ValueError: a pixel has a class that the recipe does not know, or a record lacks what a tower reads.
        """
        group = batch.groups[self._mask_group]
        assert isinstance(group, ImageGroup)
        place_P = places_of(group, self._mask_modality)
        rows_P, mask_PHW = group.sample_P[place_P], group.values_PCHW[place_P][:, 0].long()
        wrong_PHW = (mask_PHW >= self.classes) & (mask_PHW != UNLABELLED)
        if wrong_PHW.any():
            row = int(wrong_PHW.flatten(1).any(1).nonzero()[0])
            raise ValueError(
                f"the mask of record {batch.keys[int(rows_P[row])]} has class {int(mask_PHW[row][wrong_PHW[row]][0])}, "
                f"and mope.mask.classes is {self.classes}: classes are 0 to {self.classes - 1}, {UNLABELLED} is "
                "unlabelled"
            )
        known_P = (mask_PHW != UNLABELLED).flatten(1).any(1)
        return super().lay_out(batch) | {"mask": Masks(rows_P[known_P], place_P[known_P])}

    @property
    def label_modality(self) -> str:
        """What is a label here."""
        return self.schema.modality_names[self._mask_modality]

    def _tower_vector(self, batch: Batch, what: str, seen: Seen, flow: Flow | None) -> Tensor:
        if what != "image":
            return super()._tower_vector(batch, what, seen, flow)
        tower = self.tower(what)
        self._arm(tower, what, flow)
        try:
            self._maps = tower.feature_maps(seen.pictures(batch.groups[self.group[what]]))
        finally:
            self._arm(tower, what, None)
        return self._maps[-1].mean((2, 3))


def _mask_modality(schema: DatasetSchema, name: str) -> ModalitySpec:
    if name not in schema.numbers:
        raise BackboneError(f"mope.mask.modality={name}, and data set {schema.name} has no such modality")
    spec = schema.modalities[schema.numbers[name]]
    if spec.kind != "image" or spec.timed or spec.dtype != "uint8" or spec.shape[0] != 1:
        raise BackboneError(
            f"mope.mask.modality={name} must be pictures of class numbers, uint8 with one channel and no time, and it "
            f"is {'timed ' * spec.timed}{spec.kind} {spec.dtype} {spec.shape}"
        )
    return spec


def _uper_head(tower: Tower, classes: int, hidden: int) -> nn.Module:
    from transformers import UperNetConfig
    from transformers.models.upernet.modeling_upernet import UperNetHead

    widths = [site.width for site in tower.sites if site.index == 0]
    # A stage's map is taken after it was merged into the next one's width.
    maps = [*widths[1:], widths[-1]]
    # A copy: the head's configuration resets its backbone's choice of attention.
    backbone: Any = copy.deepcopy(tower.model.config)
    settings: Any = UperNetConfig(backbone_config=backbone, hidden_size=hidden, pool_scales=[1, 2, 3])
    settings.num_labels = classes
    head: nn.Module = UperNetHead(settings, maps)
    for module in list(head.modules()):
        for name, part in module.named_children():
            if isinstance(part, nn.BatchNorm2d):
                # Batch norm would mix the records of a batch, and its statistics would differ between ranks.
                setattr(module, name, nn.GroupNorm(max(1, hidden // CHANNELS_OF_A_GROUP), hidden))
    return head


def mask_loss(logits_PCHW: Tensor, mask_PHW: Tensor) -> Tensor:
    """(P,) cross-entropy of labelled pixels, and Dice of the classes from 1 on: small shapes count as much as large."""
    known_PHW = mask_PHW != UNLABELLED
    each_PHW = functional.cross_entropy(logits_PCHW, mask_PHW, ignore_index=UNLABELLED, reduction="none")
    entropy_P = each_PHW.flatten(1).sum(1) / known_PHW.flatten(1).sum(1).clamp_min(1)
    said_PCHW = logits_PCHW.softmax(1) * known_PHW[:, None]
    true_PCHW = _one_hot(mask_PHW, logits_PCHW.shape[1])
    overlap_PC = 2 * (said_PCHW * true_PCHW).flatten(2).sum(2) + 1
    dice_PC = 1 - overlap_PC / (said_PCHW.flatten(2).sum(2) + true_PCHW.flatten(2).sum(2) + 1)
    return entropy_P + dice_PC[:, 1:].mean(1)


def _one_hot(mask_PHW: Tensor, classes: int) -> Tensor:
    """(P, C, H, W) float, zeros where unlabelled."""
    numbers_C = torch.arange(classes, device=mask_PHW.device)
    return (mask_PHW[:, None] == numbers_C[:, None, None]).float()


def agreement(logits_PCHW: Tensor, mask_PHW: Tensor) -> dict[str, Tensor]:
    """(P,) each: intersection over union, mean over the classes from 1 on that are there or said; right pixels.

    Only labelled pixels count; 1 where nothing is there and nothing is said.
    """
    known_PHW = mask_PHW != UNLABELLED
    said_PHW = torch.where(known_PHW, logits_PCHW.argmax(1), mask_PHW)
    said, true = (_one_hot(x_PHW, logits_PCHW.shape[1])[:, 1:].bool().flatten(2) for x_PHW in (said_PHW, mask_PHW))
    union_PC, both_PC = (said | true).sum(2), (said & true).sum(2)
    met_PC = union_PC > 0
    share_PC = torch.where(met_PC, both_PC / union_PC.clamp_min(1), torch.zeros_like(both_PC, dtype=torch.float32))
    iou_P = torch.where(
        met_PC.any(1), share_PC.sum(1) / met_PC.sum(1).clamp_min(1), torch.ones(len(mask_PHW)).to(share_PC)
    )
    right_P = ((said_PHW == mask_PHW) & known_PHW).flatten(1).sum(1) / known_PHW.flatten(1).sum(1).clamp_min(1)
    return {"iou": iou_P, "pixel_accuracy": right_P}
