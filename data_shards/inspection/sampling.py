"""A few records read from the shards, for what no index holds: how densely series are sampled, and when.

Records are taken evenly over the data set, so the same data give the same figures.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from data_shards.records.columns import Columns
from data_shards.records.decoder import Decoder
from data_shards.shards.manifest import Manifest
from data_shards.shards.reader import read_index

MOST_RECORDS = 400
TIME_BINS = 48


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


def sampling(manifest: Manifest, most: int = MOST_RECORDS) -> dict[str, Any]:
    """How series are sampled.

    Returns:
        ``records``: how many were read; ``series``: modality -> ``channels``: channel -> observations per record that
        has the channel (null where none has), share of present records that have it, median gap between neighbours
        (null below two);
        ``per_time_unit``: observations in one unit of time; ``when``: counts of observations in equal bins of the
        window.
    """
    schema, read = manifest.schema, 0
    collected: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {
        n: [] for n, spec in enumerate(schema.modalities) if spec.kind == "series"
    }
    for record in sample_records(manifest, most):
        read += 1
        end = 0
        for number, count in zip(record.series_S.tolist(), record.counts_S.tolist(), strict=True):
            start, end = end, end + count
            collected[number].append((record.times_O[start:end], record.channels_O[start:end]))
    series = {schema.modalities[n].name: _series(schema.modalities[n], rows) for n, rows in collected.items() if rows}
    return {"records": read, "series": series}


def _series(spec: Any, rows: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    times = np.concatenate([time for time, _ in rows])
    end = spec.horizon or (float(times.max()) if len(times) else 1.0) or 1.0
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
        "window": end,
        "per_time_unit": float(counts_RC.sum(axis=1).mean() / end),
        "when": np.histogram(times, TIME_BINS, (0.0, end))[0].tolist(),
        "channels": table,
    }
