"""Metrics of weighted records: all draws of a bootstrap at once cost little more than one.

Each takes weights (R, B), how often each record counts in each draw, and gives (R,); with all weights 1 it is what
`scores` gives. Where a draw has no metric, as one class only, it is NaN.

Shape legend: B records, R draws, C logits of a task, t targets of a task, n numbers of a record, K intervals.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from data_shards import TaskSpec
from trainer.metrics.bootstrap.intervals import Array, Metric
from trainer.metrics.by_record import PEAKS, means_by_record, peaks_by_record
from trainer.metrics.main_metric import BY_RECORD
from trainer.metrics.survival_scores import followed, weighted_measures


def task_measures(task: TaskSpec, logits_BC: Tensor, target_Bt: Tensor) -> dict[str, Metric]:
    """Weighted metrics of a task by name; the same numbers as `task_metrics` where all weights are 1.

    Records without a label weigh nothing. Raises ValueError if there is none with a label.
    """
    logits, target = logits_BC.double().numpy(), target_Bt.double().numpy()
    if np.isnan(target).all():
        raise ValueError(f"task {task.name} has no labelled record")
    if task.kind == "regression":
        return _regression(logits, target)
    if task.kind == "survival":
        return _survival(task, logits_BC, target_Bt)
    if task.kind == "multiclass":
        return _multiclass(logits, target[:, 0])
    columns = [_binary(logits[:, c], target[:, c]) for c in range(logits.shape[1]) if not np.isnan(target[:, c]).all()]
    return {name: _mean_of([column[name] for column in columns]) for name in columns[0]}


def record_measures(
    task: TaskSpec, logits_BC: Tensor, target_Bt: Tensor, row_B: NDArray[np.int64]
) -> dict[str, Metric]:
    """Metrics of weights of records (R, G) in which each record counts once, as `metrics_by_record` gives them."""
    logits, target = logits_BC.double().numpy(), target_Bt.double().numpy()
    columns: dict[str, list[Metric]] = {}
    for means in means_by_record(task, logits, target, row_B):
        for name, value_G in means.items():
            if not np.isnan(value_G).all():
                columns.setdefault(name, []).append(_weighted_mean(value_G, ~np.isnan(value_G)))
    for score_G, truth_G in peaks_by_record(task, logits, target, row_B):
        if not np.isnan(truth_G).all():
            for name, area in zip(PEAKS, (_auroc, _auprc), strict=True):
                columns.setdefault(name, []).append(area(score_G, truth_G))
    found = {name: _mean_of(own) for name, own in columns.items()}
    if "mse" in found:
        mse = found.pop("mse")
        found["rmse"] = lambda weight_RG: np.sqrt(mse(weight_RG))
    return {f"{name}{BY_RECORD}": measure for name, measure in found.items()}


def _share(part: Array, whole: Array) -> Array:
    """A quotient; NaN where there is nothing to divide by."""
    return np.divide(part, whole, out=np.full_like(whole, np.nan), where=whole > 0)


def _mean_of(metrics: Sequence[Metric]) -> Metric:
    """Over the metrics that a draw has."""

    def metric(weight_RB: Array) -> Array:
        values = np.array([metric(weight_RB) for metric in metrics])
        known = ~np.isnan(values)
        return _share(np.where(known, values, 0.0).sum(axis=0), known.sum(axis=0).astype(float))

    return metric


def _weighted_mean(value_B: Array, known_B: NDArray[np.bool_]) -> Metric:
    value_B = np.where(known_B, value_B, 0.0)
    return lambda weight_RB: _share(weight_RB @ value_B, weight_RB @ known_B.astype(float))


def _binary(logits_B: Array, truth_B: Array) -> dict[str, Metric]:
    known_B = ~np.isnan(truth_B)
    probability_B = 1 / (1 + np.exp(-logits_B))
    said_B = probability_B > 0.5
    hit_B, positive_B = (said_B == (truth_B == 1)) & known_B, (truth_B == 1) & known_B

    def f1(weight_RB: Array) -> Array:
        true_R, positive_R = weight_RB @ (said_B & positive_B), weight_RB @ positive_B
        found_R = _share(2 * true_R, weight_RB @ (said_B & known_B) + positive_R)
        return np.where(positive_R > 0, found_R, np.nan)

    return {
        "auroc": _auroc(logits_B, truth_B),
        "auprc": _auprc(logits_B, truth_B),
        "f1": f1,
        "accuracy": _weighted_mean(hit_B.astype(float), known_B),
        "brier": _weighted_mean((probability_B - truth_B) ** 2, known_B),
    }


def _sorted_sums(score_B: Array, truth_B: Array, weight_RB: Array) -> tuple[Array, Array]:
    """(R, U) weight of negatives and of positives at each distinct score, by rising score."""
    known = np.flatnonzero(~np.isnan(truth_B))
    _, slot = np.unique(score_B[known], return_inverse=True)
    order = np.argsort(slot, kind="stable")
    starts = np.flatnonzero(np.diff(slot[order], prepend=-1))
    truth, weight = truth_B[known][order], weight_RB[:, known][:, order]
    return np.add.reduceat(weight * (truth == 0), starts, 1), np.add.reduceat(weight * (truth == 1), starts, 1)


def _auroc(score_B: Array, truth_B: Array) -> Metric:
    """Chance that a positive scores above a negative; equal scores count half. NaN for draws with one class only."""

    def metric(weight_RB: Array) -> Array:
        negative, positive = _sorted_sums(score_B, truth_B, weight_RB)
        below = negative.cumsum(1) - negative / 2
        pairs = negative.sum(1) * positive.sum(1)
        return _share((positive * below).sum(1), pairs)

    return metric


def _auprc(score_B: Array, truth_B: Array) -> Metric:
    """Average precision: precision at each threshold, weighted by the recall gained there."""

    def metric(weight_RB: Array) -> Array:
        negative, positive = _sorted_sums(score_B, truth_B, weight_RB)
        true, false = positive[:, ::-1].cumsum(1), negative[:, ::-1].cumsum(1)
        total = positive.sum(1)
        # A threshold that nobody has reached yet finds nothing: precision there has weight 0.
        gained = positive[:, ::-1] * true / np.maximum(true + false, 1e-12)
        return _share(gained.sum(1), total)

    return metric


def _multiclass(logits_BC: Array, truth_B: Array) -> dict[str, Metric]:
    known_B = ~np.isnan(truth_B)
    shifted = np.exp(logits_BC - logits_BC.max(axis=1, keepdims=True))
    probability_BC = shifted / shifted.sum(axis=1, keepdims=True)
    is_BC = truth_B[:, None] == np.arange(logits_BC.shape[1])
    wrong_B = ((probability_BC - is_BC) ** 2).sum(axis=1)
    hit_B = (probability_BC.argmax(axis=1) == truth_B) & known_B
    areas = [
        _auroc(probability_BC[:, c], np.where(known_B, is_BC[:, c], np.nan)) for c in range(is_BC.shape[1])
    ]  # fmt: skip
    return {
        "accuracy": _weighted_mean(hit_B.astype(float), known_B),
        "auroc": lambda weight_RB: np.mean([area(weight_RB) for area in areas], axis=0),
        "brier": _weighted_mean(wrong_B, known_B),
    }


def _regression(value_Bn: Array, target_Bn: Array) -> dict[str, Metric]:
    """Each known target counts once, as in `task_metrics`; all targets of a record are drawn together."""
    known_Bn = ~np.isnan(target_Bn)
    error_Bn = np.where(known_Bn, value_Bn - target_Bn, 0.0)
    # About their mean, which changes no difference and no variance, but what rounding leaves of it.
    target_Bn = np.where(known_Bn, target_Bn - target_Bn[known_Bn].mean(), 0.0)
    scale = float((target_Bn**2).sum() / known_Bn.sum())
    count_B, square_B = known_Bn.sum(axis=1).astype(float), (error_Bn**2).sum(axis=1)

    def mean(column_B: Array) -> Metric:
        return lambda weight_RB: _share(weight_RB @ column_B, weight_RB @ count_B)

    def r2(weight_RB: Array) -> Array:
        middle_R = mean(target_Bn.sum(axis=1))(weight_RB)
        spread_R = mean((target_Bn**2).sum(axis=1))(weight_RB) - middle_R**2
        # Of equal targets there is no variance to explain; what rounding leaves of it is none.
        spread_R = np.where(spread_R > 1e-12 * scale, spread_R, 0.0)
        return 1 - _share(mean(square_B)(weight_RB), spread_R)

    return {
        "mae": mean(np.abs(error_Bn).sum(axis=1)),
        "rmse": lambda weight_RB: np.sqrt(mean(square_B)(weight_RB)),
        "r2": r2,
    }


def _survival(task: TaskSpec, logits_BK: Tensor, target_B2: Tensor) -> dict[str, Metric]:
    """What is known of the censoring is that of the whole part in every draw; the records are what is drawn."""
    known_B = (~target_B2.isnan().any(dim=1)).numpy()
    measures = weighted_measures(followed(task, logits_BK, target_B2))

    def of_labelled(measure: Metric) -> Metric:
        return lambda weight_RB: measure(weight_RB[:, known_B])

    return {name: of_labelled(measure) for name, measure in measures.items()}
