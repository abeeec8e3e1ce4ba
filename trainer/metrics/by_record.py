"""Metrics in which every record counts once, of tasks whose records are seen at several moments.

Over moments, a record with a thousand of them weighs as much as a thousand records with one. Here moments are first
put together to one row a record: of yes and no the largest score against whether any moment is positive (would the
record have been noticed at all), and of everything that is a mean the mean over the record's labelled moments.

Shape legend: B moments, G records with rising numbers, C logits of a task, t targets of a task.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, from_numpy

from data_shards import TaskSpec
from trainer.metrics.formulas import auroc, average_precision, counts_by_score
from trainer.metrics.main_metric import BY_RECORD

Array = NDArray[np.float64]
Columns = dict[str, Array]
PEAKS = ("auroc", "auprc")


def record_rows(index_B: Tensor) -> NDArray[np.int64]:
    """int64 [B]: which of the G records each moment is of."""
    return np.unique(index_B.numpy(), return_inverse=True)[1].reshape(-1)


def mean_of_each(value_B: Array, row_B: NDArray[np.int64], records: int) -> Array:
    """[G]: mean of each record's values; NaN (none) counts not, and a record without any has NaN."""
    known_B = ~np.isnan(value_B)
    count_G = np.bincount(row_B[known_B], minlength=records).astype(float)
    total_G = np.bincount(row_B[known_B], value_B[known_B], records)
    return np.divide(total_G, count_G, out=np.full(records, np.nan), where=count_G > 0)


def peak_of_each(value_B: Array, row_B: NDArray[np.int64], records: int) -> Array:
    """[G]: largest of each record's values; as ``mean_of_each``."""
    known_B, peak_G = ~np.isnan(value_B), np.full(records, -np.inf)
    np.maximum.at(peak_G, row_B[known_B], value_B[known_B])
    peak_G[np.bincount(row_B[known_B], minlength=records) == 0] = np.nan
    return peak_G


def means_by_record(task: TaskSpec, logits_BC: Array, target_Bt: Array, row_B: NDArray[np.int64]) -> list[Columns]:
    """What of a task is a mean, as one value a record: name -> [G]. Labels of a multi-label task one after the other.

    `accuracy` and `brier`; of regression `mae` and `mse`, each over the targets that a moment has.
    """
    records = int(row_B.max(initial=-1)) + 1
    found = [_values(task, *columns) for columns in _columns(task, logits_BC, target_Bt)]
    return [{name: mean_of_each(value_B, row_B, records) for name, value_B in own.items()} for own in found]


def peaks_by_record(
    task: TaskSpec, logits_BC: Array, target_Bt: Array, row_B: NDArray[np.int64]
) -> list[tuple[Array, Array]]:
    """(largest score [G], whether any moment is positive [G]) of each label of a task of yes and no; NaN = no label."""
    if task.kind not in ("binary", "multilabel"):
        return []
    records = int(row_B.max(initial=-1)) + 1
    found = []
    for score_B1, target_B1 in _columns(task, logits_BC, target_Bt):
        score_B = np.where(np.isnan(target_B1[:, 0]), np.nan, score_B1[:, 0])
        found.append((peak_of_each(score_B, row_B, records), peak_of_each(target_B1[:, 0], row_B, records)))
    return found


def metrics_by_record(task: TaskSpec, logits_BC: Tensor, target_Bt: Tensor, index_B: Tensor) -> dict[str, float]:
    """Metrics of one task by name, with `_by_record` behind it; those that labels do not define are left out.

    binary: auroc, auprc, accuracy, brier. multilabel: those, macro over labels. multiclass: accuracy, brier.
    regression: mae, rmse. Survival has none: its label is of the whole record.
    """
    logits, target, row_B = logits_BC.double().numpy(), target_Bt.double().numpy(), record_rows(index_B)
    rows: dict[str, list[float]] = {}
    for column in means_by_record(task, logits, target, row_B):
        for name, value_G in column.items():
            if not np.isnan(value_G).all():
                rows.setdefault(name, []).append(float(np.nanmean(value_G)))
    for score_G, truth_G in peaks_by_record(task, logits, target, row_B):
        known_G = ~np.isnan(truth_G)
        if len(np.unique(truth_G[known_G])) > 1:
            counts = counts_by_score(from_numpy(score_G[known_G]), from_numpy(truth_G[known_G]))
            for name, measure in zip(PEAKS, (auroc, average_precision), strict=True):
                rows.setdefault(name, []).append(float(measure(*counts)))
    found = {name: float(np.mean(values)) for name, values in rows.items()}
    if "mse" in found:
        found["rmse"] = float(np.sqrt(found.pop("mse")))
    return {f"{name}{BY_RECORD}": value for name, value in found.items()}


def record_metric_names(
    task: TaskSpec, values: Sequence[Collection[float]], peaks: Sequence[Collection[float]]
) -> set[str]:
    """Names that `metrics_by_record` gives for labels with these values in each target column.

    Args:
        peaks: for each column the largest labels of records.
    """
    if task.kind == "survival" or not any(values):
        return set()
    means = {"mae", "rmse"} if task.kind == "regression" else {"accuracy", "brier"}
    areas = task.kind in ("binary", "multilabel") and any({0, 1} <= set(column) for column in peaks)
    return {f"{name}{BY_RECORD}" for name in means | (set(PEAKS) if areas else set())}


def _columns(task: TaskSpec, logits_BC: Array, target_Bt: Array) -> list[tuple[Array, Array]]:
    """Logits and targets; of a multi-label task of one label each."""
    if task.kind != "multilabel":
        return [(logits_BC, target_Bt)]
    return [(logits_BC[:, c, None], target_Bt[:, c, None]) for c in range(target_Bt.shape[1])]


def _values(task: TaskSpec, logits_BC: Array, target_Bt: Array) -> Columns:
    """One value a moment, NaN where it has no label."""
    if task.kind == "survival":
        return {}
    if task.kind == "regression":
        error_Bt = logits_BC - target_Bt
        return {"mae": _row_means(np.abs(error_Bt)), "mse": _row_means(error_Bt**2)}
    truth_B = target_Bt[:, 0]
    if task.kind == "multiclass":
        shifted = np.exp(logits_BC - logits_BC.max(axis=1, keepdims=True))
        probability_BC = shifted / shifted.sum(axis=1, keepdims=True)
        is_BC = (truth_B[:, None] == np.arange(logits_BC.shape[1])).astype(float)
        brier_B, right_B = ((probability_BC - is_BC) ** 2).sum(axis=1), probability_BC.argmax(axis=1) == truth_B
    else:
        probability_B = 1 / (1 + np.exp(-logits_BC[:, 0]))
        brier_B, right_B = (probability_B - truth_B) ** 2, (probability_B > 0.5) == (truth_B == 1)
    none_B = np.isnan(truth_B)
    return {"accuracy": np.where(none_B, np.nan, right_B), "brier": np.where(none_B, np.nan, brier_B)}


def _row_means(value_Bt: Array) -> Array:
    count_B = (~np.isnan(value_Bt)).sum(axis=1)
    return np.divide(np.nansum(value_Bt, axis=1), count_B, out=np.full(len(value_Bt), np.nan), where=count_B > 0)
