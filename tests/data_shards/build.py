"""Small data sets with every kind of modality, for the tests of this room."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data_shards import DatasetSchema, ModalitySpec, Record, Series, TaskSpec, pack
from data_shards.shards.manifest import Manifest
from data_shards.shards.opening import open_manifest
from data_shards.sources.base import Source, SourceOptions

SCHEMA = DatasetSchema(
    "everything",
    (
        ModalitySpec("labs", "series", channels=("a", "b", "c"), time_unit="hours", horizon=48.0),
        ModalitySpec("note", "text", max_length=200),
        ModalitySpec("static", "vector", shape=(3,)),
        ModalitySpec("picture", "image", shape=(1, 2, 3), dtype="uint8"),
        ModalitySpec("ecg", "waveform", shape=(2,), dtype="int16", rate=250.0, max_length=50),
        ModalitySpec("vitals", "series", channels=("hr",), time_unit="hours", horizon=48.0),
        ModalitySpec("embedding", "vector", shape=(5,)),
        ModalitySpec("history", "vector", shape=(3,)),
        ModalitySpec("map", "image", shape=(1, 2, 2), dtype="float32"),
    ),
    (
        TaskSpec("death", "binary"),
        TaskSpec("ward", "multiclass", classes=("x", "y", "z")),
        TaskSpec("codes", "multilabel", classes=("p", "q")),
        TaskSpec("stay", "regression", dim=1, unit="days"),
    ),
)


class ListSource(Source):
    """Records from a list, in units of a few."""

    def __init__(self, schema: DatasetSchema, records: Sequence[Record], unit: int = 7) -> None:
        super().__init__(SourceOptions())
        self.schema, self.list, self.unit = schema, list(records), unit

    def units(self) -> list[tuple[int, int]]:
        return [(a, min(a + self.unit, len(self.list))) for a in range(0, len(self.list), self.unit)]

    def read(self, unit: tuple[int, int], notes: Counter[str]) -> Iterator[Record]:
        for record in self.list[unit[0] : unit[1]]:
            notes["read"] += 1
            yield record


def series(rng: np.random.Generator, channels: int, events: int) -> Series:
    return Series(
        rng.uniform(0, 48, events).astype(np.float32),
        rng.integers(0, channels, events),
        rng.standard_normal(events).astype(np.float32),
    )


def make_record(number: int, seed: int = 0, share: float = 0.6) -> Record:
    """A record that holds a random subset of ``SCHEMA``'s modalities, some of them empty."""
    rng = np.random.default_rng((seed, number))
    length = int(rng.integers(0, 20))
    everything: dict[str, Series | np.ndarray | str] = {
        "labs": series(rng, 3, int(rng.integers(0, 12))),
        "note": "äß✓ text"[: int(rng.integers(0, 9))],
        "static": rng.standard_normal(3).astype(np.float32),
        "picture": rng.integers(0, 256, (1, 2, 3)).astype(np.uint8),
        "ecg": rng.integers(-300, 300, (length, 2)).astype(np.int16),
        "vitals": series(rng, 1, int(rng.integers(0, 6))),
        "embedding": rng.standard_normal(5).astype(np.float32),
        "history": rng.standard_normal(3).astype(np.float32),
        "map": rng.standard_normal((1, 2, 2)).astype(np.float32),
    }
    values = {name: value for name, value in everything.items() if rng.random() < share}
    targets: dict[str, np.ndarray | float | None] = {
        "death": float(rng.integers(2)) if rng.random() < 0.9 else None,
        "ward": float(rng.integers(3)),
        "codes": rng.integers(0, 2, 2).astype(np.float32),
        "stay": float(rng.exponential()) if rng.random() < 0.8 else float("nan"),
    }
    part = ("train", "train", "train", "val", "test")[number % 5]
    splits = {"default": part} | ({"other": "train" if number % 2 else "test"} if number % 3 else {})
    return Record(f"r{number:05d}", values, targets, splits, group=f"g{number // 2}")


def make_set(folder: Path | str, count: int = 60, **options: object) -> Manifest:
    """Pack ``count`` records in small chunks and shards, and open the result."""
    sizes: dict[str, object] = {"chunk_records": 5, "shard_bytes": 20_000}
    pack(ListSource(SCHEMA, [make_record(i) for i in range(count)]), str(folder), **(sizes | options))  # type: ignore[arg-type]
    return open_manifest(str(folder))


def same(a: Series | np.ndarray | str, b: Series | np.ndarray | str) -> bool:
    """Whether two values are equal, series as sorted by (channel, time)."""
    if isinstance(a, Series) and isinstance(b, Series):
        rows = []
        for s in (a, b):
            order = np.lexsort((s.values_O, s.times_O, s.channels_O))
            rows.append(np.stack([s.channels_O[order], s.times_O[order], s.values_O[order]]).astype(np.float64))
        return rows[0].shape == rows[1].shape and bool((rows[0] == rows[1]).all())
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
    return isinstance(a, str) and a == b


def same_record(a: Record, b: Record) -> bool:
    """Whether two records hold the same values, targets, splits and group."""
    targets = all(
        np.array_equal(
            np.atleast_1d(np.asarray(np.nan if a.targets[t] is None else a.targets[t], np.float32)),
            np.atleast_1d(np.asarray(np.nan if b.targets[t] is None else b.targets[t], np.float32)),
            equal_nan=True,
        )
        for t in a.targets
    )
    return (
        (a.key, a.splits, a.group) == (b.key, b.splits, b.group)
        and a.values.keys() == b.values.keys()
        and all(same(a.values[name], b.values[name]) for name in a.values)
        and targets
    )
