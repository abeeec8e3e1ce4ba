"""Quantiles of many channels from a sketch that can be merged: its state depends on the values alone, not on the way.

A float32 is mapped to an unsigned 32-bit *key* in the same order (the sign bit flipped, of negative numbers every bit).
Of each channel a sketch holds how often each ``key >> level`` occurs; all channels begin at level 0, where every value
stands for itself. A channel with more than ``limit`` different ones goes up a level, which drops the last bit, until
they fit. Dropping bits commutes with union, and a part of the values never needs a higher level than all of them, so
records may be added in any order, in any groups and by any number of processes: the result is the same, bit for bit.

A quantile lies between two neighbouring order statistics, and each of those is known up to its bucket: the error is at
most the width of a bucket, none at level 0 (at level l, 2 ** (l - 23) of the value's magnitude).

Shapes: N values, C channels, E entries of a sketch, P probabilities.
"""

from __future__ import annotations

import itertools

import numpy as np

LIMIT = 2_048  # different keys of a channel
LEAST_LIMIT = 64
ENTRIES = 1 << 21  # about as many in all, where there are many channels
MOST_LEVEL = 31
# Of each quantile that is kept: denser towards the ends
_LOWER = (0.0, 0.001, 0.003, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.16, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45)
PROBABILITIES = (*_LOWER, 0.5, *(round(1 - p, 3) for p in reversed(_LOWER)))
_SIGN = np.uint32(1 << 31)
_KEY_BITS = np.int64(32)
_KEY_MASK = np.int64((1 << 32) - 1)
_LARGEST = np.finfo(np.float32).max


