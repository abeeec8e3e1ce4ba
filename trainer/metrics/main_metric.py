"""Which metric stands for a run, which way is better, and missing-modality curves as numbers."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import mean
from typing import Any, Literal

# The first that exists stands for a run. Of two classes the rarer one counts, of several the right one.
PRIMARY = ("auprc", "accuracy", "concordance", "r2", "mae", "loss")
SMALLER_IS_BETTER = ("mae", "rmse", "loss", "brier", "ece", "integrated_brier")
LARGER_IS_BETTER = (
    "auroc", "auprc", "accuracy", "f1", "r2", "iou", "pixel_accuracy", "concordance", "concordance_ipcw"
)  # fmt: skip
BY_RECORD = "_by_record"  # ends the name of a metric in which each record counts once (`by_record.py`)
# Logged beside a part's metrics; more of them is neither better nor worse.
COUNTS = ("records", "moments", "skipped")

Mode = Literal["min", "max"]


def primary_metric(part: str, metrics: dict[str, float], wanted: str | None = None) -> str:
    """The full name of the metric that stands for a run.

    Raises:
        ValueError: the wanted one was not computed or is a count, or none at all was.
    """
    if wanted is not None:
        there = measured(metrics)
        if f"{part}/{wanted}" not in there:
            raise ValueError(f"there is no metric {part}/{wanted}; there are {', '.join(there)}")
        return f"{part}/{wanted}"
    names = [full for name in PRIMARY for full in metrics if full.startswith(f"{part}/") and full.endswith(f"/{name}")]
    if not names:
        raise ValueError(f"part {part} has no metric that could stand for it: nothing in it is labelled")
    # Average precision exists for tasks of yes and no only; they are compared by the area that all papers give.
    return names[0].removesuffix("auprc") + "auroc" if names[0].endswith("auprc") else names[0]


def main_metric_of_tasks(part: str, metrics: dict[str, float]) -> list[str]:
    """The full name of the metric that stands for each task, in the order of the metrics."""
    groups: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        if name.startswith(f"{part}/"):
            groups.setdefault(name.rsplit("/", 1)[0], {})[name] = value
    tasks = {name: own for name, own in groups.items() if name != part} or groups
    return [primary_metric(part, own) for own in tasks.values()]


def task_curves(curve: dict[str, Any]) -> list[dict[str, Any]]:
    """The curve once for each task, with the modalities that the task's records can have."""
    return [
        {**curve, "metric": metric, "without": [row for row in curve["without"] if row["modality"] in modalities]}
        for metric, modalities in curve["tasks"].items()
    ]


# What hides a share of a record: key in a curve -> in words. Curves of earlier versions hide modalities only.
HIDDEN = {
    "missing": "modalities missing at test time",
    "last": "end of the observation window hidden",
    "window": "a stretch of the observation window hidden",
}


def by_rate(curve: dict[str, Any], what: str = "missing") -> list[tuple[float, float, float, float]]:
    """(rate, mean, smallest, largest) of the curve's metric over the seeds, by rising rate; `what` is of `HIDDEN`."""
    name = curve["metric"]
    values: dict[float, list[float]] = {}
    for row in curve.get(what, ()):
        if name in row["metrics"]:
            values.setdefault(row["rate"], []).append(row["metrics"][name])
    return [(rate, mean(seen), min(seen), max(seen)) for rate, seen in sorted(values.items())]


def larger_is_better(metric: str) -> bool:
    """Whether more of it is good, judged by its last part."""
    return metric.rsplit("/", 1)[-1].removesuffix(BY_RECORD) not in SMALLER_IS_BETTER


def is_count(metric: str) -> bool:
    """Whether it says how many records there were (`val/records`), not how good the answers are."""
    return metric.count("/") == 1 and metric.rsplit("/", 1)[-1] in COUNTS


def measured(names: Iterable[str]) -> list[str]:
    """Those that can choose between models, sorted: all but counts."""
    return sorted(name for name in names if not is_count(name))


def choosing_mode(metric: str, given: Mode | None, key: str) -> Mode:
    """Whether the smallest or the largest value of a metric is the best: as given, else the metric's own direction.

    Args:
        given: by the user; None = not said. key: what the user's error names, before `.mode` and `.metric`.

    Raises:
        ValueError: the metric is a count, has another direction than the given one, or has none that is known and
            none is given.
    """
    if is_count(metric):
        raise ValueError(
            f"{key}metric={metric} counts records and cannot choose between models: name a measure of them"
        )
    last = metric.rsplit("/", 1)[-1].removesuffix(BY_RECORD)
    known: Mode | None = "min" if last in SMALLER_IS_BETTER else "max" if last in LARGER_IS_BETTER else None
    if known is None and given is None:
        raise ValueError(f"{key}mode is not given, and nothing says whether more of {metric} is better: set min or max")
    if known is not None and given not in (None, known):
        raise ValueError(
            f"{key}mode={given} would choose the worst model by {metric}, of which "
            f"{'less' if known == 'min' else 'more'} is better: set {key}mode={known}, or leave it out"
        )
    mode = given or known
    assert mode is not None
    return mode
