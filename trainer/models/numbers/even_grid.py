"""Series on a grid of even times, each record's own: what fixed kernels can be laid on.

A series' grid has as many moments as its densest channel has events, from its first event to its last, so that one
whose channels were all observed at even times lies on it unchanged. Between two events of a channel a straight line is
read, before its first and after its last one that event; a channel without events is 0. Of events at equal times the
last one counts.

Shapes: P pairs (sample, modality), O events, F channels of the widest modality, S = P * F segments, R moments of all
grids, C cells: R * F, of each pair all of its channels' moments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

CELL_BYTES = 88  # of a cell while it is laid, most of them places as int64
ROUNDING = 1e-3  # of a step: so near to a moment are float32 times that are even


def moments_of_pairs(count_S: Tensor, widest: int) -> Tensor:
    """(P,) int64, moments of each pair's grid, from the events of each segment."""
    return count_S.view(-1, widest).amax(1)


def on_even_grid(
    score_O: Tensor, time_O: Tensor, by_feature: Any, widest: int, start_P1: Tensor, pair_R: Tensor
) -> Tensor:
    """(R, F), float32.

    Args:
        score_O, time_O: sorted by segment, then time. by_feature: `Segments` of events, pair * F + channel.
        start_P1: where each pair's moments begin, and how many there are. pair_R: the pair of each moment.
    """
    moments = pair_R.shape[0]
    count_P, segment_O = start_P1.diff(), by_feature.segment_N
    begin_S1 = by_feature.start_S1
    seen_S, pair_O = begin_S1.diff() > 0, segment_O // widest
    # One more event, which stands for none.
    score_O, time_O = (torch.cat([x_O.float(), x_O.new_zeros(1).float()]) for x_O in (score_O, time_O))
    none = score_O.shape[0] - 1
    first_S, last_S = time_O[begin_S1[:-1]], time_O[(begin_S1[1:] - 1).clamp_min(0)]
    first_P = torch.where(seen_S, first_S, torch.inf).view(-1, widest).amin(1).double()
    last_P = torch.where(seen_S, last_S, -torch.inf).view(-1, widest).amax(1).double()
    each_P = (count_P - 1).clamp_min(0) / (last_P - first_P).clamp_min(1e-30)  # moments a unit of time
    place_O = (time_O[:-1].double() - first_P[pair_O]) * each_P[pair_O]
    place_O = torch.where((place_O - place_O.round()).abs() < ROUNDING, place_O.round(), place_O)
    # An event is in the cell of the first moment that is not before it.
    near_O = torch.minimum(place_O.ceil().long(), count_P[pair_O] - 1)
    cell_O = start_P1[pair_O] * widest + (segment_O % widest) * count_P[pair_O] + near_O
    upto_C = by_feature.of(cell_O, moments * widest, True).start_S1[1:]  # events in this cell or an earlier one
    at_R = torch.arange(moments, device=pair_R.device) - start_P1[pair_R]
    channel_F = torch.arange(widest, device=pair_R.device)
    cell_RF = start_P1[pair_R, None] * widest + channel_F * count_P[pair_R, None] + at_R[:, None]
    segment_RF = pair_R[:, None] * widest + channel_F
    begin_RF, end_RF = begin_S1[:-1][segment_RF], begin_S1[1:][segment_RF]
    early_RF = torch.maximum(upto_C[cell_RF] - 1, begin_RF)
    late_RF = torch.minimum(early_RF + 1, end_RF - 1)
    early_RF, late_RF = (torch.where(end_RF > begin_RF, x_RF, none) for x_RF in (early_RF, late_RF))
    place_O = torch.cat([place_O, place_O.new_zeros(1)])
    way_RF = (place_O[late_RF] - place_O[early_RF]).clamp_min(1e-9)
    share_RF = ((at_R[:, None] - place_O[early_RF]) / way_RF).clamp(0, 1).float()
    return torch.lerp(score_O[early_RF], score_O[late_RF], share_RF)


def even_grid_reference(events: Sequence[Sequence[tuple[float, float]]]) -> list[list[float]]:
    """The obvious loops over one series: of each channel its (time, value) by time -> of each moment its values."""
    moments = max(map(len, events), default=0)
    times = [time for channel in events for time, _ in channel]
    found = []
    for moment in range(moments):
        now = min(times) + (max(times) - min(times)) * moment / max(moments - 1, 1)
        found.append([_value(channel, now) for channel in events])
    return found


def _value(channel: Sequence[tuple[float, float]], now: float) -> float:
    if not channel:
        return 0.0
    before = [event for event in channel if event[0] <= now]
    after = [event for event in channel if event[0] > now]
    if not before or not after:
        return before[-1][1] if before else after[0][1]
    (early, below), (late, above) = before[-1], after[0]
    return below + (above - below) * (now - early) / (late - early)
