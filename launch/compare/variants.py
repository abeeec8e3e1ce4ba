"""Runs side by side: what differs between them, how good they are, and whether the difference means anything.

Runs that differ in nothing but their seed are one variant. A variant's metric is the mean over its runs, with the
interval that a bootstrap over the test records gives; two variants are compared on the same draws of records, and by a
paired t-test over the seeds that both have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import mean, stdev
from typing import Any

from launch.compare.bootstrap import (
    Array,
    Difference,
    Interval,
    difference,
    draw_weights,
    interval,
    mean_over_seeds,
    seed_test,
    task_measures,
)
from trainer.metrics.main_metric import larger_is_better, primary_metric
from trainer.metrics.prediction_table import read_predictions
from trainer.run_folder import TEST_PREDICTIONS
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
    per_run: list[dict[str, Array]] = field(default_factory=list)

    def values(self, metric: str) -> list[float]:
        """Of its runs, where they have it."""
        return [run.metrics[metric] for run in self.runs if metric in run.metrics]

    def spread(self, metric: str) -> tuple[float, float | None]:
        """Mean and standard deviation over its runs."""
        values = self.values(metric)
        return mean(values), stdev(values) if len(values) > 1 else None

    def interval(self, metric: str) -> Interval | None:
        """Over test records."""
        return interval(self.draws[metric]) if metric in self.draws else None


@dataclass(frozen=True)
class Pair:
    """Two variants on one metric. `seeds_p` is None where fewer than two seeds are shared."""

    first: Variant
    second: Variant
    records: Difference | None
    seeds_p: float | None
    shared_seeds: int

    @property
    def verdict(self) -> str:
        """What may be said of the two, in words."""
        if self.records is None:
            return "not tested on the same records"
        apart = self.records.low > 0 or self.records.high < 0
        if self.seeds_p is None:
            return "differ on these records; more seeds would say whether it lasts" if apart else "no difference found"
        if apart and self.seeds_p < 0.05:
            return "differ"
        if apart:
            return "differ on these records, not beyond what seeds change"
        return "no difference found"


@dataclass
class Comparison:
    """Variants, best first, and all pairs of them on the primary metric."""

    variants: list[Variant]
    metric: str
    metrics: list[str]
    differing: dict[str, list[str]]
    pairs: list[Pair]
    notes: list[str]

    @property
    def runs(self) -> list[TrackedRun]:
        """All runs, variant by variant."""
        return [run for variant in self.variants for run in variant.runs]


def compare(runs: Sequence[TrackedRun], metric: str | None = None) -> Comparison:
    """Compare runs.

    Args:
        metric: full name, e.g. `test/auroc`, that ranks them; None = the usual one of their task.
    Raises:
        ValueError: no run has test metrics, or none has this one.
    """
    notes = []
    measured = [run for run in runs if any(name.startswith("test/") for name in run.metrics)]
    if len(measured) < len(runs):
        left = [run.name for run in runs if run not in measured]
        notes.append(f"Left out, as they have no test metrics: {', '.join(left)}.")
    if not measured:
        raise ValueError("none of these runs has test metrics: they have not finished, or their data have no test part")
    shared = set.intersection(*(set(run.metrics) for run in measured))
    common = {name: measured[0].metrics[name] for name in sorted(shared) if name.startswith("test/")}
    if metric is not None and not metric.startswith("test/"):
        metric = f"test/{metric}"
    chosen = primary_metric("test", common, metric.removeprefix("test/") if metric else None)
    variants = group(measured)
    notes += _resample(variants)
    variants.sort(key=lambda variant: variant.spread(chosen)[0], reverse=larger_is_better(chosen))
    digests = {run.params.get("dataset.digest", "?") for run in measured}
    if len(digests) > 1:
        notes.append(f"These runs were tested on {len(digests)} different data sets, so their metrics do not compare.")
    names = [name for name in common if not name.endswith("/records")]
    names.sort(key=lambda name: (name != chosen, name))
    return Comparison(variants, chosen, names, differing_params(measured), all_pairs(variants, chosen), notes)


def differing_params(runs: Sequence[TrackedRun], seeds: bool = True) -> dict[str, list[str]]:
    """Parameter -> its value in each run, for those that are not equal in all; what never matters is left out."""
    keys = sorted({key for run in runs for key in run.params})
    rows = {key: [run.params.get(key, "") for run in runs] for key in keys if not key.startswith(IGNORED)}
    return {key: row for key, row in rows.items() if len(set(row)) > 1 and (seeds or key not in SEEDS)}


def group(runs: Sequence[TrackedRun]) -> list[Variant]:
    """Runs by the parameters that differ between them, seeds aside."""
    differing = differing_params(runs, seeds=False)
    groups: dict[tuple[str, ...], list[TrackedRun]] = {}
    for number, run in enumerate(runs):
        groups.setdefault(tuple(row[number] for row in differing.values()), []).append(run)
    if len(groups) == 1:
        return [Variant(runs[0].name if len(runs) == 1 else "all runs", list(runs))]
    if len(differing) > MOST_KEYS:
        return [Variant(_by_name(found), sorted(found, key=_seed)) for found in groups.values()]
    short = _short_names(list(differing))
    labels = {
        key: ", ".join(f"{short[name]}={_brief(value)}" for name, value in zip(differing, key, strict=True))
        for key in groups
    }
    return [Variant(labels[key], sorted(found, key=_seed)) for key, found in groups.items()]


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


def _seed(run: TrackedRun) -> tuple[str, ...]:
    return tuple(run.params.get(key, "") for key in SEEDS)


def _resample(variants: list[Variant]) -> list[str]:
    """Fill in the draws of every variant whose runs kept their test predictions; notes about the others."""
    notes: list[str] = []
    records: dict[tuple[int, ...], Array] = {}
    for variant in variants:
        rows = []
        for run in variant.runs:
            file = run.artifact(TEST_PREDICTIONS)
            if file is None:
                notes.append(f"Run {run.name} kept no test predictions, so it has no interval.")
                continue
            tasks, predictions = read_predictions(file)
            numbers = tuple(predictions.index_B.tolist())
            # Equal records get equal draws, whichever run they belong to.
            weight_RB = records.setdefault(numbers, draw_weights(len(numbers)))
            row: dict[str, Array] = {}
            for task in tasks:
                prefix = "test" if len(tasks) == 1 else f"test/{task.name}"
                measures = task_measures(task, predictions.logits[task.name], predictions.targets[task.name])
                row |= {f"{prefix}/{name}": measure(weight_RB) for name, measure in measures.items()}
            rows.append(row)
        if len(rows) == len(variant.runs):
            variant.per_run = rows
            names = set.intersection(*(set(row) for row in rows))
            variant.draws = {name: mean_over_seeds(rows, name) for name in sorted(names)}
    if len(records) > 1:
        notes.append(f"The runs were tested on {len(records)} different sets of records; intervals are not paired.")
        for variant in variants:
            variant.per_run = []
    return notes


def all_pairs(variants: list[Variant], metric: str) -> list[Pair]:
    """Every two variants, the better one first."""
    return [_pair(a, b, metric) for number, a in enumerate(variants) for b in variants[number + 1 :]]


def _pair(first: Variant, second: Variant, metric: str) -> Pair:
    found = None
    if first.per_run and second.per_run and metric in first.draws and metric in second.draws:
        found = difference(first.draws[metric], second.draws[metric])
    own = {_seed(run): run.metrics[metric] for run in first.runs if metric in run.metrics}
    other = {_seed(run): run.metrics[metric] for run in second.runs if metric in run.metrics}
    shared = sorted(set(own) & set(other))
    p = seed_test([own[seed] for seed in shared], [other[seed] for seed in shared])
    return Pair(first, second, found, p, len(shared))


def table_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """Variants as plain values, for scripts."""
    rows = []
    for variant in comparison.variants:
        values: dict[str, Any] = {}
        for name in comparison.metrics:
            middle, spread = variant.spread(name)
            found = variant.interval(name)
            values[name] = {"mean": middle, "sd": spread, "interval": [found.low, found.high] if found else None}
        rows.append({"variant": variant.label, "runs": [run.id for run in variant.runs], "metrics": values})
    return rows
