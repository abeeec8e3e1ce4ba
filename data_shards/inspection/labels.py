"""Which labels a part holds, from the shards' indexes: no record is read, and no index more than is needed.

A label's values are what metrics depend on: a part with one class only has no AUROC. Reading stops as soon as the
caller knows enough, which for ordinary data is after the first shard.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from data_shards.records.schema import DatasetSchema, TaskSpec
from data_shards.shards.manifest import Manifest
from data_shards.shards.reader import read_index


@dataclass
class PartLabels:
    """What was seen of a part.

    Attributes:
        records: of the part. labelled: task -> samples with a label of it, among the records that were looked at.
        values: task -> for each target column the values seen: all classes; of a regression two at most; of survival
            the earliest time at which it was seen to happen, and the longest time of all records.
        peaks: as values, the largest label of each record that is seen at moments; empty without moments.
        present: modalities that a record looked at has.
    """

    records: int
    labelled: dict[str, int] = field(default_factory=dict)
    values: dict[str, tuple[set[float], ...]] = field(default_factory=dict)
    peaks: dict[str, tuple[set[float], ...]] = field(default_factory=dict)
    present: set[str] = field(default_factory=set)


def part_labels(
    manifest: Manifest, split: str, part: str, tasks: Sequence[str], enough: Callable[[PartLabels], bool]
) -> PartLabels:
    """Labels of a part, shard by shard until the caller knows `enough`; a split or part that is not there is empty.

    Raises:
        ShardError: an index cannot be read.
    """
    schema = manifest.schema
    chosen = [schema.task(name) for name in tasks]
    seen = PartLabels(manifest.splits.get(split, {}).get(part, 0))
    seen.labelled = dict.fromkeys(tasks, 0)
    seen.values = {task.name: tuple(set() for _ in range(task.width)) for task in chosen}
    seen.peaks = {name: tuple(set() for _ in columns) for name, columns in seen.values.items() if schema.has_moments}
    if not seen.records:
        return seen
    column = manifest.column(split, part)
    for number, shard in enumerate(manifest.shards):
        if not any(chunk.parts[column] for chunk in shard.chunks):
            continue
        index = read_index(manifest, number)
        rows = index.members(column)
        seen.present |= {schema.modality_names[m] for m in np.flatnonzero(index.present[rows].any(axis=0))}
        for task in chosen:
            _add(seen, task, index.targets_of(rows)[:, _columns(schema, task)], index.moments_n[rows])
        if enough(seen):
            break
    return seen


def _columns(schema: DatasetSchema, task: TaskSpec) -> slice:
    place = schema.task_names.index(task.name)
    return slice(schema.target_offsets[place], schema.target_offsets[place + 1])


def _add(seen: PartLabels, task: TaskSpec, target_nt: np.ndarray, moments_n: np.ndarray) -> None:
    seen.labelled[task.name] += int((~np.isnan(target_nt)).any(axis=1).sum())
    for values, new in zip(seen.values[task.name], label_values(task, target_nt), strict=True):
        values |= new
    if task.name in seen.peaks and len(target_nt):
        starts_n = np.cumsum(moments_n) - moments_n
        largest_nt = np.maximum.reduceat(np.where(np.isnan(target_nt), -np.inf, target_nt), starts_n)
        for values, column_n in zip(seen.peaks[task.name], largest_nt.T, strict=True):
            values |= {*np.unique(column_n[np.isfinite(column_n)]).tolist()[:2]}


def label_values(task: TaskSpec, target_nt: np.ndarray) -> list[set[float]]:
    """What `PartLabels.values` keeps of some targets."""
    columns = [np.unique(column_n[~np.isnan(column_n)]).tolist() for column_n in target_nt.T]
    if task.kind == "survival":
        happened = target_nt[target_nt[:, 1] == 1, 0]
        return [{*happened.min(initial=np.inf, keepdims=True).tolist()} - {np.inf}, {*columns[0][-1:]}]
    # Of numbers it is enough to know that they are not all the same.
    return [{*(known if task.kind != "regression" else [*known[:1], *known[-1:]])} for known in columns]
