"""Predictions as Parquet: what the model said about each record, readable by anything and by `compare`.

One row a record, or one a moment of a record: its number in the data set, its key where known, the moment, and for each
task the prediction, its probability, the raw output and the label, if there is one. The tasks are in the file's
metadata, so a file explains itself.

Shape legend: B records, C logits of a task, t targets of a task.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
from pydantic import TypeAdapter
from torch import Tensor

from data_shards import TaskSpec
from trainer.metrics.predictions import Predictions
from trainer.metrics.said import OPEN_ENDED, Column, said

META = b"fleximoe.tasks"
STEP = b"fleximoe.step"  # of the checkpoint that said it
_TASKS = TypeAdapter(list[TaskSpec])


def predictions_table(tasks: list[TaskSpec], predictions: Predictions, keys: list[str] | None = None) -> pa.Table:
    """Columns `record`, `key`, and per task `TASK.prediction`, `.probability`, `.logits` (`.value`), `.target`.

    Where records are seen at moments, also `moment`, null for a record that is seen whole.

    `prediction` is a class name, 0 or 1, a list of label names, or the value in the target's unit; `probability` is
    that of class 1 (binary) or of every class or label in the order of the task. Of survival there are `TASK.survival`,
    the chance to live beyond each edge, `.median`, the time at which it is one half (null if that lies beyond the last
    edge), and `.risk`, the time lost before the last edge on average; `.target` is the time and 1 = seen, 0 = censored.
    """
    columns: dict[str, pa.Array] = {"record": pa.array(predictions.index_B.numpy())}
    if keys is not None:
        columns["key"] = pa.array(keys, pa.string())
    if predictions.moment_B is not None:
        columns["moment"] = _floats(predictions.moment_B[:, None], null_nan=True)
    for task in tasks:
        target_Bt = predictions.targets[task.name]
        own = said(task, predictions.logits[task.name])
        columns |= {f"{task.name}.{name}": _array(task, column, name in OPEN_ENDED) for name, column in own.items()}
        columns[f"{task.name}.target"] = _floats(target_Bt, null_nan=True)
    columns |= {name: _floats(value_B[:, None], null_nan=True) for name, value_B in predictions.measures.items()}
    described = json.dumps([asdict(task) for task in tasks])
    return pa.table(columns).replace_schema_metadata({META: described.encode()})


def _array(task: TaskSpec, column: Column, null_nan: bool) -> pa.Array:
    if isinstance(column, list):
        return pa.array(column, pa.list_(pa.string()) if task.kind == "multilabel" else pa.string())
    return _floats(column, null_nan) if column.is_floating_point() else pa.array(column.numpy())


def _floats(x_BC: Tensor, null_nan: bool = False) -> pa.Array:
    """A float32 column; a list column where there are several values a record. NaN becomes null where asked for."""
    flat = x_BC.float().numpy().reshape(-1)
    values = pa.array(flat, pa.float32(), mask=np.isnan(flat) if null_nan else None)
    return values if x_BC.shape[1] == 1 else pa.FixedSizeListArray.from_arrays(values, x_BC.shape[1])


def write_predictions(path: Path, tasks: list[TaskSpec], predictions: Predictions, step: int | None = None) -> None:
    """One Parquet file; `step` is that of the checkpoint that said it."""
    table = predictions_table(tasks, predictions)
    if step is not None:
        table = table.replace_schema_metadata({**table.schema.metadata, STEP: str(step).encode()})
    pyarrow.parquet.write_table(table, path)


def read_predictions(path: Path) -> tuple[list[TaskSpec], Predictions]:
    """Inverse of `write_predictions`. Raises ValueError for a file that is none of ours."""
    try:
        return predictions_of(pyarrow.parquet.read_table(path))
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds no predictions: {error}") from None


def predictions_of(table: pa.Table) -> tuple[list[TaskSpec], Predictions]:
    """Inverse of `predictions_table`, without measures. Raises KeyError, TypeError, ValueError: it is none of ours."""
    tasks = _TASKS.validate_json(table.schema.metadata[META])
    logits, targets = {}, {}
    for task in tasks:
        output = "value" if task.kind == "regression" else "logits"
        logits[task.name] = _tensor(table[f"{task.name}.{output}"])
        targets[task.name] = _tensor(table[f"{task.name}.target"])
    moment_B = _tensor(table["moment"])[:, 0] if "moment" in table.column_names else None
    index_B = torch.from_numpy(table["record"].to_numpy().copy())
    return tasks, Predictions(index_B, logits, targets, moment_B=moment_B)


def _tensor(column: Any) -> Tensor:
    """(B, C) float32; null becomes NaN."""
    array = column.combine_chunks()
    width = array.type.list_size if pa.types.is_fixed_size_list(array.type) else 1
    values = array.flatten() if width > 1 else array
    return torch.from_numpy(values.to_numpy(zero_copy_only=False).astype(np.float32)).view(-1, width)
