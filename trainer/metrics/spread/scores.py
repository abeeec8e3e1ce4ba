"""Metrics of one task whose predictions lie on many ranks, equal to those of `scores` up to a last rounding.

What is a mean is a sum of each rank's values, exact whoever holds which (`exact`); what is a rank order is a merge of
sorted scores (`ranked`). Survival compares records in pairs: labels, risk and curve of all records come to one rank.

Shape legend: B records of a rank, C logits of a task, t targets of a task, X statements.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from data_shards import TaskSpec
from trainer.metrics.by_record import PEAKS, means_by_record, peaks_by_record, record_rows
from trainer.metrics.calibration import BINS, Reliability, bin_of
from trainer.metrics.formulas import confusion, f1, macro_f1_of
from trainer.metrics.main_metric import BY_RECORD
from trainer.metrics.predictions import Predictions
from trainer.metrics.scores import at_moments
from trainer.metrics.spread.exact import Sums
from trainer.metrics.spread.ranked import areas
from trainer.metrics.survival_scores import survival_scores
from trainer.worker.collectives import broadcast_json, rows_to_first, sum_over_ranks

Found = dict[str, float]


def spread_part_metrics(part: str, tasks: list[TaskSpec], own: Predictions) -> Found:
    """As `part_metrics` of all ranks' predictions, of which this rank has `own`. Collective."""
    metrics: Found = {}
    for task in tasks:
        prefix = part if len(tasks) == 1 else f"{part}/{task.name}"
        logits_BC, target_Bt = own.logits[task.name], own.targets[task.name]
        values = spread_task_metrics(task, logits_BC, target_Bt)
        if sum_over_ranks(torch.tensor(float(at_moments(own, target_Bt)))):
            values |= spread_metrics_by_record(task, logits_BC, target_Bt, own.index_B)
        metrics.update({f"{prefix}/{name}": value for name, value in values.items()})
    return metrics


def spread_task_metrics(task: TaskSpec, logits_BC: Tensor, target_Bt: Tensor) -> Found:
    """As `task_metrics` of all ranks' records. Collective."""
    labelled_B = (~target_Bt.isnan()).any(dim=1)
    logits_BC, target_Bt = logits_BC[labelled_B].double(), target_Bt[labelled_B].double()
    kinds: dict[str, Callable[[Tensor, Tensor], Found]] = {
        "binary": _binary,
        "multiclass": _multiclass,
        "multilabel": _multilabel,
        "regression": _regression,
        "survival": lambda logits, target: _survival(task, logits, target),
    }
    return kinds[task.kind](logits_BC, target_Bt)


def _binary(logits_B1: Tensor, target_B1: Tensor) -> Found:
    probability_B, truth_B = logits_B1[:, 0].sigmoid(), target_B1[:, 0].long()
    said_B = (probability_B > 0.5).long()
    sums = Sums()
    sums.add("records", len(truth_B))
    sums.add("right", int((said_B == truth_B).sum()))
    sums.add("brier", (probability_B - truth_B).square())
    for name, count_B in (("both", said_B & truth_B), ("said", said_B), ("there", truth_B)):
        sums.add(name, int(count_B.sum()))
    _add_statements(sums, probability_B, truth_B)
    total = sums.everywhere()
    records, there = total["records"], total["there"]
    if not records:
        return {}
    metrics = {"accuracy": total["right"] / records, "brier": total["brier"] / records, "ece": _ece(total)}
    if there:
        metrics["f1"] = float(f1(*(torch.tensor(int(total[name])) for name in ("both", "said", "there"))))
    return metrics | (areas(probability_B, truth_B) if 0 < there < records else {})


def _multiclass(logits_BC: Tensor, target_B1: Tensor) -> Found:
    classes, truth_B = logits_BC.shape[1], target_B1[:, 0].long()
    probability_BC = logits_BC.softmax(dim=1)
    stated_B, chosen_B = probability_BC.max(dim=1)
    sums = Sums()
    sums.add("brier", (probability_BC - functional.one_hot(truth_B, classes)).square().sum(dim=1))
    for cell, count in enumerate(confusion(chosen_B, truth_B, classes).flatten().tolist()):
        sums.add(f"cell {cell}", count)
    _add_statements(sums, stated_B, (chosen_B == truth_B).long())
    total = sums.everywhere()
    confusion_CC = torch.tensor([int(total[f"cell {cell}"]) for cell in range(classes**2)]).view(classes, classes)
    records = int(confusion_CC.sum())
    if not records:
        return {}
    metrics = {
        "accuracy": int(confusion_CC.diagonal().sum()) / records,
        "f1": float(macro_f1_of(confusion_CC)),
        "brier": total["brier"] / records,
        "ece": _ece(total),
    }
    if bool((confusion_CC.sum(1) > 0).all()):
        columns = zip(probability_BC.T, functional.one_hot(truth_B, classes).T, strict=True)
        metrics["auroc"] = float(np.mean([areas(score_B, is_B)["auroc"] for score_B, is_B in columns]))
    return metrics


