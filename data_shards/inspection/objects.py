"""Objects with times, and codes: how many a record has, when, how far apart, and which codes they are."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from data_shards.inspection.sampling import TIME_BINS, Sample, time_range
from data_shards.records.columns import ABSENT, timed_rows
from data_shards.records.distributions.sketch import PROBABILITIES
from data_shards.records.schema import FIRST_CODE, ModalitySpec
from data_shards.shards.index import ShardIndex
from data_shards.shards.manifest import Manifest

QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)
MOST_CODES = 10


def objects(manifest: Manifest, index: ShardIndex, sample: Sample) -> dict[str, dict[str, Any]]:
    """Plain data, one entry for each modality of timed objects or of codes.

    Returns:
        modality -> ``kind``; ``time_unit``; ``present``, ``empty``: records that have it, and of those without any
        object (code); ``per_record``: quantiles and mean of how many, of records that have it; ``times``: quantiles
        over the train part of split ``times_of`` (null without times or train part); from the sample ``gap``: quantiles
        of the time between neighbours in a record (null if no record has two), and ``when``: counts in equal bins from
        ``start`` over ``window``.
    """
    found = {}
    for number, spec in enumerate(manifest.schema.modalities):
        if spec.has_objects or spec.kind == "codes":
            counts_n = (index.lengths_nM if spec.kind == "codes" else index.objects_nM)[:, number]
            counts_n = counts_n[counts_n != ABSENT]
            found[spec.name] = {
                "kind": spec.kind,
                "time_unit": spec.time_unit,
                "present": len(counts_n),
                "empty": int((counts_n == 0).sum()),
                "per_record": spread(counts_n),
                **_times(manifest, spec),
                **(_sampled(manifest, number, sample) if spec.has_times else {"gap": None, "when": None}),
            }
    return found


def spread(values: np.ndarray) -> dict[str, float] | None:
    """Quantiles and mean; None of no values."""
    if not len(values):
        return None
    table = {f"p{int(100 * q)}": float(v) for q, v in zip(QUANTILES, np.quantile(values, QUANTILES), strict=True)}
    return table | {"mean": float(values.mean())}


def _times(manifest: Manifest, spec: ModalitySpec) -> dict[str, Any]:
    """From the statistics, which saw every time of a train part."""
    for split, statistics in sorted(manifest.statistics.items()):
        times = statistics.modalities[spec.name].times
        if times is not None:
            kept = {f"p{int(100 * q)}": times.quantiles[PROBABILITIES.index(q)] for q in QUANTILES}
            return {"times": kept | {"mean": times.mean}, "times_of": split}
    return {"times": None, "times_of": None}


def _sampled(manifest: Manifest, number: int, sample: Sample) -> dict[str, Any]:
    each = []
    for record in sample:
        own = [times[ids == number] for ids, times in timed_rows(record)]
        each.append(np.sort(np.concatenate(own)).astype(np.float64))
    times = np.concatenate(each) if each else np.empty(0)
    start, end = time_range(manifest.schema, manifest.schema.modalities[number], times)
    return {
        "gap": spread(np.concatenate([np.diff(own) for own in each])) if each else None,
        "when": np.histogram(times, TIME_BINS, (start, end))[0].tolist(),
        "start": start,
        "window": end - start,
    }


def codes(manifest: Manifest, index: ShardIndex, sample: Sample) -> dict[str, dict[str, Any]]:
    """Plain data, one entry for each modality of codes.

    Returns:
        modality -> ``named``, ``rare``: codes with a number of their own, and those that share one; ``codes``: in all
        records; ``unknown_codes``, ``rare_codes``: how many of these the vocabulary does not name (null where packing
        did not count); ``most_frequent``: (code, records that have it) pairs; ``counted``: among which records.
    """
    found, notes = {}, manifest.source.get("notes")
    for number, spec in enumerate(manifest.schema.modalities):
        if spec.kind != "codes":
            continue
        vocabulary = manifest.vocabulary(spec.name)
        if vocabulary.counts:
            counts, counted = Counter(dict(zip(vocabulary.names, vocabulary.counts, strict=True))), "training records"
        else:
            counts, counted = Counter[str](), f"{len(sample):,} sampled records"
            for record in sample:
                ids = record.code_ids_C[np.repeat(record.codes_Q, record.code_counts_Q) == number]
                counts.update(vocabulary.name(one) for one in np.unique(ids[ids >= FIRST_CODE]).tolist())
        lengths_n = index.lengths_nM[:, number]
        found[spec.name] = {
            "named": len(vocabulary.names),
            "rare": len(vocabulary.rare),
            "codes": int(lengths_n[lengths_n != ABSENT].sum(dtype=np.int64)),
            "unknown_codes": None if notes is None else int(notes.get(f"codes_unknown.{spec.name}", 0)),
            "rare_codes": None if notes is None else int(notes.get(f"codes_rare.{spec.name}", 0)),
            "most_frequent": sorted(counts.items(), key=lambda row: (-row[1], row[0]))[:MOST_CODES],
            "counted": counted,
        }
    return found
