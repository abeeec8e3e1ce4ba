"""What timed objects and codes ask for: how many tokens they become and where these stand, and their arithmetic.

A timed modality has no fixed number of tokens, so a batch's are counted from its objects. `FlopCounter` adds this up
with everything else.

Shape legend: B records, M modalities of the data, G of the group, T bins, O objects.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data_shards import Batch, DatasetSchema
from trainer.config.sections import ModelConfig
from trainer.models.layers.token_layout import bin_of_time


@dataclass(frozen=True)
class Objects:
    """One batch group of timed modalities.

    Attributes:
        indices: numbers of its modalities. each: tokens of an encoded object.
        irregularity: how the objects of a pair become its tokens.
    """

    name: str
    indices: list[int]
    each: int
    irregularity: str

    @property
    def on_grid(self) -> bool:
        """Whether each pair has a token for every bin, however many objects there are."""
        return self.irregularity != "tokens"


@dataclass(frozen=True)
class Counted:
    """Tokens of all pairs of a group, the sum of their squared numbers, and how many stand where (B, T)."""

    tokens: Tensor
    squares: Tensor
    where_BT: Tensor


@dataclass(frozen=True)
class ExpectedTokens:
    """Of a record that has them, the tokens of each timed modality (float64 [M], 0 of others): their mean number, its
    variance, and the variance of those in one bin, where times are spread evenly."""

    mean_M: Tensor
    variance_M: Tensor
    bin_variance_M: Tensor

    @staticmethod
    def of(number: dict[int, tuple[Objects, float, float]], modalities: int, bins: int) -> ExpectedTokens:
        """From mean and deviation of the number of objects, by number of the modality."""
        mean_M, variance_M, bin_M = torch.zeros(3, modalities, dtype=torch.float64).unbind()
        for index, (objects, mean, std) in number.items():
            if objects.on_grid:
                mean_M[index] = bins
                continue
            # Each object falls into a bin by chance.
            in_bin = (std / bins) ** 2 + mean * (1 - 1 / bins) / bins
            mean_M[index], variance_M[index] = mean * objects.each, (std * objects.each) ** 2
            bin_M[index] = in_bin * objects.each**2
        return ExpectedTokens(mean_M, variance_M, bin_M)


def count_objects(objects: Objects, batch: Batch, group: Any, schema: DatasetSchema, bins: int) -> Counted:
    """Of the objects of a batch that an encoder's group has, float64, on its device; nobody waits for it."""
    present_BG = batch.present_BM[:, objects.indices]
    if objects.on_grid:
        pairs_B = present_BG.double().sum(1)
        return Counted(pairs_B.sum() * bins, pairs_B.sum() * bins**2, pairs_B[:, None].expand(-1, bins))
    sample_O, modality_O, time_O = group.sample_P, group.modality_P, None
    if hasattr(group, "ids_O"):
        number_P, rows = group.offsets.diff(), len(group.ids_O)
        sample_O = torch.repeat_interleave(sample_O, number_P, output_size=rows)
        modality_O = torch.repeat_interleave(modality_O, number_P, output_size=rows)
        time_O = group.times_O
    else:
        time_O = group.times_P
    horizon_M = torch.tensor([spec.horizon or 1.0 for spec in schema.modalities]).to(time_O.device, non_blocking=True)
    bin_O = bin_of_time(time_O / horizon_M[modality_O], bins)
    records, modalities = batch.present_BM.shape
    count_BM = _count(sample_O * modalities + modality_O, records * modalities).view(records, modalities)
    count_BG = count_BM[:, objects.indices] * objects.each
    empty_BG = present_BG & (count_BG == 0)
    count_BG = count_BG + empty_BG
    where_BT = _count(sample_O * bins + bin_O, records * bins).view(records, bins) * objects.each
    where_BT[:, -1] += empty_BG.double().sum(1)
    return Counted(count_BG.sum(), count_BG.square().sum(), where_BT)


def _count(index_O: Tensor, size: int) -> Tensor:
    """float64 [size]: how often each number is there. Whole numbers add up alike in any order."""
    ones_O = torch.ones_like(index_O, dtype=torch.float64)
    return torch.zeros(size, dtype=torch.float64, device=index_O.device).index_add_(0, index_O, ones_O)


@dataclass(frozen=True)
class EncoderCost:
    """What an object asks of an encoder that is its modality's own.

    A text or signal of so many bytes or samples has length / `stride` + `extra` positions, but no more than `longest`;
    a picture has one. Arithmetic and what is kept for the backward pass are polynomials of positions.

    Attributes:
        tokens, width: that an object becomes. flops: of a forward pass; kept: elements; each once, for a position, and
            for its square.
        passes: forward passes that a step is worth: 1 of what is frozen, 3 of what is trained.
    """

    tokens: int
    width: int
    flops: tuple[float, float, float]
    kept: tuple[float, float, float]
    passes: int
    stride: float = 1.0
    extra: float = 1.0
    longest: float = 1.0

    def positions(self, length_P: Tensor) -> Tensor:
        """(P,) float64 of objects of these lengths."""
        return (length_P.double() / self.stride + self.extra).clamp_max(self.longest)

    def projection(self, dim: int) -> float:
        """FLOPs of bringing an object's tokens to the model's width."""
        return 2.0 * self.tokens * self.width * dim

    def forward_flops(self, objects: float, positions: float, squares: float) -> float:
        """Of so many objects, which have so many positions in all."""
        return sum(k * n for k, n in zip(self.flops, (objects, positions, squares), strict=True))

    def kept_elements(self, objects: float, positions: float, squares: float) -> float:
        """For the backward pass."""
        return sum(k * n for k, n in zip(self.kept, (objects, positions, squares), strict=True))


def over_time_flops(objects: Objects, config: ModelConfig, number: float, rows: float) -> float:
    """Of `number` encoded objects that become `rows` tokens."""
    own, dim = config.objects, config.dim
    if not objects.on_grid:
        return number * 2 * own.time_dim * dim
    total = 0.0
    if objects.each > 1:
        total += number * own.queries * (4 * objects.each * dim + 2 * dim * dim)
    if objects.irregularity != "mtand":
        total += rows * 2 * own.kernel * (dim + 2) * dim
    if objects.irregularity != "imputation":
        queries = config.bins * own.heads
        total += 2 * queries * own.time_dim**2 + number * 2 * queries * (own.time_dim + dim)
        total += rows * 2 * (own.heads * dim + 1) * dim
    return total + (rows * 4 * dim * dim if objects.irregularity == "utde" else 0.0)
