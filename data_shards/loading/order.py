"""Which record when: the invariant that everything else rests on.

What is ordered are samples: records, or where tasks have labels at moments the moments of records. The order of an
epoch is ONE global sequence of them, a function of (seed, epoch, counts per chunk) only. Chunks are
permuted, taken ``window_chunks`` at a time, and the samples of a window are shuffled together. A global step takes the
next ``batch_size`` entries of that sequence, and within a step the order is free: its samples are dealt to ranks in the
order of storage, so that a rank touches few chunks (``deal``). Hence every world size, worker count and prefetch depth
sees the same global batches, and one integer says where an epoch stands.

A sample's number counts the part's samples in storage order: by record, then by moment. Shapes: N entries of the
sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from data_shards.node_arrays import node_arrays
from data_shards.permutation import permutation


@dataclass(frozen=True)
class Position:
    """Where training stands: ``offset`` samples of ``epoch`` have been taken."""

    epoch: int
    offset: int


class EpochOrder:
    """The sequence of one epoch, computed window by window.

    Args:
        counts: samples of the chosen part in each chunk of the data set, in storage order.
        seed, epoch: what the order depends on.
        window_chunks: chunks that are shuffled together.
        shuffle: False keeps storage order (evaluation).
        first: `first_numbers` of the counts, where they are known. key: the name of the counts on this node, if its
            processes share them; then they share the order, too.
    """

    def __init__(
        self,
        counts: np.ndarray,
        seed: int | str,
        epoch: int,
        window_chunks: int,
        shuffle: bool = True,
        first: np.ndarray | None = None,
        key: str | None = None,
    ) -> None:
        self._counts, self._first = counts, first_numbers(counts) if first is None else first
        self._seed, self._epoch, self._window, self._shuffle = seed, epoch, window_chunks, shuffle
        words = f"order 1 {key} {seed!r} {epoch if shuffle else None} {window_chunks}"
        made = self._make() if key is None else node_arrays(words, self._make)
        self._chunks, self._starts = made["chunks"], made["starts"]
        self.total = int(self._starts[-1])
        # A step may lie across two windows.
        self._entries = lru_cache(maxsize=2)(self._build)

    def _make(self) -> dict[str, np.ndarray]:
        """Chunks in order, and where each window begins in the sequence and the last one ends."""
        # Chunks without a record of this part take no place in the permutation.
        chunks = np.flatnonzero(self._counts).astype(np.int32)
        if self._shuffle:
            chunks = chunks[permutation(len(chunks), self._seed, self._epoch, "chunks")]
        windows = np.arange(0, len(chunks), self._window)
        sizes = np.add.reduceat(self._counts[chunks], windows, dtype=np.int64) if len(chunks) else windows
        return {"chunks": chunks, "starts": np.concatenate(([0], np.cumsum(sizes)))}

    def _cut(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Chunks of the windows [first, last), and the samples of each."""
        chunks = self._chunks[first * self._window : last * self._window].astype(np.int64)
        return chunks, self._counts[chunks].astype(np.int64)

    def _build(self, window: int) -> tuple[np.ndarray, np.ndarray]:
        """(chunk, number within the chunk's records of the part) of one window, in order."""
        chunk_N, ordinal_N = _records(*self._cut(window, window + 1))
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

    def numbers(self, start: int, stop: int) -> np.ndarray:
        """int64 [N], ascending: the numbers of the records that ``take`` gives.

        Of windows that lie inside, all records are among them in whatever order: only those at the ends are shuffled.
        """
        stop = min(stop, self.total)
        inside = int(np.searchsorted(self._starts, start)), int(np.searchsorted(self._starts, stop, side="right")) - 1
        if inside[0] >= inside[1]:
            return np.sort(self._numbers_of(*self.take(start, stop)))
        chunks, sizes = self._cut(*inside)
        by_place = np.argsort(chunks)
        whole = _records(chunks[by_place], sizes[by_place])
        ends = self.take(start, int(self._starts[inside[0]])), self.take(int(self._starts[inside[1]]), stop)
        # Stable: fast where most of it is in order already.
        return np.sort(np.concatenate([self._numbers_of(*piece) for piece in (whole, *ends)]), kind="stable")

    def _numbers_of(self, chunk_N: np.ndarray, ordinal_N: np.ndarray) -> np.ndarray:
        numbers: np.ndarray = self._first[chunk_N] + ordinal_N
        return numbers


def _records(chunks: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(chunk, number within the chunk's records of the part) of all records of some chunks, in order."""
    # 0, 1, ... anew in each chunk.
    ordinal_N = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.repeat(chunks, sizes), ordinal_N


def first_numbers(counts: np.ndarray, key: str | None = None) -> np.ndarray:
    """int64 [chunks]: number of each chunk's first record of the part; shared by a node's processes if it has a key."""
    if key is not None:
        return node_arrays(f"first 1 {key}", lambda: {"first": first_numbers(counts)})["first"]
    first = np.cumsum(counts, dtype=np.int64)
    first -= counts
    return first


def places(first_C: np.ndarray, number_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(chunk_N, ordinal_N) of records by their numbers; ``first_C`` as from ``first_numbers``."""
    # The last chunk that begins there or before: those without a record begin where the next one does.
    chunk_N = np.searchsorted(first_C, number_N, side="right") - 1
    return chunk_N, number_N - first_C[chunk_N]


def share_bounds(n: int, part: int, parts: int) -> tuple[int, int]:
    """[start, stop) of one of ``parts`` nearly equal contiguous pieces of n things; the first n % parts are longer."""
    small, longer = divmod(n, parts)
    start = part * small + min(part, longer)
    return start, start + small + (part < longer)
