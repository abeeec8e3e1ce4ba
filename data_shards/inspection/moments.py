"""Records that are seen at moments: how many moments each has, and what labels are like at early and at late ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from data_shards.records.schema import DatasetSchema, TaskSpec
from data_shards.shards.index import ShardIndex

BINS = 8
QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)


def moments(schema: DatasetSchema, index: ShardIndex) -> dict[str, Any] | None:
    """Plain data of all records; None where no task has labels at moments.

    Returns:
        ``unit``; ``samples``: in all; ``per_record``: quantiles and mean; ``edges``: of equal bins of time; ``counts``:
        samples in each; ``labels``: name of a label, class or target -> its share (its mean, of a regression) among the
        labelled samples of each bin, null where there is none.
    """
    if not schema.has_moments:
        return None
    number_n, time_K = index.moments_n, index.times_K
    edges = np.linspace(float(time_K.min(initial=0.0)), float(time_K.max(initial=0.0)) or 1.0, BINS + 1)
    # The last moment lies in the last bin.
    bin_K = np.minimum(np.searchsorted(edges, time_K, side="right") - 1, BINS - 1)
    quantiles = zip(QUANTILES, np.quantile(number_n, QUANTILES).tolist(), strict=True)
    labels: dict[str, list[float | None]] = {}
    for i, task in enumerate(schema.tasks):
        target_KW = index.targets_KW[:, schema.target_offsets[i] : schema.target_offsets[i + 1]].astype(np.float64)
        if task.timed and task.kind != "survival":
            labels |= {name: _means(value_K, bin_K) for name, value_K in _columns(task, target_KW)}
    return {
        "unit": schema.moment_unit,
        "samples": len(time_K),
        "per_record": {f"p{int(100 * q)}": value for q, value in quantiles} | {"mean": float(number_n.mean())},
        "edges": edges.tolist(),
        "counts": np.bincount(bin_K, minlength=BINS).tolist(),
        "labels": labels,
    }


def _columns(task: TaskSpec, target_KW: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """(name, values) whose means are rates of labels; NaN where unlabelled."""
    if task.kind == "multiclass":
        known_K = ~np.isnan(target_KW[:, 0])
        shares = [np.where(known_K, target_KW[:, 0] == number, np.nan) for number in range(len(task.classes))]
        return [(f"{task.name} = {name}", share_K) for name, share_K in zip(task.classes, shares, strict=True)]
    if target_KW.shape[1] == 1:
        return [(task.name, target_KW[:, 0])]
    names = task.classes or tuple(map(str, range(target_KW.shape[1])))
    return [(f"{task.name}.{name}", target_KW[:, w]) for w, name in enumerate(names)]


def _means(value_K: np.ndarray, bin_K: np.ndarray) -> list[float | None]:
    known_K = ~np.isnan(value_K)
    count = np.bincount(bin_K[known_K], minlength=BINS)
    total = np.bincount(bin_K[known_K], value_K[known_K], BINS)
    return [float(own / number) if number else None for own, number in zip(total, count, strict=True)]
