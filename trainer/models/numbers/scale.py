"""Numbers on the scale of normal scores, by the training part's quantiles: how far out a value lies, and not how large.

A few values a thousand times as large as the rest stretch means and deviations until nothing else is told apart;
quantiles they do not touch. A value's score is that of the normal distribution at the share of the training part's
values that are smaller, by straight lines between the quantiles that the manifest holds. Where a stretch of quantiles
is one and the same value (a count that is mostly 0), it has the score of the middle of the stretch.

Scores end at +-`END`: those of the smallest and of the largest training value, which also stand for all beyond them.
A channel that was never observed, or never varied, is 0.

Shapes: M modalities of a group, F features, K quantiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from data_shards.records.distributions.sketch import PROBABILITIES
from data_shards.records.statistics import ModalityStatistics
from trainer.models.layers.standardise import Constant

BEYOND = 0.0005  # of the values lie beyond the first and beyond the last quantile, as the ends stand for them
END = 3.2905267  # score of the largest value


class NormalScores(nn.Module):
    """Value -> its normal score, by (modality of the group, feature); to be called as `layers.standardise.Standardiser`
    is.

    Args:
        tables: of each modality of the group, by name.

    Raises:
        ValueError: data that were packed before quantiles were kept.
    """

    def __init__(self, tables: dict[str, ModalityStatistics]) -> None:
        super().__init__()
        for name, table in tables.items():
            if len(table.quantiles) != len(table.mean):
                raise ValueError(
                    f"the statistics of modality {name} hold no quantiles, as data packed by an earlier version do "
                    "not: pack the data again, or set model.scale=standard, model.vector.numbers=linear and "
                    "model.series.statistics=none"
                )
        knot_MFK = _padded([table.quantiles for table in tables.values()])
        score_MFK = scores_of(knot_MFK)
        gap_MFK = knot_MFK.diff(dim=2)
        slope_MFK = torch.where(gap_MFK > 0, score_MFK.diff(dim=2) / gap_MFK.clamp_min(1e-38), 0.0)
        self.knot_MFK, self.score_MFK = Constant(knot_MFK), Constant(score_MFK)
        # Behind the last one nothing grows.
        self.slope_MFK = Constant(torch.nn.functional.pad(slope_MFK, (0, 1)))

    def forward(self, value: Tensor, block: Tensor, feature: Tensor | None = None) -> Tensor:
        """One leading row per entry of `block`; `feature` names the column of each row, else a row holds them all."""
        index = (block,) if feature is None else (block, feature)
        knot = self.knot_MFK()[index]
        value = torch.maximum(value.float(), knot[..., 0])
        below = ((value[..., None] >= knot).sum(-1, keepdim=True) - 1).clamp_min(0)

        def at(table: Tensor) -> Tensor:
            return table.gather(-1, below)[..., 0]

        return at(self.score_MFK()[index]) + (value - at(knot)) * at(self.slope_MFK()[index])


def scores_of(knot_MFK: Tensor) -> Tensor:
    """The scores of quantiles, which may be equal."""
    p_K = torch.tensor(PROBABILITIES, dtype=torch.float64)
    first = torch.searchsorted(knot_MFK, knot_MFK)
    last = torch.searchsorted(knot_MFK, knot_MFK, right=True) - 1
    middle = ((p_K[first] + p_K[last]) / 2).clamp(BEYOND, 1 - BEYOND)
    return torch.special.ndtri(middle).float()


def _padded(rows: Sequence[tuple[tuple[float, ...], ...]]) -> Tensor:
    """(M, F, K); what a modality has fewer features than the widest of is 0."""
    table = torch.zeros(len(rows), max(len(row) for row in rows), len(PROBABILITIES))
    for index, row in enumerate(rows):
        table[index, : len(row)] = torch.tensor(row)
    return table


def score_reference(value: float, quantiles: Sequence[float]) -> float:
    """The obvious loop over the quantiles of one channel."""
    normal = torch.distributions.Normal(0.0, 1.0)

    def score(p: float) -> float:
        return float(normal.icdf(torch.tensor(min(max(p, BEYOND), 1 - BEYOND))))

    # Each value once, with the middle of the probabilities at which it stands.
    stretches: dict[float, list[float]] = {}
    for quantile, p in zip(quantiles, PROBABILITIES, strict=True):
        stretches.setdefault(quantile, []).append(p)
    knots = [(quantile, score((p[0] + p[-1]) / 2)) for quantile, p in stretches.items()]
    for (low, below), (high, above) in pairwise(knots):
        if low <= value < high:
            return below + (above - below) * (value - low) / (high - low)
    return knots[0][1] if value < knots[0][0] else knots[-1][1]
