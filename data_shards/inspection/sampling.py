"""A few records read from the shards, for what no index holds: how densely series are sampled, and when things happen.

Records are taken evenly over the data set, so the same data give the same figures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from data_shards.records.columns import Columns
from data_shards.records.decoder import Decoder
from data_shards.records.schema import DatasetSchema, ModalitySpec
from data_shards.shards.manifest import Manifest
from data_shards.shards.reader import read_index

MOST_RECORDS = 400
TIME_BINS = 48

Sample = Sequence[Columns]


def sample_records(manifest: Manifest, most: int = MOST_RECORDS) -> Iterator[Columns]:
    """At most so many records, spread evenly.

    Raises:
        ShardError, RecordError: the data are damaged.
    """
    wanted = np.unique(np.linspace(0, manifest.records - 1, min(most, manifest.records)).astype(np.int64))
    decoder, first = Decoder(manifest.schema), 0
    for number, shard in enumerate(manifest.shards):
        rows = wanted[(wanted >= first) & (wanted < first + shard.records)] - first
        first += shard.records
        if not len(rows):
            continue
        index = read_index(manifest, number)
        for row in rows.tolist():
            start = int(index.start_n[row])
            data = manifest.storage.read(shard.name, start, start + int(index.size_n[row]))
            yield decoder.columns(data, index.keys[row])


def without_contents(record: Columns) -> Columns:
    """When things are and which codes, and no more: of hundreds of records with pictures the rest would be much."""
    names = [field.name for field in fields(Columns) if field.name not in ("key", "arrays", "array_times")]
    heavy: dict[str, Any] = dict.fromkeys(("bytes_", "features_", "values_O"), np.empty(0))
    # Copies, as a view would keep all of the record's bytes.
    kept = {name: getattr(record, name).copy() for name in names if name not in heavy}
    times = {number: times.copy() for number, times in record.array_times.items()}
    return Columns(key=record.key, array_times=times, **kept, **heavy)


def sampling(schema: DatasetSchema, sample: Sample) -> dict[str, Any]:
    """How series are sampled.

    Returns:
        ``records``: how many were read; ``series``: modality -> ``channels``: channel -> observations per record that
        has the channel (null where none has), share of present records that have it, median gap between neighbours
        (null below two);
        ``per_time_unit``: observations in one unit of time; ``when``: counts of observations in equal bins from
        ``start`` over ``window``.
    """
    collected: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {
        n: [] for n, spec in enumerate(schema.modalities) if spec.kind == "series"
    }
    for record in sample:
        end = 0
        for number, count in zip(record.series_S.tolist(), record.counts_S.tolist(), strict=True):
            start, end = end, end + count
            collected[number].append((record.times_O[start:end], record.channels_O[start:end]))
    specs = schema.modalities
    series = {specs[n].name: _series(schema, specs[n], rows) for n, rows in collected.items() if rows}
    return {"records": len(sample), "series": series}


def time_range(schema: DatasetSchema, spec: ModalitySpec, times: np.ndarray) -> tuple[float, float]:
    """First and last time of a chart of a modality: its window, or where windows end at moments all that is there."""
    if schema.has_moments:
        start, end = float(times.min(initial=0.0)), float(times.max(initial=0.0))
        return start, end if end > start else start + 1.0
    return 0.0, spec.horizon or float(times.max(initial=0.0)) or 1.0


def _series(schema: DatasetSchema, spec: ModalitySpec, rows: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    times = np.concatenate([time for time, _ in rows])
    start, end = time_range(schema, spec, times)
    counts_RC = np.stack([np.bincount(channel, minlength=len(spec.channels)) for _, channel in rows])
    gaps: list[list[np.ndarray]] = [[] for _ in spec.channels]
    for time, channel in rows:  # stored sorted by (channel, time)
        same = np.diff(channel) == 0
        for c in np.unique(channel[1:][same]).tolist():
            gaps[c].append(np.diff(time)[same & (channel[1:] == c)])
    table = {}
    for c, name in enumerate(spec.channels):
        has = counts_RC[:, c] > 0
        gap = float(np.median(np.concatenate(gaps[c]))) if gaps[c] else None
        mean = float(counts_RC[has, c].mean()) if has.any() else None
        table[name] = {"per_record": mean, "share": float(has.mean()), "median_gap": gap}
    return {
        "time_unit": spec.time_unit,
        "start": start,
        "window": end - start,
        "per_time_unit": float(counts_RC.sum(axis=1).mean() / (end - start)),
        "when": np.histogram(times, TIME_BINS, (start, end))[0].tolist(),
        "channels": table,
    }
