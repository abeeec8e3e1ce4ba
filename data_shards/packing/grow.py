"""A data set that grows: what was packed before, as the packer counts it, so that new shards follow the old ones."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np

from data_shards.packing.sealed import Sealed
from data_shards.packing.units.log import Entry
from data_shards.packing.units.totals import Totals
from data_shards.records.distributions.distribution import Distribution, Moments, Spread
from data_shards.records.distributions.sketch import Sketch
from data_shards.records.schema import RAGGED, DatasetSchema, ModalitySpec
from data_shards.records.statistics import Accumulator, SplitStatistics
from data_shards.records.vocabulary import Vocabulary
from data_shards.shards.head import VERSION
from data_shards.shards.lineage import Lineage
from data_shards.shards.manifest import Manifest
from data_shards.shards.tables import load_sketches
from data_shards.sources.base import Source

logger = logging.getLogger(__name__)

NOTES, MAPPING, ORDER = "notes", "mapping", "order_of_shares"  # entries of `Manifest.source`


def refuse_unfit(base: Manifest, source: Source) -> None:
    """Raise ValueError unless a data set can take in records of a source."""
    if base.version != VERSION:
        raise ValueError(f"{base.url} was packed by an earlier version and cannot grow: pack all records again")
    if base.embedded:
        raise ValueError(f"{base.url} was made by `embed`: append to the data set that it was made of, and embed that")
    old, new = base.schema, source.schema
    for what, known, given in (
        ("modality", old.modalities, tuple(map(_bare, new.modalities))),
        ("task", old.tasks, new.tasks),
    ):
        own = tuple(_bare(spec) if isinstance(spec, ModalitySpec) else spec for spec in known)
        if [spec.name for spec in own] != [spec.name for spec in given]:
            names = ", ".join(spec.name for spec in own)
            raise ValueError(
                f"{base.url} has, in this order, {what} {names}, and the source others: it cannot be appended"
            )
        for one, other in zip(own, given, strict=True):
            if one != other:
                mine, theirs = _difference(one, other)
                raise ValueError(
                    f"{what} {one.name} of {base.url} is {mine}, in the source {theirs}: what is appended has the same "
                    "schema; say it in the source's options or mapping"
                )
    for name, vocabulary in source.vocabularies.items():
        if vocabulary.digest != old.modalities[old.numbers[name]].vocabulary:
            raise ValueError(f"modality {name} of {base.url} has another vocabulary than the source gives")
    _refuse_other_split(base, source)


def _refuse_other_split(base: Manifest, source: Source) -> None:
    """Raise ValueError if a mapping divides groups otherwise than the one before; a group could be in two parts."""
    if MAPPING not in base.source:
        return
    report = source.report(Counter())
    before, now = base.source[MAPPING].get("split", {}), report.get(MAPPING, {}).get("split", {})
    found: dict[str, tuple[Any, Any]] = {
        f"split.{key}": (before.get(key, "not given"), now.get(key, "not given")) for key in ("shares", "seed")
    }
    if ORDER in base.source:
        # A part is a stretch of the hash, so which one comes first decides, too. Records that no mapping divides say
        # their parts themselves.
        found["split.shares in the order"] = base.source[ORDER], report.get(ORDER, base.source[ORDER])
    elif "columns" not in before:
        logger.warning(
            "%s does not say in which order split.shares stood when it was packed: see that it is the same now, or new "
            "records of a group come into another part than its old ones",
            base.url,
        )
    for what, (mine, theirs) in found.items():
        if mine != theirs:
            raise ValueError(
                f"{base.url} was divided by {what} {mine}, in the source it is {theirs}: new records of a group "
                "could come into another part than its old ones; keep split of the mapping as it was"
            )


def _bare(spec: ModalitySpec) -> ModalitySpec:
    """Without what a vocabulary adds."""
    return replace(spec, codes=0, vocabulary="")


def _difference(one: object, other: object) -> tuple[str, str]:
    """The first field in which they differ, with either's value."""
    mine, theirs = vars(one), vars(other)
    name = next(key for key in mine if mine[key] != theirs[key])
    return f"{name} {mine[name]!r}", f"{theirs[name]!r}"


