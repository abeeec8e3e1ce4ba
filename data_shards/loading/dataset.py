"""What a loader reads from: one part of a data set, or of a mixture of data sets.

Both say how many samples there are, in what order an epoch takes them, where each is stored, and how to read them. A
sample is a record, or one moment of a record where tasks have labels at moments.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from data_shards.config import DataConfig
from data_shards.loading.mixed_order import MixedPart
from data_shards.loading.mixture import Mixture, open_mixture
from data_shards.loading.order import EpochOrder, first_numbers, places
from data_shards.loading.schema_map import Place, place_of
from data_shards.records.columns import Columns
from data_shards.records.schema import DatasetSchema
from data_shards.shards.manifest import Manifest
from data_shards.shards.opening import open_manifest
from data_shards.shards.reader import Reader

DataSet = Manifest | Mixture


class MappedReader:
    """Reads records of one data set and gives them the numbers that a model knows."""

    def __init__(self, reader: Reader, place: Place) -> None:
        self.reader, self.place = reader, place

    @property
    def io(self) -> Counter[str]:
        """Reads, bytes and retries so far."""
        return self.reader.io

    def read(self, chunk_N: np.ndarray, ordinal_N: np.ndarray) -> tuple[list[Columns], np.ndarray, Counter[str]]:
        """As ``Reader.read``."""
        records, index_B, skipped = self.reader.read(chunk_N, ordinal_N)
        return [self.place.put(record) for record in records], index_B, skipped


class PlainPart:
    """One part of one data set, as a model with modalities of this ``schema`` sees it."""

    def __init__(self, manifest: Manifest, config: DataConfig, part: str, schema: DatasetSchema) -> None:
        self.manifest, self.config, self.part, self.schema = manifest, config, part, schema
        self.place = place_of(manifest.schema, schema)
        self.counts = manifest.counts(config.split, part)
        # What it is on a node, if its processes share it.
        self._key = f"{manifest.digest} {(config.split, part)!r}" if manifest.chunks.shared is not None else None
        self._first = first_numbers(self.counts, self._key)
        self.samples = int(self._first[-1] + self.counts[-1]) if len(self.counts) else 0
        self.bounds = np.array([0, self.samples])

    def __reduce__(self) -> tuple[Any, ...]:
        """To another process only what it is made of travels."""
        return PlainPart, (self.manifest, self.config, self.part, self.schema)

    def order(self, seed: int, epoch: int, shuffle: bool) -> EpochOrder:
        """The sequence of an epoch."""
        return EpochOrder(self.counts, seed, epoch, self.config.window_chunks, shuffle, self._first, self._key)

    def places(self, number_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(chunk_B, ordinal_B) of samples by their numbers in the part."""
        return places(self._first, number_B)

    def sources(self) -> list[tuple[Manifest, int, np.ndarray]]:
        """(manifest, column of the part, numbers of its modalities in ``schema``) of each data set, in order."""
        return [(self.manifest, self.manifest.column(self.config.split, self.part), self.place.numbers)]

    def reader(self) -> Reader | MappedReader:
        """A reader for this process."""
        reader = Reader(self.manifest, self.config, self.part)
        return reader if self.place.same else MappedReader(reader, self.place)

    def known(self, index_B: np.ndarray) -> None:
        """All modalities exist for all records."""
        return None


def part_of(data: DataSet, config: DataConfig, part: str, schema: DatasetSchema) -> PlainPart | MixedPart:
    """The part to read, in the order of ``schema``; ValueError if there is none of that name."""
    kind = MixedPart if isinstance(data, Mixture) else PlainPart
    return kind(data, config, part, schema)  # type: ignore[arg-type]


def open_data(config: DataConfig) -> DataSet:
    """The data set, or the mixture of data sets, of a data section.

    Raises:
        ManifestError, ValueError: as ``open_manifest``; a mixture's members that do not fit.
    """
    if config.mixture:
        return open_mixture(config, open_manifest)
    return open_manifest(config.url, config.storage_options)
