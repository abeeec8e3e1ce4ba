"""What a packed data set holds, as plain tables: counts, presence, lengths, labels, values, and what looks wrong.

Reads the manifest, the indexes and, for when things happen, a few hundred records.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from data_shards.inspection.leakage import groups_known, value_rows, warnings
from data_shards.inspection.moments import moments
from data_shards.inspection.objects import codes, objects, spread
from data_shards.inspection.sampling import MOST_RECORDS, sample_records, sampling, without_contents
from data_shards.records.columns import ABSENT
from data_shards.records.schema import LENGTH_UNITS, RAGGED
from data_shards.records.survival import interval_of
from data_shards.shards.index import NO_PART, ShardIndex
from data_shards.shards.manifest import Manifest
from data_shards.shards.reader import read_index

LENGTH_BINS = 40
MOST_INDEXED = 2_000_000  # records whose rows of an index are read


def summary(
    manifest: Manifest, patterns: int = 10, sample: int = MOST_RECORDS, indexed: int = MOST_INDEXED
) -> dict[str, Any]:
    """Plain data (numbers, text, lists, dicts) for tables.

    Args:
        manifest: an opened data set. patterns: how many of the most frequent presence patterns to list.
        sample: records that are read for how series are sampled and when objects and codes are.
        indexed: records, about, from whose shards' indices the rest is told; of more, shards are taken evenly, and a
            warning says so. 0: all.

    Returns:
        ``name, url, digest, records, observations, bytes, shards, chunks, source``; ``indexed``: ``records`` and
        ``shards`` whose indices were read;
        ``modalities``: one row per modality with kind, channels, present, share, length quantiles (in
            ``length_unit``; of timed objects the sum of all of a record);
        ``patterns``: total number of presence patterns, records with all modalities, and the most frequent ones;
        ``splits``: split -> part -> records, samples, groups, share present per modality (null for an empty part),
        labels per task;
        ``values``: split -> one row per channel of its train part (count, mean, std, min, max, farthest);
        ``sampling``: of series, from a sample (``sampling.py``); ``objects``, ``codes``: of modalities with timed
        objects and with codes (``objects.py``); ``moments``: of records, with labels by time, None without
        (``moments.py``); ``warnings``: sentences; ``groups_known``.

    Raises:
        ShardError: an index or a sampled record is damaged.
    """
    numbers = _evenly(manifest, indexed)
    index = _joined([read_index(manifest, number) for number in numbers])
    everything = np.ones(len(index), bool)
    read = [without_contents(record) for record in sample_records(manifest, sample)]
    return {
        "name": manifest.schema.name,
        "url": manifest.url,
        "digest": manifest.digest,
        "records": manifest.records,
        "observations": manifest.observations,
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "shards": len(manifest.shards),
        "chunks": len(manifest.chunks),
        "indexed": {"records": len(index), "shards": len(numbers)},
        "source": manifest.source,
        "modalities": _modalities(manifest, index),
        "patterns": _patterns(manifest, index, patterns),
        "tasks": _labels(manifest, index, everything),
        "splits": {
            split: {part: _part(manifest, index, split, part) for part in sorted(parts)}
            for split, parts in sorted(manifest.splits.items())
        },
        "values": {split: value_rows(manifest, table) for split, table in sorted(manifest.statistics.items())},
        "sampling": sampling(manifest.schema, read),
        "objects": objects(manifest, index, read),
        "codes": codes(manifest, index, read),
        "moments": moments(manifest.schema, index),
        "groups_known": groups_known(index),
        "warnings": [*_only(manifest, index, numbers), *warnings(manifest, index)],
    }


def _evenly(manifest: Manifest, most: int) -> list[int]:
    """Numbers of shards with about so many records, spread over the data set; all, if it has no more, or for 0."""
    shards = len(manifest.shards)
    if not most or manifest.records <= most:
        return list(range(shards))
    wanted = max(1, shards * most // manifest.records)
    return [number * shards // wanted for number in range(wanted)]


def _only(manifest: Manifest, index: ShardIndex, numbers: list[int]) -> list[str]:
    if len(numbers) == len(manifest.shards):
        return []
    return [
        f"only {len(numbers):,} of {len(manifest.shards):,} shards were looked at ({len(index):,} of "
        f"{manifest.records:,} records): presence, lengths, labels, groups and warnings are of those (--records 0: all)"
    ]


def _joined(indexes: list[ShardIndex]) -> ShardIndex:
    width = max(index.parts_nS.shape[1] for index in indexes)
    # An early shard may have been written before a later split was first seen.
    parts = [np.pad(i.parts_nS, ((0, 0), (0, width - i.parts_nS.shape[1])), constant_values=NO_PART) for i in indexes]
    return ShardIndex(
        np.concatenate([index.start_n for index in indexes]),
        np.concatenate([index.size_n for index in indexes]),
        np.concatenate([index.crc_n for index in indexes]),
        [key for index in indexes for key in index.keys],
        np.concatenate(parts),
        np.concatenate([index.lengths_nM for index in indexes]),
        np.concatenate([index.objects_nM for index in indexes]),
        np.concatenate([index.moments_n for index in indexes]),
        np.concatenate([index.targets_KW for index in indexes]),
        np.concatenate([index.group_n for index in indexes]),
        np.concatenate([index.times_K for index in indexes]),
        np.concatenate([index.knots_X for index in indexes]),
    )


def _modalities(manifest: Manifest, index: ShardIndex) -> list[dict[str, Any]]:
    rows = []
    for number, spec in enumerate(manifest.schema.modalities):
        lengths = index.lengths_nM[:, number]
        lengths = lengths[lengths != ABSENT]
        ragged = spec.kind in RAGGED
        rows.append(
            {
                "name": spec.name,
                "kind": spec.kind,
                "timed": spec.timed,
                "length_unit": LENGTH_UNITS.get(spec.kind),
                "channels": list(spec.channels),
                "shape": list(spec.shape),
                "present": len(lengths),
                "share": len(lengths) / max(len(index), 1),
                "empty": int((lengths == 0).sum()) if ragged else 0,
                "total_length": int(lengths.sum(dtype=np.int64)) if ragged else None,
                "length": spread(lengths) if ragged else None,
                "histogram": _histogram(lengths) if ragged and len(lengths) else None,
            }
        )
    return rows


def _histogram(lengths: np.ndarray) -> dict[str, list[float]]:
    """Counts in equal bins from 0 to the longest."""
    counts, edges = np.histogram(lengths, LENGTH_BINS, (0, max(1, int(lengths.max()))))
    return {"counts": counts.tolist(), "edges": edges.tolist()}


def _patterns(manifest: Manifest, index: ShardIndex, most: int) -> dict[str, Any]:
    names = manifest.schema.modality_names
    counts = Counter(map(tuple, index.present.tolist()))
    top = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most]
    return {
        "count": len(counts),
        "complete": counts[(True,) * len(names)],
        "most_frequent": [
            {"records": n, "absent": [name for name, there in zip(names, pattern, strict=True) if not there]}
            for pattern, n in top
        ],
    }


def _part(manifest: Manifest, index: ShardIndex, split: str, part: str) -> dict[str, Any]:
    rows = index.members(manifest.column(split, part))
    names = manifest.schema.modality_names
    share = index.present[rows].mean(axis=0).tolist() if rows.any() else [None] * len(names)
    return {
        "records": manifest.splits[split][part],
        "samples": int(manifest.counts(split, part).sum()),
        "groups": len(np.unique(index.group_n[rows & (index.group_n != 0)])),
        "present": dict(zip(names, share, strict=True)),
        "tasks": _labels(manifest, index, rows),
    }


def _labels(manifest: Manifest, index: ShardIndex, rows: np.ndarray) -> dict[str, dict[str, Any]]:
    """task -> labelled records, and class counts or mean and std of the target; of survival its times."""
    table: dict[str, dict[str, Any]] = {}
    offsets = manifest.schema.target_offsets
    for i, task in enumerate(manifest.schema.tasks):
        target = index.targets_of(rows)[:, offsets[i] : offsets[i + 1]].astype(np.float64)
        known = target[~np.isnan(target).all(axis=1)]
        entry: dict[str, Any] = {"kind": task.kind, "labelled": len(known)}
        if task.kind == "regression":
            filled = len(known) > 0
            entry["mean"] = np.nanmean(known, axis=0).tolist() if filled else []
            entry["std"] = np.nanstd(known, axis=0).tolist() if filled else []
        elif task.kind == "survival":
            time, happened = known[:, 0], known[:, 1] == 1
            entry["counts"] = {"seen": int(happened.sum()), "censored": int((~happened).sum())}
            entry["times"] = {"seen": spread(time[happened]), "censored": spread(time[~happened])}
            entry["beyond_last_edge"] = int((interval_of(task.edges, time) == task.dim).sum())
        elif task.kind == "multilabel":
            entry["counts"] = dict(zip(task.classes, np.nansum(known, axis=0).astype(int).tolist(), strict=True))
        else:
            names = task.classes or ("negative", "positive")
            numbers = np.bincount(known[:, 0].astype(int), minlength=len(names)).tolist()
            entry["counts"] = dict(zip(names, numbers, strict=True))
        table[task.name] = entry
    return table
