"""What a model says of records in the words of their tasks, as plain values: no table, and no library for tables.

Shape legend: B records, C logits of a task.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from data_shards import TaskSpec
from trainer.metrics.predictions import Predictions
from trainer.metrics.survival import median_time, risk, survival_at_edges

OPEN_ENDED = ("median",)  # columns in which NaN means that there is no such number

Column = Tensor | list[str] | list[list[str]]


def said(task: TaskSpec, logits_BC: Tensor) -> dict[str, Column]:
    """What the model says for one task: columns without the task's name; float ones are (B, C), also where C is 1."""
    if task.kind == "regression":
        return {"value": logits_BC}
    if task.kind == "survival":
        return {
            "survival": survival_at_edges(logits_BC),
            "median": median_time(task, logits_BC)[:, None],
            "risk": risk(task, logits_BC)[:, None],
            "logits": logits_BC,
        }
    prediction: Column
    if task.kind == "binary":
        probability_BC = logits_BC.sigmoid()
        prediction = (probability_BC[:, 0] > 0.5).to(torch.int8)
    elif task.kind == "multiclass":
        probability_BC = logits_BC.softmax(dim=1)
        prediction = [task.classes[number] for number in probability_BC.argmax(dim=1).tolist()]
    else:
        probability_BC = logits_BC.sigmoid()
        rows = (probability_BC > 0.5).tolist()
        prediction = [[name for name, yes in zip(task.classes, row, strict=True) if yes] for row in rows]
    return {"prediction": prediction, "probability": probability_BC, "logits": logits_BC}


def plain_rows(tasks: Sequence[TaskSpec], predictions: Predictions, keys: Sequence[str] | None) -> list[dict[str, Any]]:
    """The rows of `prediction_table.predictions_table` without labels and measures, each a dict of plain values."""
    columns: dict[str, list[Any]] = {"record": predictions.index_B.tolist()}
    if keys is not None:
        columns["key"] = list(keys)
    if predictions.moment_B is not None:
        columns["moment"] = _plain(predictions.moment_B[:, None], null_nan=True)
    for task in tasks:
        for name, column in said(task, predictions.logits[task.name]).items():
            columns[f"{task.name}.{name}"] = _plain(column, null_nan=name in OPEN_ENDED)
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _plain(column: Column, null_nan: bool) -> list[Any]:
    if isinstance(column, list):
        return list(column)
    if not column.is_floating_point():
        return column.tolist()
    column = column.float()
    values: list[Any] = column[:, 0].tolist() if column.shape[1] == 1 else column.tolist()
    return [None if math.isnan(value) else value for value in values] if null_nan else values
