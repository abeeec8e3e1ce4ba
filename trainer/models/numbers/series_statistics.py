"""Whole series in a few numbers a channel, as one token of a modality beside its grid.

What boosted trees are given. A grid shows when something was; how often, how low at worst and where to in all is
spread over its bins. All numbers of a channel are of its normal scores, so no outlier drowns them, and of what the
model was given: at a moment, of the time up to it.

Counting, adding and comparing run along the events in their order; nothing is learned before the projection.

Shapes: P pairs (sample, modality), O events, F features of the widest modality, S = P * F segments, X inputs of a
feature, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from parallel.moe.segments import Segments
from trainer.models.layers.grouped_linear import Blocks, GroupedLinear
from trainer.models.numbers.scale import NormalScores
from trainer.models.numbers.steps import STEPS, Steps

SCORES = ("mean", "min", "max", "first", "last", "spread")  # encoded by steps
OTHERS = ("seen", "count", "trend", "first_time", "last_time", "covered")  # as they are
INPUTS = len(SCORES) * STEPS + len(OTHERS)


def channel_statistics(score_O: Tensor, time_O: Tensor, by_feature: Segments) -> tuple[Tensor, Tensor]:
    """(S, 6) of `SCORES` and (S, 6) of `OTHERS`, float32, zeros for a segment without events.

    `spread` is the deviation of the scores (of the population). `count` is log(1 + n). `trend` is the slope of the
    least-squares line over time, by one deviation of the times: between -spread and spread, 0 where all events are at
    one time. Times are in horizons; `covered` is the time between the first and the last event. Of events at equal
    times the one that the record lists first is the earlier.

    Args:
        score_O, time_O: float32, sorted by segment, then time. by_feature: the segment of each event.
    """
    segments, events = by_feature.counts.shape[0], score_O.shape[0]  # not len(): a graph knows no number yet
    if not events:
        return score_O.new_zeros(segments, len(SCORES)), score_O.new_zeros(segments, len(OTHERS))
    both_O2 = torch.stack([score_O, time_O], 1)
    first_S = by_feature.start_S1[:-1].clamp_max(events - 1)
    last_S = (by_feature.start_S1[1:] - 1).clamp_min(0)
    first_S2, last_S2 = both_O2.index_select(0, first_S), both_O2.index_select(0, last_S)
    mean_S2 = by_feature.mean(both_O2)
    score, time = (both_O2 - by_feature.spread(mean_S2)).unbind(1)
    variance, variance_of_time, covariance = by_feature.mean(torch.stack([score**2, time**2, score * time], 1)).unbind(
        1
    )
    least_S2 = by_feature.min(torch.stack([score_O, -score_O], 1))
    seen_S = (by_feature.counts > 0).float()
    scores = [mean_S2[:, 0], least_S2[:, 0], -least_S2[:, 1], first_S2[:, 0], last_S2[:, 0], variance.sqrt()]
    trend = covariance / variance_of_time.sqrt().clamp_min(1e-12)
    times = [first_S2[:, 1], last_S2[:, 1], last_S2[:, 1] - first_S2[:, 1]]
    others = [seen_S, by_feature.counts.float().log1p(), trend, *times]
    return torch.stack(scores, 1) * seen_S[:, None], torch.stack(others, 1) * seen_S[:, None]


class SeriesStatistics(nn.Module):
    """Events of all series modalities -> (P, D), a token of each pair.

    Args:
        blocks: modalities. widest: F. scale: of their values.
    """

    def __init__(self, blocks: int, widest: int, scale: NormalScores, dim: int) -> None:
        super().__init__()
        self.widest, self.scale, self.steps = widest, scale, Steps()
        self.project = GroupedLinear(blocks, widest * INPUTS, dim)

    def forward(self, score_O: Tensor, time_O: Tensor, by_feature: Segments, pairs: Blocks) -> Tensor:
        """`score_O` by `scale`; `by_feature`: pair * F + channel of each event, ascending."""
        return self.projected(*channel_statistics(score_O, time_O, by_feature), pairs)

    def projected(self, scores_S6: Tensor, others_S6: Tensor, pairs: Blocks) -> Tensor:
        """What `channel_statistics` gives -> (P, D)."""
        # Of a channel without events there is no step either, and `seen` says so.
        steps_SX = (self.steps(scores_S6) * others_S6[:, :1, None]).flatten(1)
        features_SX = torch.cat([steps_SX, others_S6], 1)
        return self.project(features_SX.view(-1, self.widest * INPUTS), pairs)  # type: ignore[no-any-return]


def statistics_reference(score_R: Sequence[float], time_R: Sequence[float]) -> dict[str, float]:
    """The obvious loops over the events of one channel, by time."""
    n = len(score_R)
    if not n:
        return dict.fromkeys((*SCORES, *OTHERS), 0.0)
    mean, middle = sum(score_R) / n, sum(time_R) / n
    spread = math.sqrt(sum((score - mean) ** 2 for score in score_R) / n)
    spread_of_time = math.sqrt(sum((time - middle) ** 2 for time in time_R) / n)
    together = sum((s - mean) * (t - middle) for s, t in zip(score_R, time_R, strict=True)) / n
    return {
        **{"mean": mean, "min": min(score_R), "max": max(score_R), "first": score_R[0], "last": score_R[-1]},
        **{"spread": spread, "seen": 1.0, "count": math.log(1 + n)},
        "trend": together / spread_of_time if len(set(time_R)) > 1 else 0.0,
        **{"first_time": time_R[0], "last_time": time_R[-1], "covered": time_R[-1] - time_R[0]},
    }
