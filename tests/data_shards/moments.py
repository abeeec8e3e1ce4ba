"""A small data set whose records are seen at moments: every kind with times and without, in small chunks."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_shards import (
    Codes,
    DatasetSchema,
    Manifest,
    ModalitySpec,
    Objects,
    Record,
    Series,
    TaskSpec,
    open_manifest,
    pack,
)
from data_shards.records.record import sample_name
from tests.data_shards.build import ListSource

HOURS = {"time_unit": "hours", "horizon": 12.0}
SCHEMA = DatasetSchema(
    "moments",
    (
        ModalitySpec("labs", "series", channels=("a", "b"), **HOURS),  # type: ignore[arg-type]
        ModalitySpec("notes", "text", timed=True, max_length=60, max_objects=3, **HOURS),  # type: ignore[arg-type]
        ModalitySpec("scores", "vector", shape=(3,), timed=True, time_unit="minutes", horizon=720.0),
        ModalitySpec("pictures", "image", shape=(1, 8, 8), dtype="uint8", timed=True, **HOURS),  # type: ignore[arg-type]
        ModalitySpec("ecgs", "waveform", shape=(2,), rate=10.0, timed=True, max_length=40, **HOURS),  # type: ignore[arg-type]
        ModalitySpec("static", "vector", shape=(4,)),
    ),
    (
        TaskSpec("sepsis", "binary", timed=True, time_unit="hours"),
        TaskSpec("rest", "regression", unit="hours", timed=True, time_unit="hours"),
        TaskSpec("died", "binary"),
    ),
)
SMALL = {"chunk_records": 4, "shard_bytes": 40_000}


def objects(rng: np.random.Generator, spec: ModalitySpec, end: float) -> Series | Objects | Codes | np.ndarray:
    """A value of a modality, at times up to `end` hours."""
    rows = int(rng.integers(1, 14))
    times = np.sort(rng.uniform(0, end * (60 if spec.time_unit == "minutes" else 1), rows)).astype(np.float32)
    if spec.kind == "series":
        return Series(times, rng.integers(0, 2, rows), rng.standard_normal(rows).astype(np.float32))
    if spec.kind == "text":
        return Objects(times, ["note"[: int(rng.integers(0, 5))] for _ in range(rows)])
    if spec.kind == "image":
        return Objects(times, [rng.integers(0, 256, spec.shape).astype(np.uint8) for _ in range(rows)])
    if spec.kind == "waveform":
        return Objects(
            times, [rng.standard_normal((int(rng.integers(1, 30)), 2)).astype(np.float32) for _ in range(rows)]
        )
    if spec.timed:
        return Objects(times, [rng.standard_normal(spec.shape).astype(np.float32) for _ in range(rows)])
    return rng.standard_normal(spec.shape).astype(np.float32)


def record(number: int) -> Record:
    """0 to 40 moments; records without any have one label of the whole."""
    rng = np.random.default_rng((7, number))
    moments = np.unique(np.round(rng.uniform(0, 30, int(rng.choice([0, 1, 3, 40]))), 2).astype(np.float32))
    end = float(moments.max(initial=20.0)) + 3.0
    values = {spec.name: objects(rng, spec, end) for spec in SCHEMA.modalities if rng.random() < 0.7}
    rows = max(1, len(moments))
    sepsis = np.where(rng.random(rows) < 0.2, np.nan, rng.random(rows) < 0.3)
    targets = {"sepsis": sepsis, "rest": rng.uniform(0, 9, rows), "died": float(rng.integers(2))}
    part = ("train", "train", "train", "val", "test")[number % 5]
    return Record(f"r{number:03d}", values, targets, {"default": part}, f"g{number // 2}", moments)  # type: ignore[arg-type]


def make_moments(folder: Path | str, count: int = 40) -> Manifest:
    """Pack them and open the result."""
    pack(ListSource(SCHEMA, [record(number) for number in range(count)]), str(folder), **SMALL)  # type: ignore[arg-type]
    return open_manifest(str(folder))


def last_time(own: Record) -> float:
    """Of anything in a record, in hours."""
    times = [0.0]
    for name, value in own.values.items():
        unit = 60.0 if SCHEMA.modalities[SCHEMA.numbers[name]].time_unit == "minutes" else 1.0
        column = value.times_O if isinstance(value, Series) else value.times_N if isinstance(value, Objects) else None
        times += [] if column is None else (column.astype(np.float64) / unit).tolist()
    return float(np.float32(max(times)))


def names(count: int, part: str | None = "train") -> list[str]:
    """Samples of a part, in storage order."""
    own = [record(number) for number in range(count)]
    return [
        sample_name(one.key, float(moment))
        for one in own
        if part in (None, one.splits["default"])
        for moment in (one.moments if one.moments is not None and len(one.moments) else [last_time(one)])
    ]
