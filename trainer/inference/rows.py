"""What a model says of a batch, as the rows that `predict` writes.

Shape legend: B records, M modalities, L blocks, E experts, K weights of prompts, C logits of a task.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from data_shards import Batch, DatasetSchema, TaskSpec
from data_shards.records.vocabulary import Vocabulary
from trainer.inference.answers import predicted
from trainer.inference.embeddings import embedding_columns, watched_tokens
from trainer.inference.explain import explain
from trainer.inference.explain_objects import explain_objects, has_objects, object_columns
from trainer.metrics.prediction_table import predictions_table


@dataclass(frozen=True)
class Rows:
    """Batch -> table.

    Attributes:
        schema: modalities as the model numbers them. tasks: that it answers.
        names: modality number of the model -> name in the table, in the order of its columns.
        temperatures: task -> number that its logits are divided by. explain: add what each answer rests on.
        embeddings: add the pooled vector and the tokens. vocabularies: modality number -> names of codes, to explain.
    """

    model: nn.Module
    schema: DatasetSchema
    tasks: list[TaskSpec]
    names: Mapping[int, str]
    temperatures: Mapping[str, float] = field(default_factory=dict)
    explain: bool = False
    embeddings: bool = False
    vocabularies: Mapping[int, Vocabulary] = field(default_factory=dict)

    def __call__(self, batch: Batch) -> pa.Table:
        """One row a sample, in the order of the batch, whose plan is not needed. Without gradients."""
        with torch.no_grad():
            return self._rows(batch)

    def _rows(self, batch: Batch) -> pa.Table:
        explained = explain(self.model, batch, self.tasks) if self.explain else None
        tokens = None
        if explained is not None:
            output = explained.output
        elif self.embeddings:
            output, tokens = watched_tokens(self.model, batch)
        else:
            output = self.model(batch)
        said = predicted(self.tasks, output, batch, self.temperatures)
        table = predictions_table(self.tasks, said, batch.keys)
        if self.embeddings:
            if tokens is None:
                _, tokens = watched_tokens(self.model, batch)
            table = _with(table, embedding_columns(output.pooled_BX, tokens, self.names, len(batch)))
        if explained is None:
            return table
        for name, share_BM in explained.modalities.items():
            table = table.append_column(f"{name}.modality_share", self._by_modality(share_BM, batch))
        if explained.experts_BLE is not None:
            table = table.append_column("expert_share", _nested(explained.experts_BLE))
        if has_objects(self.schema):
            found = explain_objects(self.model, batch, self.schema, self.tasks, output, dict(self.vocabularies))
            table = _with(table, object_columns(found, dict(self.names), len(batch)))
        if output.experts:
            table = table.append_column("prompt_share", _by_site(output.experts))
        return table

    def _by_modality(self, share_BM: torch.Tensor, batch: Batch) -> pa.Array:
        """One named number per modality; null where the record does not have it."""
        own = list(self.names)
        share_BM, absent_BM = share_BM.cpu()[:, own], ~batch.present_BM.cpu()[:, own]
        columns = [
            pa.array(share_BM[:, m].numpy(), pa.float32(), mask=absent_BM[:, m].numpy()) for m in range(len(own))
        ]
        return pa.StructArray.from_arrays(columns, list(self.names.values()))


def _with(table: pa.Table, columns: Mapping[str, pa.Array]) -> pa.Table:
    for name, column in columns.items():
        table = table.append_column(name, column)
    return table


def _nested(share_BLE: torch.Tensor) -> pa.Array:
    """A list of blocks, each a list of experts, per record."""
    _, layers, experts = share_BLE.shape
    flat: Any = pa.array(share_BLE.cpu().reshape(-1).numpy(), pa.float32())
    return pa.FixedSizeListArray.from_arrays(pa.FixedSizeListArray.from_arrays(flat, experts), layers)


def _by_site(weights: dict[str, torch.Tensor]) -> pa.StructArray:
    """For each place of prompts a list of K weights; null for a record without the modality that is prompted there."""
    columns = []
    for weight_BK in weights.values():
        flat = pa.array(weight_BK.float().cpu().reshape(-1).numpy(), pa.float32())
        absent = pa.array(weight_BK.isnan().any(1).cpu().numpy())
        # Not of a fixed size: Parquet keeps nothing of a null, and such a list could not be read back.
        ends = pa.array(np.arange(len(weight_BK) + 1) * weight_BK.shape[1], pa.int32())
        columns.append(pa.ListArray.from_arrays(ends, flat, mask=absent))
    return pa.StructArray.from_arrays(columns, list(weights))
