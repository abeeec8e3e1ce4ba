"""Runs side by side: what differs between them, how good they are, and whether the difference means anything.

A variant's metric is the mean over its runs, with the interval that a bootstrap over the test records gives; two
variants that were tested on the same records are compared on the same draws of them, and by a paired t-test over the
seeds that both have. What does not compare is not ranked, and no verdict is given of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from data_shards import TaskSpec
from launch.compare.pairs import Pair, all_pairs, finding
from launch.compare.tested import Kept, all_comparable, kept_of, why_none, why_not_notes
from launch.compare.variants import Variant, continued_notes, differing_params, group, seed_of
from trainer.metrics.bootstrap.intervals import Array, draw_weights, mean_over_seeds, over_moments
from trainer.metrics.bootstrap.measures import record_measures, task_measures
from trainer.metrics.by_record import record_rows
from trainer.metrics.main_metric import larger_is_better, primary_metric
from trainer.tracking.history import TrackedRun

COUNTS = ("test/records", "test/moments", "test/skipped")  # of the part, and no measure of a model
FEWEST_RECORDS = 2  # with fewer, every draw of records is the same


@dataclass
class Comparison:
    """Variants, best first if all of them compare, else as they came; and all pairs that compare."""

    variants: list[Variant]
    metric: str
    metrics: list[str]
    differing: dict[str, list[str]]
    pairs: list[Pair]
    notes: list[str]
    comparable: bool
    kept: dict[str, Kept | None]

    @property
    def runs(self) -> list[TrackedRun]:
        """All runs, variant by variant."""
        return [run for variant in self.variants for run in variant.runs]

    @property
    def finding(self) -> str:
        """What was found, in sentences."""
        return finding(self.variants, self.pairs, self.metric)


def compare(runs: Sequence[TrackedRun], metric: str | None = None) -> Comparison:
    """Compare runs.

    Args:
        metric: full name, e.g. `test/auroc`, that ranks them; None = the usual one of their task.
    Raises:
        ValueError: no run has test metrics, or none that all of them have.
    """
    notes: list[str] = []
    measured = [run for run in map(_with_numbers, runs) if run.metrics.keys() & _measures(run)]
    if len(measured) < len(runs):
        kept_ids = {run.id for run in measured}
        left = [run.name for run in runs if run.id not in kept_ids]
        notes.append(f"Left out, as they have no test metrics: {', '.join(left)}.")
    if not measured:
        raise ValueError("none of these runs has test metrics: they have not finished, or their data have no test part")
    shared = set.intersection(*(_measures(run) for run in measured))
    notes += _not_shared(measured, shared)
    if not shared:
        raise ValueError("these runs have no test metric in common: they answer different tasks, so nothing compares")
    chosen = _chosen(sorted(shared), metric)
    kept = {run.id: kept_of(run) for run in measured}
    variants = group(measured)
    notes += _unfinished(measured, chosen) + continued_notes(measured)
    notes += _resample(variants, kept, chosen) + _twice(variants)
    comparable = all_comparable(measured, kept, chosen)
    if comparable:
        variants.sort(key=lambda variant: variant.spread(chosen)[0], reverse=larger_is_better(chosen))
    notes += why_not_notes(measured, kept, chosen)
    names = sorted(shared, key=lambda name: (name != chosen, name))
    pairs = all_pairs(variants, chosen, kept)
    return Comparison(variants, chosen, names, differing_params(measured), pairs, notes, comparable, kept)


def _with_numbers(run: TrackedRun) -> TrackedRun:
    """The run without test metrics that are no numbers: NaN is neither better nor worse than anything."""
    metrics = {k: v for k, v in run.metrics.items() if not k.startswith("test/") or math.isfinite(v)}
    return run if len(metrics) == len(run.metrics) else replace(run, metrics=metrics)


def _measures(run: TrackedRun) -> set[str]:
    return {name for name in run.metrics if name.startswith("test/") and name not in COUNTS}


def _chosen(shared: list[str], metric: str | None) -> str:
    """Raises ValueError: it is not among them."""
    wanted = None if metric is None else metric.removeprefix("test/")
    return primary_metric("test", dict.fromkeys(shared, 0.0), wanted)


def _not_shared(runs: Sequence[TrackedRun], shared: set[str]) -> list[str]:
    some = sorted(set.union(*(_measures(run) for run in runs)) - shared)
    without = {name: next(run.name for run in runs if name not in run.metrics) for name in some}
    if not some:
        return []
    told = ", ".join(f"{name} (not in {run})" for name, run in without.items())
    return [f"Left out, as not every run has a number for them: {told}."]


def _unfinished(runs: Sequence[TrackedRun], metric: str) -> list[str]:
    """Runs that go on, or ended otherwise, after they had been tested."""
    return [
        f"Run {run.name} ({run.status}) has not finished: its figures are of step {run.history(metric)[-1][0]}."
        for run in runs
        if run.status != "FINISHED"
    ]


def _twice(variants: Sequence[Variant]) -> list[str]:
    """Runs of one recipe and one seed are one seed."""
    notes = []
    for variant in variants:
        seeds: dict[tuple[str, ...], list[str]] = {}
        for run in variant.runs:
            seeds.setdefault(seed_of(run), []).append(run.name)
        notes += [
            f"Runs {', '.join(names)} are one recipe with one seed: over seeds they count once, as their mean."
            for names in seeds.values()
            if len(names) > 1
        ]
    return notes


def _resample(variants: Sequence[Variant], kept: dict[str, Kept | None], metric: str) -> list[str]:
    """Fill in the draws of every variant whose runs all kept predictions of the same records; notes on the others."""
    notes: list[str] = []
    # Equal records get equal draws, whichever run they belong to.
    weights: dict[int, Array] = {}
    for variant in variants:
        missing = [run for run in variant.runs if kept[run.id] is None]
        notes += [f"Run {run.name} {why_none(run)}, so it has no interval." for run in missing]
        if missing or not all_comparable(variant.runs, kept, metric):
            continue
        rows, ids = [], [run.id for run in variant.runs]
        for number in ids:
            own = kept[number]
            assert own is not None
            records = own.predictions.records
            rows.append(draws_of(own, weights.setdefault(records, draw_weights(records)) if records else None))
        names = set.intersection(*(set(row) for row in rows))
        variant.draws = {name: mean_over_seeds(rows, name) for name in sorted(names)}
        labelled = [_labelled(own, task) for own in map(kept.get, ids) if own for task in own.question(metric)]
        if labelled and min(labelled) < FEWEST_RECORDS:
            notes.append(f"{variant.label}: {min(labelled)} labelled test record, of which no interval can be made.")
    return notes


def draws_of(own: Kept, weight_RG: Array | None) -> dict[str, Array]:
    """Metric -> its value of the part itself and of each draw, for tasks with enough labels to draw from.

    Draws are of records: `weight_RG` has one column a record, whatever the number of its moments.
    """
    row: dict[str, Array] = {}
    for task in own.tasks:
        if weight_RG is None or _labelled(own, task) < FEWEST_RECORDS:
            continue
        prefix = "test" if len(own.tasks) == 1 else f"test/{task.name}"
        said = own.predictions.logits[task.name], own.predictions.targets[task.name]
        measures = task_measures(task, *said)
        if own.predictions.moment_B is not None:
            row_B = record_rows(own.predictions.index_B)
            measures = {name: over_moments(measure, row_B) for name, measure in measures.items()}
            measures |= record_measures(task, *said, row_B)
        row |= {f"{prefix}/{name}": measure(weight_RG) for name, measure in measures.items()}
    return row


def _labelled(own: Kept, task: TaskSpec) -> int:
    """Records with a label at any moment."""
    labelled_B = (~own.predictions.targets[task.name].isnan()).any(dim=1)
    return len(own.predictions.index_B[labelled_B].unique())


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
