"""Data sets with texts and pictures, timed and not, for tests that make vectors of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from data_shards import Codes, DatasetSchema, ModalitySpec, Objects, Record, TaskSpec
from data_shards.packing.rewrite import as_vectors
from data_shards.records.columns import Columns
from tests.data_shards.build import series

HOURS: dict[str, Any] = {"time_unit": "hours", "horizon": 48.0}
SCHEMA = DatasetSchema(
    "clinic",
    (
        ModalitySpec("labs", "series", channels=("a", "b"), **HOURS),
        ModalitySpec("notes", "text", timed=True, max_objects=3, **HOURS),
        ModalitySpec("static", "vector", shape=(2,)),
        ModalitySpec("title", "text", max_length=40),
        ModalitySpec("scan", "image", shape=(3, 8, 8), dtype="uint8", timed=True, **HOURS),
        ModalitySpec("face", "image", shape=(3, 8, 8), dtype="uint8"),
        ModalitySpec("drugs", "codes", timed=True, **HOURS),
        ModalitySpec("trend", "vector", shape=(2,), timed=True, **HOURS),
        ModalitySpec("ecg", "waveform", shape=(2,), dtype="int16", timed=True, max_length=20, **HOURS),
    ),
    (TaskSpec("death", "binary"), TaskSpec("stay", "regression", dim=1)),
)
MOMENTS = replace(SCHEMA, tasks=(TaskSpec("death", "binary", timed=True, time_unit="hours"),))
WORDS = ("red", "blue", "green", "shape", "älter", "round", "small")


def text(rng: np.random.Generator) -> str:
    return " ".join(rng.choice(WORDS, int(rng.integers(1, 7))))


def picture(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (3, 8, 8)).astype(np.uint8)


def records(count: int, moments: bool = False) -> list[Record]:
    """Records with any subset of the modalities, some of them empty; split and group as they come."""
    return [_record(number, moments) for number in range(count)]


def _record(number: int, moments: bool) -> Record:
    rng = np.random.default_rng((3, number))

    def times() -> np.ndarray:
        return np.sort(rng.uniform(0, 48, int(rng.integers(0, 4)))).astype(np.float32)

    def objects(make: Any) -> Objects:
        own = times()
        return Objects(own, [make(rng) for _ in own])

    everything: dict[str, Any] = {
        "labs": series(rng, 2, int(rng.integers(0, 5))),
        "notes": objects(text),
        "static": rng.standard_normal(2).astype(np.float32),
        "title": text(rng)[:30],
        "scan": objects(picture),
        "face": picture(rng),
        "drugs": Codes(["a", "b"], np.array([1.0, 2.5], np.float32)),
        "trend": objects(lambda own: own.standard_normal(2).astype(np.float32)),
    }
    everything["ecg"] = objects(lambda own: own.integers(-9, 9, (int(own.integers(0, 20)), 2)).astype(np.int16))
    values = {name: value for name, value in everything.items() if rng.random() < 0.7}
    splits = {"default": ("train", "train", "val", "test")[number % 4]} | ({"b": "train"} if number % 3 else {})
    group = f"g{number // 2}" if number % 5 else None
    if moments:
        when = np.array([12.0, 24.0, 36.0][: number % 4], np.float32)
        label = {"death": (when > 20).astype(np.float32)} if len(when) else {}
        return Record(f"r{number:03d}", values, label, splits, group, when)
    targets: dict[str, Any] = {"death": float(number % 2), "stay": float(rng.exponential()) if number % 7 else None}
    return Record(f"r{number:03d}", values, targets, splits, group)


def numbers(value: str | np.ndarray) -> np.ndarray:
    """A stand-in for an encoder, whose result is written down: length, sum and first byte of a text or a picture."""
    flat = np.frombuffer(value.encode(), np.uint8) if isinstance(value, str) else value.ravel()
    return np.array([len(flat), flat.sum(dtype=np.int64), flat[0] if len(flat) else -1], np.float32)


def embedded(schema: DatasetSchema, names: Sequence[str]) -> DatasetSchema:
    """The schema with vectors of three features under these names."""
    changed = {
        name: replace(
            spec, kind="vector", shape=(3,), dtype="float32", max_length=None, encoder="e" * 64, channels=()
        )
        for spec in schema.modalities
        if (name := spec.name) in names
    }  # fmt: skip
    return replace(schema, modalities=tuple(changed.get(spec.name, spec) for spec in schema.modalities))


def with_numbers(record: Record, names: Sequence[str]) -> Record:
    """The record as a source would give it that knows `numbers`."""
    found: dict[str, Any] = {}
    for name in set(names) & record.values.keys():
        value: Any = record.values[name]
        timed = isinstance(value, Objects)
        found[name] = Objects(value.times_N, [numbers(v) for v in value.values]) if timed else numbers(value)
    return replace(record, values={**record.values, **found})


class Change:
    """`numbers` in place of some modalities of stored records; raises in the shard `broken`."""

    def __init__(self, schema: DatasetSchema, names: Sequence[str], broken: int | None = None) -> None:
        self.schema, self.own, self.broken, self.calls = schema, [schema.numbers[name] for name in names], broken, 0

    def __call__(self, found: Sequence[Columns]) -> tuple[list[Columns], dict[str, int]]:
        self.calls += 1
        if self.broken is not None and self.calls > self.broken:
            raise KeyboardInterrupt
        vectors = [self._vectors(own) for own in found]
        made = [as_vectors(own, self.schema, vector) for own, vector in zip(found, vectors, strict=True)]
        return made, {"made": sum(len(rows) for vector in vectors for rows in vector.values())}

    def _vectors(self, columns: Columns) -> dict[int, np.ndarray]:
        found: dict[int, np.ndarray] = {}
        end_X = np.cumsum(columns.sizes_X)
        for number in self.own:
            if self.schema.modalities[number].kind == "text":
                rows = np.flatnonzero(columns.text_X == number).tolist()
                own: list[Any] = [
                    bytes(columns.bytes_[end_X[x] - columns.sizes_X[x] : end_X[x]]).decode() for x in rows
                ]
            else:
                own = columns.arrays.get(number, [])
            found[number] = np.stack([numbers(v) for v in own]) if own else np.empty((0, 3), np.float32)
        return found
