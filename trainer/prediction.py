"""A checkpoint applied to records: a model without engine or process group, and tables of what it says.

A data set is cut into pieces at chunk boundaries; a piece is predicted on its own, so pieces may be handed to any
number of processes in any order, and put together again in the order of the data set.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from data_shards import Batch, DatasetSchema, EpochOrder, TaskSpec, open_manifest
from data_shards.collate import Collator
from data_shards.config import DataConfig
from data_shards.manifest import Manifest
from data_shards.reader import Reader
from trainer.checkpoint import Checkpoint, CheckpointError, open_checkpoint
from trainer.describe import schema_difference
from trainer.explain import modality_shares, watched_forward
from trainer.export import checkpoint_model
from trainer.metrics import Predictions
from trainer.prediction_files import predictions_table

PIECE_RECORDS = 1024


@dataclass(frozen=True)
class Request:
    """What is predicted, by which checkpoint, and how. Plain values: it travels to other processes.

    Attributes:
        part: of the split in `data`; None = every record of the data set.
        temperatures: task -> number that its logits are divided by; tasks that are not named are left as they are.
    """

    checkpoint: str
    data: DataConfig
    part: str | None
    batch_size: int
    explain: bool = False
    temperatures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Piece:
    """Records [start, stop) of the part, in storage order."""

    start: int
    stop: int


def cut_pieces(counts_C: np.ndarray, records: int = PIECE_RECORDS) -> list[Piece]:
    """Whole chunks, together about `records` records each; `counts_C` are the part's records in each chunk."""
    pieces, start, stop = [], 0, 0
    for count in counts_C.tolist():
        stop += count
        if stop - start >= records:
            pieces.append(Piece(start, stop))
            start = stop
    return [*pieces, Piece(start, stop)] if stop > start else pieces


class Predictor:
    """A loaded model, ready for pieces.

    Raises:
        CheckpointError: no such checkpoint, or data with other modalities. ManifestError: no such data.
    """

    def __init__(self, request: Request, device: torch.device | str = "cpu") -> None:
        self.request, self.device = request, torch.device(device)
        checkpoint = open_checkpoint(request.checkpoint)
        check_predictable(checkpoint)
        self.manifest = open_manifest(request.data.url, request.data.storage_options)
        self.tasks = model_tasks(checkpoint, self.manifest)
        self.model = checkpoint_model(checkpoint, device)
        self._reader = Reader(self.manifest, request.data, request.part)
        self._collate = Collator(self.manifest.schema)
        counts = self.manifest.counts(request.data.split, request.part)
        self._order = EpochOrder(counts, 0, 0, request.data.window_chunks, shuffle=False)

    def pieces(self) -> list[Piece]:
        """All of the part."""
        return cut_pieces(self.manifest.counts(self.request.data.split, self.request.part))

    def __call__(self, piece: Piece) -> tuple[pa.Table, dict[str, int]]:
        """The piece's rows, in storage order, and how many records were skipped for which reason.

        Raises ShardError for damaged records, unless the data section says to skip them.
        """
        tables: list[pa.Table] = []
        skipped: Counter[str] = Counter()
        for start in range(piece.start, piece.stop, self.request.batch_size):
            stop = min(start + self.request.batch_size, piece.stop)
            records, numbers, lost = self._reader.read(*self._order.take(start, stop))
            skipped.update(lost)
            batch = self._collate(records, numbers)
            with torch.no_grad():
                tables.append(self._rows(batch.to(self.device)))
        return pa.concat_tables(tables), dict(skipped)

    def _rows(self, batch: Batch) -> pa.Table:
        if self.request.explain:
            output, share_BLE = watched_forward(self.model, batch)
        else:
            output = self.model(batch)
        logits = {
            task.name: (output.logits[task.name] / self.request.temperatures.get(task.name, 1.0)).cpu()
            for task in self.tasks
        }
        targets = {task.name: self._targets(batch, task) for task in self.tasks}
        table = predictions_table(self.tasks, Predictions(batch.index_B.cpu(), logits, targets), batch.keys)
        if self.request.explain:
            for name, share_BM in modality_shares(self.model, batch, self.tasks, output).items():
                table = table.append_column(f"{name}.modality_share", self._by_modality(share_BM, batch))
            table = table.append_column("expert_share", _nested(share_BLE))
        return table

    def _targets(self, batch: Batch, task: TaskSpec) -> torch.Tensor:
        """Labels, if the data have any for this task."""
        width = 1 if task.kind == "multiclass" else task.dim
        known = task.name in self.manifest.schema.task_names and self.manifest.schema.task(task.name) == task
        return batch.targets[task.name].cpu() if known else torch.full((len(batch), width), torch.nan)

    def _by_modality(self, share_BM: torch.Tensor, batch: Batch) -> pa.Array:
        """One named number per modality; null where the record does not have it."""
        share_BM, absent_BM = share_BM.cpu(), ~batch.present_BM.cpu()
        names = self.manifest.schema.modality_names
        columns = [
            pa.array(share_BM[:, m].numpy(), pa.float32(), mask=absent_BM[:, m].numpy()) for m in range(len(names))
        ]
        return pa.StructArray.from_arrays(columns, list(names))


def check_predictable(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError for models that need more than their checkpoint and one data set."""
    config = checkpoint.meta["config"]
    if config["job"] != "fusemoe":
        raise CheckpointError(f"{checkpoint.path} is of job={config['job']}; predict takes models of job=fusemoe")
    if config["data"].get("mixture"):
        raise CheckpointError(f"{checkpoint.path} was trained on a mixture; predict takes models of one data set")


def model_tasks(checkpoint: Checkpoint, manifest: Manifest) -> list[TaskSpec]:
    """The tasks that a checkpoint answers. Raises CheckpointError if it was trained on other modalities."""
    schema = DatasetSchema.from_json(json.dumps(checkpoint.meta["schema"]))
    difference = schema_difference(schema, manifest.schema, tasks=False)
    if difference:
        raise CheckpointError(f"{manifest.url} does not fit checkpoint {checkpoint.path}: {difference}")
    return [schema.task(name) for name in checkpoint.meta["config"]["training"]["tasks"] or schema.task_names]


def _nested(share_BLE: torch.Tensor) -> pa.Array:
    """A list of blocks, each a list of experts, per record."""
    _, layers, experts = share_BLE.shape
    flat: Any = pa.array(share_BLE.cpu().reshape(-1).numpy(), pa.float32())
    return pa.FixedSizeListArray.from_arrays(pa.FixedSizeListArray.from_arrays(flat, experts), layers)