def _multilabel(logits_BL: Tensor, target_BL: Tensor) -> Found:
    rows: dict[str, list[float]] = {}
    for label in range(logits_BL.shape[1]):
        known_B = ~target_BL[:, label].isnan()
        for name, value in _binary(logits_BL[known_B, label, None], target_BL[known_B, label, None]).items():
            rows.setdefault(name, []).append(value)
    return {name: float(np.mean(values)) for name, values in rows.items()}


def _regression(value_Bn: Tensor, target_Bn: Tensor) -> Found:
    known_Bn = ~target_Bn.isnan()
    value_X, target_X = value_Bn[known_Bn], target_Bn[known_Bn]
    sums = Sums()
    sums.add("values", len(target_X))
    sums.add("absolute", (value_X - target_X).abs())
    sums.add("square", (value_X - target_X).square())
    sums.add("target", target_X)
    total = sums.everywhere()
    values = total["values"]
    if not values:
        return {}
    spread = Sums()
    spread.add("around", (target_X - total["target"] / values).square())
    around = spread.everywhere()["around"]
    metrics = {"mae": total["absolute"] / values, "rmse": float(np.sqrt(total["square"] / values))}
    return metrics | ({"r2": 1 - total["square"] / around} if values > 1 and around > 0 else {})


def _survival(task: TaskSpec, logits_BK: Tensor, target_B2: Tensor) -> Found:
    rows = rows_to_first(torch.cat([logits_BK, target_B2], dim=1))
    own = None
    if rows is not None:
        own = survival_scores(task, rows[:, :-2], rows[:, -2:]) if len(rows) else {}
    found: Found = broadcast_json(own)
    return found


def _add_statements(sums: Sums, probability_X: Tensor, true_X: Tensor) -> None:
    """For the calibration error."""
    bin_X = bin_of(probability_X, BINS)
    for number in range(BINS):
        own_X = bin_X == number
        sums.add(f"count {number}", int(own_X.sum()))
        sums.add(f"stated {number}", probability_X[own_X])
        sums.add(f"true {number}", int(true_X[own_X].sum()))


def _ece(total: Found) -> float:
    count, stated, true = (
        torch.tensor([total[f"{name} {number}"] for number in range(BINS)], dtype=torch.float64)
        for name in ("count", "stated", "true")
    )
    return Reliability(count, stated / count.clamp_min(1), true / count.clamp_min(1)).error


def spread_metrics_by_record(task: TaskSpec, logits_BC: Tensor, target_Bt: Tensor, index_B: Tensor) -> Found:
    """As `metrics_by_record` of all ranks' records, each on one rank with all of its moments. Collective."""
    logits, target, row_B = logits_BC.double().numpy(), target_Bt.double().numpy(), record_rows(index_B)
    sums, rows = Sums(), dict[str, list[float]]()
    columns = means_by_record(task, logits, target, row_B)
    for number, column in enumerate(columns):
        for name, value_G in column.items():
            known_G = ~np.isnan(value_G)
            sums.add(f"count {number} {name}", int(known_G.sum()))
            sums.add(f"value {number} {name}", value_G[known_G])
    peaks = [
        (score_G, truth_G, ~np.isnan(truth_G)) for score_G, truth_G in peaks_by_record(task, logits, target, row_B)
    ]
    for number, (_, truth_G, known_G) in enumerate(peaks):
        sums.add(f"known {number}", int(known_G.sum()))
        sums.add(f"positive {number}", int(truth_G[known_G].sum()))
    total = sums.everywhere()
    for number, column in enumerate(columns):
        for name in column:
            if count := total[f"count {number} {name}"]:
                rows.setdefault(name, []).append(total[f"value {number} {name}"] / count)
    for number, (score_G, truth_G, known_G) in enumerate(peaks):
        if 0 < total[f"positive {number}"] < total[f"known {number}"]:
            found_areas = areas(torch.from_numpy(score_G[known_G]), torch.from_numpy(truth_G[known_G]))
            for name in PEAKS:
                rows.setdefault(name, []).append(found_areas[name])
    found = {name: float(np.mean(values)) for name, values in rows.items()}
    if "mse" in found:
        found["rmse"] = float(np.sqrt(found.pop("mse")))
    return {f"{name}{BY_RECORD}": value for name, value in found.items()}
