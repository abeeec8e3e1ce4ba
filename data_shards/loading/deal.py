"""A step's records dealt to ranks and micro-batches so that each gets about as many tokens, not as many records.

Every rank deals the same records with the same costs by integer arithmetic alone, so nobody has to tell anybody.
Neighbours in storage stay together, as a chunk is read whole: records are cut into stretches where their summed cost
is nearest to what the parts are to hold, then at each cut one record of the left part changes places with one of the
right part, whichever pair close to the cut brings the sums nearest. Records that make half of a part by themselves,
and all where there are two a part or fewer, go first, one by one to the emptiest part, the largest first (LPT, Graham
1969).

Shapes: N records in storage order, P parts, C cuts between two parts.
"""

from __future__ import annotations

import heapq
from functools import cache

import numpy as np

NEAR = 8  # records on each side of a cut that may change places
PASSES = 2  # over all cuts; the second one mends what the first one's neighbours left
CLOSE_ENOUGH = 100  # sums within 1/100 of a part's mean cost are left, so that few records leave their stretch


def deal(cost_N: np.ndarray, load_P: np.ndarray) -> np.ndarray:
    """int64 [N]: the part of each record.

    Args:
        cost_N: int64, what each record costs, at least 1. load_P: int64, what each part holds already.
    """
    parts, load_P = len(load_P), load_P.astype(np.int64)
    total = int(load_P.sum()) + int(cost_N.sum())
    part_N = np.zeros(len(cost_N), np.int64)
    alone_N = (2 * parts * cost_N > total) | (len(cost_N) <= 2 * parts)
    large, rest = np.flatnonzero(alone_N), np.flatnonzero(~alone_N)
    if len(large):
        part_N[large] = _largest_first(cost_N[large], load_P)
        np.add.at(load_P, part_N[large], cost_N[large])
    if len(rest):
        part_N[rest] = _stretches(cost_N[rest], load_P, total // parts // CLOSE_ENOUGH)
    return part_N


def _largest_first(cost_N: np.ndarray, load_P: np.ndarray) -> np.ndarray:
    """Each record to the part that is the emptiest when its turn comes."""
    heap = [(load, part) for part, load in enumerate(load_P.tolist())]
    heapq.heapify(heap)
    part_N = np.empty(len(cost_N), np.int64)
    costs = cost_N.tolist()
    for number in np.argsort(-cost_N, kind="stable").tolist():
        load, part = heap[0]
        part_N[number] = part
        heapq.heapreplace(heap, (load + costs[number], part))
    return part_N


def _stretches(cost_N: np.ndarray, load_P: np.ndarray, close: int) -> np.ndarray:
    """Consecutive stretches of records up to one level in all parts, mended at the cuts."""
    total = int(cost_N.sum())
    end_P = np.cumsum(_room(load_P, total))
    # Whole numbers leave a little over, which is spread; the last part ends with the last record.
    end_P = end_P * total // max(1, int(end_P[-1]))
    middle_N = 2 * np.cumsum(cost_N) - cost_N  # doubled, to stay whole
    cut_C = np.searchsorted(middle_N, 2 * end_P[:-1], side="right")
    order_N = np.arange(len(cost_N))
    for number in range(2 * PASSES):
        # Every other cut: two cuts beside each other would move the same records.
        _mend(order_N, cost_N, cut_C, end_P[:-1], np.arange(number % 2, len(cut_C), 2), close)
    part_N = np.empty(len(cost_N), np.int64)
    part_N[order_N] = np.repeat(np.arange(len(load_P)), np.diff(cut_C, prepend=0, append=len(cost_N)))
    return part_N


def _room(load_P: np.ndarray, total: int) -> np.ndarray:
    """How much each part takes if `total` fills the emptiest ones up to one level, rounded down."""
    sorted_P = np.sort(load_P)
    filled_P = total + np.cumsum(sorted_P)
    number_P = np.arange(1, len(load_P) + 1)
    # The most parts that can be filled to the level of the fullest of them.
    last = int(np.flatnonzero(filled_P >= sorted_P * number_P)[-1])
    return np.maximum(0, int(filled_P[last]) // (last + 1) - load_P)


@cache
def _pairs() -> tuple[np.ndarray, np.ndarray]:
    """(left, right) distances from a cut, from 1; 0 = none from that side. Nearest first, so nobody moves far idly."""
    left, right = np.divmod(np.arange((NEAR + 1) ** 2), NEAR + 1)
    nearest = np.argsort(left + right, kind="stable")
    return left[nearest], right[nearest]


def _mend(
    order_N: np.ndarray, cost_N: np.ndarray, cut_C: np.ndarray, end_C: np.ndarray, at: np.ndarray, close: int
) -> None:
    """Bring what lies left of the cuts `at` nearer to `end_C`, in place: by an exchange, or one record over the cut."""
    sum_N = np.concatenate(([0], np.cumsum(cost_N[order_N])))
    over = sum_N[cut_C[at]] - end_C[at]
    at, over = at[np.abs(over) > close], over[np.abs(over) > close]
    if not len(at):
        return
    bounds = np.concatenate(([0], cut_C, [len(cost_N)]))
    cut, step = cut_C[at][:, None], np.arange(NEAR + 1)
    # Column 0 is no record; column d the record d places left or right of the cut, where its part reaches so far.
    left_at, right_at = cut - step, cut + step - 1
    left_ok, right_ok = left_at >= bounds[at][:, None], right_at < bounds[at + 2][:, None]
    last = len(cost_N) - 1
    left_cost = np.where(step > 0, cost_N[order_N[np.clip(left_at, 0, last)]], 0)
    right_cost = np.where(step > 0, cost_N[order_N[np.clip(right_at, 0, last)]], 0)
    left, right = _pairs()
    rest = np.abs(over[:, None] - left_cost[:, left] + right_cost[:, right])
    rest = np.where(left_ok[:, left] & right_ok[:, right], np.maximum(rest, close), np.iinfo(np.int64).max)
    best = rest.argmin(axis=1)
    left, right, cut = left[best], right[best], cut[:, 0]
    # One record over the cut is an exchange with the cut's own neighbour, and the cut moves by one.
    first = cut - np.where(left > 0, left, 0)
    second = cut + np.where(right > 0, right - 1, -1)
    moved = (left > 0) | (right > 0)
    first, second = first[moved], second[moved]
    order_N[first], order_N[second] = order_N[second], order_N[first]
    cut_C[at] += (right > 0).astype(np.int64) - (left > 0)
