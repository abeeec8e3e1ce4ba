"""Exact metrics over a whole part of the data, whichever rank saw which record.

Ranks gather logits and targets, put them in the order of the data set, and one of them computes. Nothing is averaged
over batches or ranks, nothing is padded or counted twice, so the figures do not depend on the world size.

Shape legend: B records, C logits of a task, t targets of a task.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from data_shards import TaskSpec
from trainer.metrics.by_record import metrics_by_record
from trainer.metrics.calibration import reliability
from trainer.metrics.formulas import auroc, average_precision, counts_by_score, f1, macro_auroc, macro_f1, r2
from trainer.metrics.predictions import Predictions
from trainer.metrics.survival_scores import survival_names, survival_scores


def task_metrics(task: TaskSpec, logits_BC: Tensor, target_Bt: Tensor) -> dict[str, float]:
    """Metrics of one task over its labelled records; those that labels do not define are left out.

    binary: auroc, auprc (both classes), f1 (a positive), accuracy (threshold 0.5), brier, ece. multiclass: accuracy, f1
    (macro), auroc (macro, one against the rest; every class), brier (summed over classes), ece (of the chosen class).
    multilabel: those of binary, macro over labels. regression: mae, rmse, r2 (two values), in the target's unit.
    survival: as `survival_measures`.
    """
    labelled_B = (~target_Bt.isnan()).any(dim=1)
    # In double precision probabilities tie only where logits do, so ranking metrics do not depend on rounding.
    logits_BC, target_Bt = logits_BC[labelled_B].double(), target_Bt[labelled_B].double()
    if not len(target_Bt):
        return {}
    if task.kind == "survival":
        return survival_scores(task, logits_BC, target_Bt)
    compute = {"binary": _binary, "multiclass": _multiclass, "multilabel": _multilabel, "regression": _regression}
    return {name: float(value) for name, value in compute[task.kind](logits_BC, target_Bt).items()}


def metric_names(task: TaskSpec, values: Sequence[Collection[float]]) -> set[str]:
    """Names that `task_metrics` gives for labels with these values in each target column.

    Nothing is computed and no library is loaded, so that a recipe's metric can be checked before the first step.
    """
    if not any(values):
        return set()
    if task.kind == "regression":
        distinct = len({value for column in values for value in column})
        return {"mae", "rmse"} | ({"r2"} if distinct > 1 else set())
    if task.kind == "survival":
        return survival_names(task, values)
    if task.kind == "multiclass":
        every = len(values[0]) == len(task.classes)
        return {"accuracy", "f1", "brier", "ece"} | ({"auroc"} if every else set())
    names: set[str] = set()
    for column in values:
        names |= {"accuracy", "brier", "ece"} if column else set()
        names |= {"f1"} if 1 in column else set()
        names |= {"auroc", "auprc"} if {0, 1} <= set(column) else set()
    return names


def _binary(logits_B1: Tensor, target_B1: Tensor) -> dict[str, Tensor]:
    probability_B, truth_B = logits_B1[:, 0].sigmoid(), target_B1[:, 0].long()
    said_B = (probability_B > 0.5).long()
    metrics = {
        "accuracy": (said_B == truth_B).double().mean(),
        "brier": (probability_B - truth_B).square().mean(),
        "ece": torch.tensor(reliability(probability_B, truth_B).error, dtype=torch.float64),
    }
    # Without a positive there is nothing to find: 0 would be a mean over nothing.
    if int(truth_B.sum()):
        metrics["f1"] = f1((said_B & truth_B).sum(), said_B.sum(), truth_B.sum())
    if 0 < int(truth_B.sum()) < len(truth_B):
        counts = counts_by_score(probability_B, truth_B)
        metrics |= {"auroc": auroc(*counts), "auprc": average_precision(*counts)}
    return metrics


def _multiclass(logits_BC: Tensor, target_B1: Tensor) -> dict[str, Tensor]:
    classes, truth_B = logits_BC.shape[1], target_B1[:, 0].long()
    probability_BC = logits_BC.softmax(dim=1)
    stated_B, chosen_B = probability_BC.max(dim=1)
    metrics = {
        "accuracy": (chosen_B == truth_B).double().mean(),
        "f1": macro_f1(chosen_B, truth_B, classes),
        "brier": (probability_BC - functional.one_hot(truth_B, classes)).square().sum(dim=1).mean(),
        "ece": torch.tensor(reliability(stated_B, chosen_B == truth_B).error, dtype=torch.float64),
    }
    if len(truth_B.unique()) == classes:
        metrics["auroc"] = macro_auroc(probability_BC, truth_B)
    return metrics


def _multilabel(logits_BL: Tensor, target_BL: Tensor) -> dict[str, Tensor]:
    """Each label over the records that have it; macro means over the labels for which a figure exists."""
    rows: dict[str, list[Tensor]] = {}
    for label in range(logits_BL.shape[1]):
        known_B = ~target_BL[:, label].isnan()
        if known_B.any():
            for name, value in _binary(logits_BL[known_B, label, None], target_BL[known_B, label, None]).items():
                rows.setdefault(name, []).append(value)
    return {name: torch.stack(values).mean() for name, values in rows.items()}


def _regression(value_Bn: Tensor, target_Bn: Tensor) -> dict[str, Tensor]:
    known_Bn = ~target_Bn.isnan()
    value_X, target_X = value_Bn[known_Bn], target_Bn[known_Bn]
    metrics = {
        "mae": (value_X - target_X).abs().mean(),
        "rmse": (value_X - target_X).square().mean().sqrt(),
    }
    if len(target_X) > 1 and float(target_X.var()) > 0:
        metrics["r2"] = r2(value_X, target_X)
    return metrics


def part_metrics(part: str, tasks: list[TaskSpec], predictions: Predictions) -> dict[str, float]:
    """`test/auroc` for a single task, `test/<task>/auroc` for several; of moments also `test/auroc_by_record`."""
    metrics: dict[str, float] = {}
    for task in tasks:
        prefix = part if len(tasks) == 1 else f"{part}/{task.name}"
        logits_BC, target_Bt = predictions.logits[task.name], predictions.targets[task.name]
        values = task_metrics(task, logits_BC, target_Bt)
        if at_moments(predictions, target_Bt):
            values |= metrics_by_record(task, logits_BC, target_Bt, predictions.index_B)
        metrics.update({f"{prefix}/{name}": value for name, value in values.items()})
    return metrics


def at_moments(predictions: Predictions, target_Bt: Tensor) -> bool:
    """Whether labels are of moments; of a mixture, data sets of other tasks may have some."""
    labelled_B = (~target_Bt.isnan()).any(dim=1)
    return predictions.moment_B is not None and bool((~predictions.moment_B[labelled_B].isnan()).any())
