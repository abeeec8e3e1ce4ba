"""Runs that differ in nothing but their seed are one variant: how runs are grouped, and what a variant is called."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import mean, stdev

from trainer.metrics.bootstrap.intervals import Array, Interval, interval
from trainer.tracking.history import TrackedRun

# What may differ without making another variant: seeds, names, places, who did the work.
SEEDS = ("training.seed", "data.seed")
IGNORED = ("name", "tracking.", "training.storage", "cluster.", "peak.", "data.url", "data.cache_dir", "parameters.")
MOST_KEYS = 4  # of parameters in a variant's label


@dataclass
class Variant:
    """Runs that differ in their seed only.

    Attributes:
        label: the parameters by which it differs from the others; the runs' names where those are many.
        draws: metric -> value of the mean over its runs, for the part itself and each draw.
    """

    label: str
    runs: list[TrackedRun]
    draws: dict[str, Array] = field(default_factory=dict)

    def values(self, metric: str) -> list[float]:
        """Of its runs."""
        return [run.metrics[metric] for run in self.runs]

    def spread(self, metric: str) -> tuple[float, float | None]:
        """Mean and standard deviation over its runs."""
        values = self.values(metric)
        return mean(values), stdev(values) if len(values) > 1 else None

    def interval(self, metric: str) -> Interval | None:
        """Over test records."""
        return interval(self.draws[metric]) if metric in self.draws else None


def differing_params(runs: Sequence[TrackedRun], seeds: bool = True) -> dict[str, list[str]]:
    """Parameter -> its value in each run, for those that are not equal in all; what never matters is left out."""
    keys = sorted({key for run in runs for key in run.params})
    rows = {key: [run.params.get(key, "") for run in runs] for key in keys if not key.startswith(IGNORED)}
    return {key: row for key, row in rows.items() if len(set(row)) > 1 and (seeds or key not in SEEDS)}


def continued_notes(runs: Sequence[TrackedRun]) -> list[str]:
    """A sentence for each run that was continued with other values of what matters."""
    notes = []
    for run in runs:
        keys = sorted(key for key in run.first_params if not key.startswith(IGNORED))
        if keys:
            told = ", ".join(f"{key} {_path(run.first_params[key], run.params[key])}" for key in keys)
            notes.append(f"Run {run.name} was continued with other values, of which the last count: {told}.")
    return notes


def _path(first: str, last: str) -> str:
    by = "" if first != last else "other values -> "
    return f"{_brief(first)} -> {by}{_brief(last)}"


def group(runs: Sequence[TrackedRun]) -> list[Variant]:
    """Runs by the parameters that differ between them, seeds aside."""
    differing = differing_params(runs, seeds=False)
    groups: dict[tuple[str, ...], list[TrackedRun]] = {}
    for number, run in enumerate(runs):
        groups.setdefault(tuple(row[number] for row in differing.values()), []).append(run)
    if len(groups) == 1:
        return [Variant(runs[0].name if len(runs) == 1 else "all runs", list(runs))]
    if len(differing) > MOST_KEYS:
        return [Variant(_by_name(found), sorted(found, key=seed_of)) for found in groups.values()]
    short = _short_names(list(differing))
    labels = {
        key: ", ".join(f"{short[name]}={_brief(value)}" for name, value in zip(differing, key, strict=True))
        for key in groups
    }
    return [Variant(labels[key], sorted(found, key=seed_of)) for key, found in groups.items()]


def _brief(value: str) -> str:
    """Digests and lists by their beginning; the table of parameters has them whole."""
    return value if len(value) <= 24 else f"{value[:12]}..."


def _by_name(runs: list[TrackedRun]) -> str:
    """For variants that differ in too much to be told in a label."""
    first = min(run.name for run in runs)
    return first if len(runs) == 1 else f"{first} and {len(runs) - 1} more"


def _short_names(names: list[str]) -> dict[str, str]:
    """The last part of a dotted name where that is enough to tell it from the others."""
    last = [name.rsplit(".", 1)[-1] for name in names]
    return {name: tail if last.count(tail) == 1 else name for name, tail in zip(names, last, strict=True)}


def seed_of(run: TrackedRun) -> tuple[str, ...]:
    """Of weights and of the order of data."""
    return tuple(run.params.get(key, "") for key in SEEDS)
