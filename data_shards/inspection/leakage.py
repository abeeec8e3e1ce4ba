"""What makes a score on a data set untrustworthy: groups in two parts, presence that gives the label away, odd values.

Each finding is one sentence that says what was found, with numbers. Nothing is changed.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np

from data_shards.records.schema import TaskSpec
from data_shards.records.statistics import TRAIN, SplitStatistics
from data_shards.shards.index import ShardIndex
from data_shards.shards.manifest import Manifest

STRONG = 0.3  # difference of shares, or correlation, from which presence is worth a warning
SURE = 4.0  # standard errors
MANY_BEYOND = 0.2  # share of seen times beyond the last edge from which it is said
_ONLY = {"text": "bytes", "codes": "value"}  # what the one channel of a kind is
FAR = 50.0  # standard deviations from the mean that suggest a wrong unit or a code for "missing"


def warnings(manifest: Manifest, index: ShardIndex) -> list[str]:
    """All findings, the gravest first."""
    found, odd = [], dict[str, str]()
    for split, parts in sorted(manifest.splits.items()):
        rows = {part: index.members(manifest.column(split, part)) for part in sorted(parts)}
        found += _shared_groups(split, rows, index.group_n)
        train = rows.get(TRAIN, np.zeros(len(index), bool))
        found += _telling_presence(manifest, index, split, train)
        found += _labels(manifest, index, split, rows)
        if split in manifest.statistics:
            odd = _values(manifest, split, manifest.statistics[split]) | odd
    return found + list(odd.values())


def groups_known(index: ShardIndex) -> bool:
    """Whether records say what group they belong to."""
    return bool((index.group_n != 0).any())


def _shared_groups(split: str, rows: dict[str, np.ndarray], group_n: np.ndarray) -> list[str]:
    own = {part: np.unique(group_n[members & (group_n != 0)]) for part, members in rows.items()}
    found = []
    for one, two in combinations(sorted(own, key=lambda part: (part != TRAIN, part)), 2):
        shared = np.intersect1d(own[one], own[two])
        if len(shared):
            inside = int(np.isin(group_n[rows[two]], shared).sum())
            found.append(
                f"split {split}: {len(shared):,} groups are in both {one} (of {len(own[one]):,}) and {two} (of "
                f"{len(own[two]):,}); {inside:,} records of {two} have relatives in {one}: scores on {two} are too good"
            )
    return found


def _telling_presence(manifest: Manifest, index: ShardIndex, split: str, train: np.ndarray) -> list[str]:
    found = []
    # Moments of one record are no evidence of their own: a record is what it is at worst.
    for task, target, name in _columns(manifest, index.largest_targets()):
        rows = train & ~np.isnan(target)
        for number, modality in enumerate(manifest.schema.modality_names):
            strength, sure, words = association(task, target[rows], index.present[rows, number])
            if strength >= STRONG and sure >= SURE:
                found.append(
                    f"split {split}: whether {modality} is present tells {name} ({words}); a model may learn who was "
                    "measured instead of what was measured"
                )
    return found


def association(task: TaskSpec, target_n: np.ndarray, present_n: np.ndarray) -> tuple[float, float, str]:
    """How much presence says about a target: (strength 0 to 1, standard errors, in words).

    Binary targets (and labels, and one class against the rest): the difference of the share that has the modality.
    Regression: the correlation.
    """
    there = int(present_n.sum())
    if len(target_n) < 20 or there in (0, len(target_n)):
        return 0.0, 0.0, ""
    if task.kind == "regression":
        spread = target_n.std()
        r = float(np.corrcoef(target_n, present_n)[0, 1]) if spread > 0 else 0.0
        return abs(r), abs(r) * np.sqrt(len(target_n)), f"correlation {r:.2f}"
    best = (0.0, 0.0, "")
    for value in np.unique(target_n)[:: -1 if task.kind == "binary" else 1]:
        inside = target_n == value
        n, m = int(inside.sum()), int((~inside).sum())
        if not n or not m:
            continue
        p, q, pooled = present_n[inside].mean(), present_n[~inside].mean(), there / len(target_n)
        sure = abs(p - q) / np.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
        if abs(p - q) > best[0]:
            what = task.classes[int(value)] if int(value) < len(task.classes) else f"{value:g}"
            best = (abs(float(p - q)), float(sure), f"{p:.0%} of {what} have it, {q:.0%} of the others")
    return best


def _labels(manifest: Manifest, index: ShardIndex, split: str, rows: dict[str, np.ndarray]) -> list[str]:
    """Classes that are not there to be learned or measured."""
    found = _beyond_the_edges(manifest, index, split, rows)
    for task, target, name in _columns(manifest, index.targets_KW):
        if task.kind == "regression":
            continue
        survival = manifest.schema.task(task.name).kind == "survival"
        classes = range(len(task.classes) if task.kind == "multiclass" else 2)
        for part, members in rows.items():
            known = target[members[index.record_K] & ~np.isnan(target)]
            if not len(known):
                found.append(f"split {split}: part {part} has no label of {name}")
                continue
            if survival:  # that nobody is censored is no flaw
                if not known.any():
                    found.append(f"split {split}: in part {part} {name} for no record, all are censored")
                continue
            absent = [c for c in classes if not (known == c).any()]
            names = [task.classes[c] if task.kind == "multiclass" else ("negative", "positive")[c] for c in absent]
            if names:
                found.append(f"split {split}: part {part} has no record of {name} = {', '.join(names)}")
    return found


def _beyond_the_edges(manifest: Manifest, index: ShardIndex, split: str, rows: dict[str, np.ndarray]) -> list[str]:
    """Survival whose intervals end long before things cease to happen."""
    found, offsets = [], manifest.schema.target_offsets
    for i, task in enumerate(manifest.schema.tasks):
        if task.kind != "survival":
            continue
        for part, members in rows.items():
            time, seen = index.targets_of(members)[:, offsets[i] : offsets[i + 1]].T
            happened = time[seen == 1]
            beyond = int((happened > np.float32(task.edges[-1])).sum())
            if beyond > MANY_BEYOND * len(happened):
                found.append(
                    f"split {split}: {beyond:,} of {len(happened):,} seen times of {task.name} in part {part} lie "
                    f"beyond the last edge, {task.edges[-1]:g}, and count as survivors of it: give a later edge"
                )
    return found


def _columns(manifest: Manifest, targets: np.ndarray) -> list[tuple[TaskSpec, np.ndarray, str]]:
    """(task, its target column, name) of every target column that has classes or is a number.

    Labels of a multi-label task come one by one; of survival only whether it was seen, as a censored time is none.
    """
    columns, offsets = [], manifest.schema.target_offsets
    for i, task in enumerate(manifest.schema.tasks):
        if task.kind == "survival":
            seen = TaskSpec(task.name, "binary", classes=("censored", "seen"))
            columns.append((seen, targets[:, offsets[i] + 1].astype(np.float64), f"{task.name} was seen"))
            continue
        for w in range(task.width):
            single = TaskSpec(task.name, "binary") if task.kind == "multilabel" else task
            name = f"{task.name}.{task.classes[w]}" if task.kind == "multilabel" else task.name
            columns.append((single, targets[:, offsets[i] + w].astype(np.float64), name))
    return columns


def _values(manifest: Manifest, split: str, statistics: SplitStatistics) -> dict[str, str]:
    """Channels without any value, without any change, or with values that look like codes: channel -> sentence."""
    found = {}
    for row in value_rows(manifest, statistics):
        name = f"{row['modality']}.{row['channel']}"
        if row["kind"] in ("image", "text"):
            continue
        if not row["count"]:
            found[name] = f"split {split}: {name} has no value in train; other parts' values mean nothing to a model"
        elif row["std"] == 0 and row["kind"] != "vector":
            found[name] = f"split {split}: {name} is always {row['min']:g}"
        elif (row["farthest"] or 0.0) > FAR:
            found[name] = (
                f"split {split}: {name} goes from {row['min']:g} to {row['max']:g}, up to {row['farthest']:.0f} "
                f"standard deviations from its mean {row['mean']:.4g}: a wrong unit, or a code for a missing value?"
            )
    return found


def value_rows(manifest: Manifest, statistics: SplitStatistics) -> list[dict[str, Any]]:
    """One row per channel of the train part: count, mean, std, min, max, and the farthest value in deviations.

    None where there is nothing to say: of a channel without values, and how far in deviations of 0. Codes that cannot
    have values have no row.
    """
    rows = []
    for spec in manifest.schema.modalities:
        if spec.kind == "codes" and not spec.valued:
            continue
        table = statistics.modalities[spec.name]
        for c in range(spec.width):
            mean, std, low, high = table.mean[c], table.std[c], table.min[c], table.max[c]
            farthest = max(abs(low - mean), abs(high - mean)) / std if std > 0 else None
            known = {"mean": mean, "std": std, "min": low, "max": high, "farthest": farthest}
            channel = spec.channels[c] if c < len(spec.channels) else _ONLY.get(spec.kind, str(c))
            shown = known if table.count[c] else dict.fromkeys(known)
            rows.append(
                {"modality": spec.name, "kind": spec.kind, "channel": channel, "count": table.count[c], **shown}
            )
    return rows
