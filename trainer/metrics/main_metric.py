"""Which metric stands for a run, which way is better, and missing-modality curves as numbers."""

from __future__ import annotations

from statistics import mean
from typing import Any

# The first that exists stands for a run. Of two classes the rarer one counts, of several the right one.
PRIMARY = ("auprc", "accuracy", "r2", "mae", "loss")
SMALLER_IS_BETTER = ("mae", "rmse", "loss", "brier", "ece")


def primary_metric(part: str, metrics: dict[str, float], wanted: str | None = None) -> str:
    """The full name of the metric that stands for a run.

    Raises:
        ValueError: the wanted one was not computed, or none at all.
    """
    if wanted is not None:
        if f"{part}/{wanted}" not in metrics:
            raise ValueError(f"there is no metric {part}/{wanted}; there are {', '.join(sorted(metrics))}")
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


def by_rate(curve: dict[str, Any], metric: str | None = None) -> list[tuple[float, float, float, float]]:
    """(rate, mean, smallest, largest) of the metric over the seeds, by rising rate."""
    name = metric or curve["metric"]
    values: dict[float, list[float]] = {}
    for row in curve["missing"]:
        if name in row["metrics"]:
            values.setdefault(row["rate"], []).append(row["metrics"][name])
    return [(rate, mean(seen), min(seen), max(seen)) for rate, seen in sorted(values.items())]


def larger_is_better(metric: str) -> bool:
    """Whether more of it is good, judged by its last part."""
    return metric.rsplit("/", 1)[-1] not in SMALLER_IS_BETTER
