"""Which record when: the invariant that everything else rests on.

The order of an epoch is ONE global sequence of records, a function of (seed, epoch, counts per chunk) only. Chunks are
permuted, taken ``window_chunks`` at a time, and the records of a window are shuffled together. A global step takes the
next ``batch_size`` entries of that sequence; a rank's share of a step is a contiguous part of those entries sorted by
storage place, so that it touches few chunks. Hence every world size, worker count and prefetch depth sees the same
global batches, and one integer says where an epoch stands.

Shapes: N entries of the sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from data_shards.permutation import permutation


@dataclass(frozen=True)
class Position:
    """Where training stands: ``offset`` records of ``epoch`` have been taken."""

    epoch: int
    offset: int


class EpochOrder:
    """The sequence of one epoch, computed window by window.

    Args:
        counts: records of the chosen part in each chunk of the data set, in storage order.
        seed, epoch: what the order depends on.
        window_chunks: chunks that are shuffled together.
        shuffle: False keeps storage order (evaluation).
    """

    def __init__(
        self, counts: np.ndarray, seed: int | str, epoch: int, window_chunks: int, shuffle: bool = True
    ) -> None:
        # Chunks without a record of this part take no place in the permutation.
        chunks = np.flatnonzero(counts)
        if shuffle:
            chunks = chunks[permutation(len(chunks), seed, epoch, "chunks")]
        self._chunks, self._sizes = chunks, counts[chunks].astype(np.int64)
        self._seed, self._epoch, self._window, self._shuffle = seed, epoch, window_chunks, shuffle
        ends = np.cumsum(self._sizes)
        self.total = int(ends[-1]) if len(ends) else 0
        # Where each window begins in the sequence, and where the last one ends.
        first = np.arange(0, len(chunks), window_chunks)
        self._starts = (
            np.concatenate((ends[first] - self._sizes[first], [self.total])) if len(ends) else np.zeros(1, int)
        )
        # A step may lie across two windows.
        self._entries = lru_cache(maxsize=2)(self._build)

    def _build(self, window: int) -> tuple[np.ndarray, np.ndarray]:
        """(chunk, number within the chunk's records of the part) of one window, in order."""
        cut = slice(window * self._window, (window + 1) * self._window)
        chunks, sizes = self._chunks[cut], self._sizes[cut]
        chunk_N = np.repeat(chunks, sizes)
        # 0, 1, ... anew in each chunk.
        ordinal_N = np.arange(len(chunk_N)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        if self._shuffle:
            order = permutation(len(chunk_N), self._seed, self._epoch, window)
            chunk_N, ordinal_N = chunk_N[order], ordinal_N[order]
        return chunk_N, ordinal_N

    def take(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """(chunk_N, ordinal_N) of the entries [start, stop) of the sequence, cut at its end."""
        stop = min(stop, self.total)
        chunk_pieces, ordinal_pieces = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        # The last window that begins at or before `start`.
        window = int(np.searchsorted(self._starts, start, side="right")) - 1
        while start < stop:
            chunk_N, ordinal_N = self._entries(window)
            base = int(self._starts[window])
            cut = slice(start - base, min(stop - base, len(chunk_N)))
            chunk_pieces.append(chunk_N[cut])
            ordinal_pieces.append(ordinal_N[cut])
            start, window = base + len(chunk_N), window + 1
        return np.concatenate(chunk_pieces), np.concatenate(ordinal_pieces)


def rank_share(chunk_N: np.ndarray, ordinal_N: np.ndarray, rank: int, world: int) -> tuple[np.ndarray, np.ndarray]:
    """One rank's part of a global step, sorted by storage place; sizes of ranks differ by at most one and may be 0."""
    # By storage place, so that a rank touches few chunks: within a step the order is free.
    order = np.lexsort((ordinal_N, chunk_N))
    start, stop = share_bounds(len(order), rank, world)
    own = order[start:stop]
    return chunk_N[own], ordinal_N[own]


def share_bounds(n: int, part: int, parts: int) -> tuple[int, int]:
    """[start, stop) of one of ``parts`` nearly equal contiguous pieces of n things; the first n % parts are longer."""
    small, longer = divmod(n, parts)
    start = part * small + min(part, longer)
    return start, start + small + (part < longer)