def limit_of(channels: int) -> int:
    """Different keys that a channel may have: fewer where there are thousands of channels."""
    return int(np.clip(ENTRIES // max(1, channels), LEAST_LIMIT, LIMIT))


def keys_of(value_N: np.ndarray) -> np.ndarray:
    """uint32 [N] in the order of the values, float32; -0 counts as 0. Raises ValueError for NaN and infinity."""
    value_N = np.asarray(value_N, np.float32) + np.float32(0)
    if not np.isfinite(value_N).all():
        raise ValueError("a sketch takes finite values only")
    bits_N = value_N.view(np.uint32)
    return np.where(bits_N & _SIGN, ~bits_N, bits_N | _SIGN)


def values_of(key_N: np.ndarray) -> np.ndarray:
    """float64 [N]: inverse of `keys_of`; keys beyond the finite numbers give the last of them."""
    low, high = keys_of(np.array([-_LARGEST, _LARGEST]))
    key_N = np.clip(key_N, low, high).astype(np.uint32)
    return np.where(key_N & _SIGN, key_N ^ _SIGN, ~key_N).view(np.float32).astype(np.float64)


class Sketch:
    """Values of C channels.

    Args:
        channels: C. limit: different keys that each may have; the same for all sketches that are merged.
    """

    def __init__(self, channels: int, limit: int | None = None) -> None:
        self.channels, self.limit = channels, limit or limit_of(channels)
        if self.limit < 2:
            raise ValueError(f"limit {limit}: a sketch keeps two keys a channel, or more")
        self._level_C = np.zeros(channels, np.int64)
        # Channel and shifted key as one ascending number, and how often it occurs
        self._code_E, self._count_E = np.empty(0, np.int64), np.empty(0, np.int64)
        # What came since: (codes, counts, levels of the channels)
        self._waiting: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._waits = 0

    def add(self, channel_N: np.ndarray, value_N: np.ndarray) -> None:
        """Take in values, each of a channel. Raises ValueError for NaN and infinity."""
        code_N = channel_N.astype(np.int64) << _KEY_BITS | keys_of(value_N)
        self._wait(*np.unique(code_N, return_counts=True), np.zeros(self.channels, np.int64))

    def merge(self, other: Sketch) -> None:
        """Add the other's values. Raises ValueError: it is of other channels."""
        if (self.channels, self.limit) != (other.channels, other.limit):
            raise ValueError(
                f"a sketch of {other.channels} channels by {other.limit} keys cannot join one of "
                f"{self.channels} by {self.limit}"
            )
        other._settle()
        self._wait(other._code_E, other._count_E, other._level_C)

    def _wait(self, code_N: np.ndarray, count_N: np.ndarray, level_C: np.ndarray) -> None:
        self._waiting.append((code_N, count_N, level_C.copy()))
        self._waits += len(code_N)
        # As much again as there is, so that each entry is moved a few times in all
        if self._waits > max(1 << 16, len(self._code_E)):
            self._settle()

    def _settle(self) -> None:
        """Bring what came to one level for each channel, count equal keys, and go up where there are too many."""
        if not self._waiting:
            return
        pieces = [(self._code_E, self._count_E, self._level_C), *self._waiting]
        self._waiting, self._waits = [], 0
        level_C = np.max([levels for _, _, levels in pieces], axis=0)
        codes = [_raised(code, level_C - levels) for code, _, levels in pieces]
        code_E, count_E = np.concatenate(codes), np.concatenate([count for _, count, _ in pieces])
        order_E = np.argsort(code_E, kind="stable")  # fast for stretches that are sorted
        code_E, count_E = _counted(code_E[order_E], count_E[order_E])
        while True:
            full_C = np.bincount(code_E >> _KEY_BITS, minlength=self.channels) > self.limit
            if not full_C.any():
                break
            level_C = level_C + full_C
            code_E, count_E = _counted(_raised(code_E, full_C.astype(np.int64)), count_E)
        self._code_E, self._count_E, self._level_C = code_E, count_E, level_C

    def columns(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Entries by channel and key: channel int32, level int8, key (shifted by the level) uint32, count int64."""
        self._settle()
        channel_E = self._code_E >> _KEY_BITS
        level_E, key_E = self._level_C[channel_E].astype(np.int8), (self._code_E & _KEY_MASK).astype(np.uint32)
        return channel_E.astype(np.int32), level_E, key_E, self._count_E

    @staticmethod
    def of_columns(
        channels: int, limit: int, channel_E: np.ndarray, level_E: np.ndarray, key_E: np.ndarray, count_E: np.ndarray
    ) -> Sketch:
        """Inverse of `columns`. Raises ValueError: they are no sketch's."""
        sketch = Sketch(channels, limit)
        code_E = channel_E.astype(np.int64) << _KEY_BITS | key_E.astype(np.int64)
        if len(code_E):
            inside = channel_E.min() >= 0 and channel_E.max() < channels
            if not inside or (np.diff(code_E) <= 0).any() or (count_E < 1).any():
                raise ValueError("entries of a sketch are not ascending by channel and key, or count less than 1")
            sketch._level_C[channel_E] = level_E
            largest_E = (1 << 32 - sketch._level_C[channel_E]) - 1
            if (sketch._level_C[channel_E] != level_E).any() or level_E.min() < 0 or level_E.max() > MOST_LEVEL:
                raise ValueError(f"levels of a sketch are not one of 0 to {MOST_LEVEL} for each channel")
            if (key_E > largest_E).any() or np.bincount(channel_E).max() > limit:
                raise ValueError(f"a channel of a sketch has a key beyond its level, or more than {limit} of them")
        sketch._code_E, sketch._count_E = code_E, count_E.astype(np.int64)
        return sketch

    def counts(self) -> np.ndarray:
        """int64 [C]: values of each channel."""
        self._settle()
        total_C: np.ndarray = np.zeros(self.channels, np.int64)
        np.add.at(total_C, self._code_E >> _KEY_BITS, self._count_E)
        return total_C

    def quantiles(self, low_C: np.ndarray, high_C: np.ndarray, p_P: tuple[float, ...] = PROBABILITIES) -> np.ndarray:
        """float64 [C, P], ascending; 0 for channels without values.

        As numpy's default: linear between the order statistics around ``p * (n - 1)``. Each of those lies in its
        bucket as if the bucket's values were spread evenly.

        Args:
            low_C, high_C: the smallest and the largest value of each channel, which are its first and last quantile.
        """
        self._settle()
        found_CP = np.zeros((self.channels, len(p_P)))
        bounds = np.searchsorted(self._code_E >> _KEY_BITS, np.arange(self.channels + 1)).tolist()
        for channel, (start, end) in enumerate(itertools.pairwise(bounds)):
            if start < end:
                ends = (float(low_C[channel]), float(high_C[channel]))
                found_CP[channel] = self._of_channel(slice(start, end), int(self._level_C[channel]), ends, p_P)
        return found_CP

    def _of_channel(self, cut: slice, level: int, ends: tuple[float, float], p_P: tuple[float, ...]) -> np.ndarray:
        key_E, count_E = self._code_E[cut] & _KEY_MASK, self._count_E[cut]
        low_E = np.clip(values_of(key_E << level), *ends)
        high_E = np.clip(values_of(((key_E + 1) << level) - 1), *ends)
        end_E = np.cumsum(count_E)
        place_P = np.array(p_P) * (end_E[-1] - 1)
        below_P = np.floor(place_P).astype(np.int64)

        def at(rank_P: np.ndarray) -> np.ndarray:
            e = np.searchsorted(end_E, rank_P, side="right")
            inside_P = (rank_P - (end_E[e] - count_E[e]) + 0.5) / count_E[e]
            value_P: np.ndarray = low_E[e] + (high_E[e] - low_E[e]) * inside_P
            value_P[rank_P == 0], value_P[rank_P == end_E[-1] - 1] = ends
            return value_P

        first_P, last_P = at(below_P), at(np.minimum(below_P + 1, end_E[-1] - 1))
        between_P: np.ndarray = first_P + (last_P - first_P) * (place_P - below_P)
        return between_P


def _raised(code_E: np.ndarray, steps_C: np.ndarray) -> np.ndarray:
    """Codes with their keys so many levels higher, by channel."""
    if not steps_C.any():
        return code_E
    channel_E = code_E >> _KEY_BITS
    return channel_E << _KEY_BITS | (code_E & _KEY_MASK) >> steps_C[channel_E]


def _counted(code_E: np.ndarray, count_E: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ascending codes, each once, and how often each occurs."""
    if not len(code_E):
        return code_E, count_E
    first_E = np.flatnonzero(np.concatenate(([True], code_E[1:] != code_E[:-1])))
    return code_E[first_E], np.add.reduceat(count_E, first_E)