def vocabularies_in(base: Manifest) -> dict[str, Vocabulary]:
    """Modality of codes -> its vocabulary, which stays as it is."""
    return {name: base.vocabulary(name) for name in base.vocabularies}


def next_lineage(base: Manifest) -> Lineage:
    """Of the version that grows from this one."""
    number = 1 if base.lineage is None else base.lineage.number
    return Lineage(number + 1, base.digest)


def entry_of(base: Manifest) -> Entry:
    """Everything that is there, as if it had just been packed."""
    chunks, sealed = base.chunks, list[Sealed]()
    table = (chunks.offset_K, chunks.length_K, chunks.records_K, chunks.crc32_K, chunks.total_K)
    for number, shard in enumerate(base.shards):
        own = chunks.cut(number)
        rows = np.stack([column[own] for column in table], axis=1).astype(np.int64)
        parts, samples = chunks.parts_KC[own], chunks.samples_KC[own]
        sealed.append(Sealed(shard.name, shard.bytes, shard.sha256, shard.records, shard.index, rows, parts, samples))
    return Entry(sealed, 0, 0, totals_of(base))


def totals_of(base: Manifest) -> Totals:
    """What was counted, from the manifest and the sketches beside it. Raises ManifestError: those are damaged."""
    schema, totals = base.schema, Totals(base.schema)
    totals.records, totals.observations = base.records, base.observations
    totals.columns = {pair: number for number, pair in enumerate(base.columns)}
    totals.notes = Counter(base.source.get(NOTES, {}))
    for number, spec in enumerate(schema.modalities):
        if spec.kind in RAGGED and spec.name in (base.lengths or {}):
            own = (base.lengths or {})[spec.name]
            totals.longest_M[number], totals.total_M[number] = own["longest"], own["total"]
    sketches = load_sketches(base)
    for split, statistics in base.statistics.items():
        totals.statistics[split] = _accumulator(schema, statistics, sketches[split])
    return totals


def _accumulator(schema: DatasetSchema, said: SplitStatistics, sketches: dict[str, Sketch]) -> Accumulator:
    """Of the summary of one; sums are right to the rounding of a standard deviation."""
    found = Accumulator(schema)
    found.records = said.records
    own = [said.modalities[name] for name in schema.modality_names]
    found.present = np.array([each.present for each in own], np.int64)
    _fill(found.values, sketches["value"], *(np.concatenate([getattr(e, key) for e in own]) for key in _KEYS))
    for distribution, what, spreads in (
        (found.times, "time", [each.times for each in own]),
        (found.objects, "objects", [each.objects for each in own]),
    ):
        _fill(distribution, sketches[what], *(np.array([_of(each, key) for each in spreads]) for key in _KEYS))
    tasks = [said.tasks[task.name] for task in schema.tasks]
    sketch, ends = sketches["target"], np.zeros(schema.target_offsets[-1])
    low, high = ends.copy(), ends.copy()
    for i, task in enumerate(tasks):
        found.class_counts[i] = np.array(task.counts, np.int64)
        for n, quantiles in enumerate(task.quantiles):
            low[schema.target_offsets[i] + n], high[schema.target_offsets[i] + n] = quantiles[0], quantiles[-1]
    mean, std = (np.array([x for task in tasks for x in getattr(task, key)]) for key in ("mean", "std"))
    _fill(found.targets, sketch, sketch.counts(), mean, std, low, high)
    return found


_KEYS = ("count", "mean", "std", "min", "max")


def _of(spread: Spread | None, key: str) -> float:
    return 0 if spread is None else getattr(spread, key)


def _fill(
    distribution: Distribution,
    sketch: Sketch,
    count_C: np.ndarray,
    mean_C: np.ndarray,
    std_C: np.ndarray,
    min_C: np.ndarray,
    max_C: np.ndarray,
) -> None:
    moments, there_C = Moments(sketch.channels), count_C > 0
    moments.count = count_C.astype(np.int64)
    moments.mean = np.where(there_C, mean_C, 0.0)
    moments.m2 = np.where(there_C, std_C**2 * count_C, 0.0)
    moments.min, moments.max = np.where(there_C, min_C, np.inf), np.where(there_C, max_C, -np.inf)
    distribution.moments, distribution.sketch = moments, sketch
