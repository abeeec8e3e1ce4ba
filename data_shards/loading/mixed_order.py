"""The order in which a mixture's records come, and how they are read.

An epoch takes m_k samples of data set k, where m_k is its size times its weight (scaled so that an epoch is as long as
all sizes together). Sizes count samples: records, or moments of records where a data set has labels at moments. They
are interleaved evenly by integer arithmetic: how many samples of each set lie before a place of the epoch is a formula,
so a position stays one integer and nothing is stored. Data set k itself runs through its own epochs, one after another,
each in its own order, so with any weights its samples are all seen equally often; with equal weights every one is seen
once an epoch.

Shapes: K data sets, N entries of the order, B records, M modalities, W target columns.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache

import numpy as np

from data_shards.config import DataConfig
from data_shards.loading.mixture import Mixture
from data_shards.loading.order import EpochOrder, first_numbers, places
from data_shards.loading.schema_map import place_of
from data_shards.records.columns import Columns
from data_shards.records.schema import DatasetSchema
from data_shards.shards.manifest import Manifest
from data_shards.shards.reader import Reader


def mixed_counts(sizes: list[int], weights: list[float]) -> list[int]:
    """Records of each data set in an epoch: proportional to size x weight, as many in all as there are records."""
    total = sum(sizes)
    wanted = np.array(sizes) * np.array(weights, float)
    wanted *= total / wanted.sum()
    # A product that should be whole may come out a hair below. What is left over goes to the largest remainders.
    counts = np.floor(wanted + 1e-9).astype(int)
    for k in np.argsort(counts - wanted, kind="stable")[: total - int(counts.sum())]:
        counts[k] += 1
    if (counts < 1).any():
        raise ValueError(f"weights {weights} give a data set of {sizes} records no place in an epoch of {total}")
    return [int(count) for count in counts]


def taken_before(place_N: np.ndarray, counts: list[int]) -> np.ndarray:
    """int64 [K, N]: how many records of each data set lie before each place of the epoch.

    The first data set takes every (total / count)-th place, the second its share of what is left, and so on; so each
    column adds up to its place, and any stretch holds a set's share to within a few records.
    """
    rest_N, total = place_N.astype(np.int64), sum(counts)
    rows = []
    for count in counts[:-1]:
        own_N = rest_N * count // total
        rows.append(own_N)
        rest_N, total = rest_N - own_N, total - count
    return np.stack([*rows, rest_N])


class MixedPart:
    """One part of a mixture: its order, and how it is read.

    Attributes:
        bounds: number of each data set's first sample in the part, and their end.
    """

    def __init__(self, mixture: Mixture, config: DataConfig, part: str, schema: DatasetSchema) -> None:
        mixture.column(config.split, part)
        self.mixture, self.config, self.part = mixture, config, part
        self.own = [k for k, m in enumerate(mixture.members) if part in m.manifest.splits[m.split]]
        members = [mixture.members[k] for k in self.own]
        self.counts = [member.manifest.counts(member.split, part) for member in members]
        sizes = [int(counts.sum()) for counts in self.counts]
        self.mixed = mixed_counts(sizes, [member.weight for member in members])
        self.samples = sum(sizes)
        chunks = [len(counts) for counts in self.counts]
        self.chunk_base = np.cumsum([0, *chunks])
        # Chunks are numbered over the data sets that have this part, records over all of them; samples by `bounds`.
        self.record_base = np.cumsum([0, *(m.manifest.records for m in mixture.members)])
        self.bounds = np.cumsum([0, *sizes])
        self._first = first_numbers(np.concatenate(self.counts))
        self.homes = [place_of(m.manifest.schema, schema, m.name) for m in mixture.members]

    def order(self, seed: int, epoch: int, shuffle: bool) -> MixedOrder | _InTurn:
        """The sequence of an epoch; without shuffling, one data set after the other in storage order."""
        return MixedOrder(self, seed, epoch) if shuffle else _InTurn(self)

    def places(self, number_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(chunk_B, ordinal_B) of samples by their numbers in the part; chunks are numbered over the data sets."""
        return places(self._first, number_B)

    def sources(self) -> list[tuple[Manifest, int, np.ndarray]]:
        """(manifest, column of the part, numbers of its modalities in the mixture) of each data set, in order."""
        members = [(self.mixture.members[k], self.homes[k]) for k in self.own]
        return [(m.manifest, m.manifest.column(m.split, self.part), home.numbers) for m, home in members]

    def reader(self) -> MixedReader:
        """A reader for this process."""
        return MixedReader(self)

    def known(self, index_B: np.ndarray) -> np.ndarray:
        """bool [B, M]: modalities of each record's own data set."""
        member_B = np.searchsorted(self.record_base, index_B, side="right") - 1
        return np.stack([place.could_have for place in self.homes])[member_B]


class MixedOrder:
    """The sequence of one epoch of a mixture; a function of (seed, epoch, counts, weights)."""

    def __init__(self, part: MixedPart, seed: int, epoch: int) -> None:
        self.part, self.seed, self.epoch = part, seed, epoch
        self.total = part.samples
        # For each data set the epoch that it is in, and the next one.
        self._own = lru_cache(maxsize=2 * len(part.own))(self._make)

    def _make(self, k: int, epoch: int) -> EpochOrder:
        """One data set's own epoch."""
        name = self.part.mixture.members[self.part.own[k]].name
        return EpochOrder(self.part.counts[k], f"{self.seed}/{name}", epoch, self.part.config.window_chunks)

    def numbers(self, start: int, stop: int) -> np.ndarray:
        """int64 [N], ascending: the numbers of the records of the entries [start, stop), cut at the end."""
        stop = min(stop, self.total)
        if stop <= start:
            return np.empty(0, np.int64)
        # How many of each data set lie before the two places: between them, a data set gives the difference.
        before_K2 = taken_before(np.array([start, stop]), self.part.mixed)
        pieces = []
        for k, (before, after) in enumerate(before_K2.tolist()):
            # A data set goes on where the mixture's last epoch left it.
            base = self.epoch * self.part.mixed[k]
            pieces.append(self._stretch(k, base + before, base + after) + self.part.bounds[k])
        return np.concatenate(pieces)

    def _stretch(self, k: int, first: int, last: int) -> np.ndarray:
        """Numbers, ascending, of the entries [first, last) of a data set's endless sequence of own epochs."""
        size = int(self.part.counts[k].sum())
        pieces = [np.empty(0, np.int64)]
        while first < last:
            epoch, offset = divmod(first, size)
            stop = min(size, offset + last - first)
            pieces.append(self._own(k, epoch).numbers(offset, stop))
            first += stop - offset
        return np.sort(np.concatenate(pieces))


class _InTurn:
    """Storage order of one data set after the other: every record once, whatever the weights."""

    def __init__(self, part: MixedPart) -> None:
        counts = np.concatenate(part.counts)
        self._order = EpochOrder(counts, 0, 0, part.config.window_chunks, shuffle=False)
        self.total = self._order.total
        self.numbers = self._order.numbers


class MixedReader:
    """Reads records of a mixture and gives them the mixture's numbers."""

    def __init__(self, part: MixedPart) -> None:
        self.part = part
        members = [part.mixture.members[k] for k in part.own]
        # The readers share what one may hold.
        config = part.config.model_copy(update={"memory_bytes": max(1 << 20, part.config.memory_bytes // len(members))})
        self.readers = [Reader(m.manifest, m.config(config), part.part) for m in members]
        self.places = [part.homes[k] for k in part.own]

    @property
    def io(self) -> Counter[str]:
        """Reads, bytes and retries so far."""
        return sum((reader.io for reader in self.readers), Counter[str]())

    def read(self, chunk_N: np.ndarray, ordinal_N: np.ndarray) -> tuple[list[Columns], np.ndarray, Counter[str]]:
        """As ``Reader.read``; records of one data set follow each other."""
        records: list[Columns] = []
        numbers, skipped = [np.empty(0, np.int64)], Counter[str]()
        for k, reader in enumerate(self.readers):
            base, end = self.part.chunk_base[k], self.part.chunk_base[k + 1]
            mine = (chunk_N >= base) & (chunk_N < end)
            if mine.any():
                found, index_B, lost = reader.read(chunk_N[mine] - base, ordinal_N[mine])
                records += [self.places[k].put(record) for record in found]
                numbers.append(index_B + self.part.record_base[self.part.own[k]])
                skipped += lost
        return records, np.concatenate(numbers), skipped
