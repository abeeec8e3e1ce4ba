"""A checkpoint applied to records: a model without engine or process group, and tables of what it says.

A data set is cut into stretches at chunk boundaries; a stretch is predicted on its own, so they may be handed to any
number of processes in any order, and put together again in the order of the data set. A model of a mixture predicts
one data set at a time, in the place of the one that it was trained on; the answers are to that one's tasks.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from data_shards import Batch, EpochOrder, open_manifest
from data_shards.loading.collate import Collator
from data_shards.loading.schema_map import place_of
from data_shards.shards.reader import Reader
from trainer.checkpoints.checkpoint import Checkpoint
from trainer.inference.embedder import Embedder
from trainer.inference.explain import check_explainable, explain
from trainer.inference.explain_objects import explain_objects, has_objects, object_columns
from trainer.inference.export import checkpoint_model
from trainer.inference.request import Request, checkpoint_schema, load_needed, model_tasks
from trainer.metrics.prediction_table import predictions_table
from trainer.metrics.predictions import Predictions

STRETCH_SAMPLES = 1024


@dataclass(frozen=True)
class Stretch:
    """Samples [start, stop) of the part, in storage order: records, or moments of records."""

    start: int
    stop: int


def cut_stretches(counts_C: np.ndarray, samples: int = STRETCH_SAMPLES) -> list[Stretch]:
    """Whole chunks, together about `samples` samples each; `counts_C` are the part's samples in each chunk."""
    stretches, start, stop = [], 0, 0
    for count in counts_C.tolist():
        stop += count
        if stop - start >= samples:
            stretches.append(Stretch(start, stop))
            start = stop
    return [*stretches, Stretch(start, stop)] if stop > start else stretches


class Predictor:
    """A loaded model, ready for stretches.

    Args:
        checkpoint: the one that `request` names, opened.

    Raises:
        CheckpointError: data with other modalities, or an encoder that they need is not the one.
        ManifestError: no such data.
    """

    def __init__(self, request: Request, checkpoint: Checkpoint, device: torch.device | str = "cpu") -> None:
        self.request, self.device, data = request, torch.device(device), request.config.data
        self.manifest = open_manifest(data.url, data.storage_options)
        schema = checkpoint_schema(checkpoint)
        self.tasks = model_tasks(checkpoint, self.manifest, request.member)
        self.model = checkpoint_model(checkpoint, device, request.config)
        if request.explain:
            check_explainable(self.model)
        self._reader = Reader(self.manifest, data, request.part)
        encoders = load_needed(checkpoint, self.manifest.schema, request)
        own = {name: encoder.to(self.device) for name, encoder in encoders.items()}
        self._embedder = Embedder(self.manifest.schema, own, self.device) if own else None
        read = self.manifest.schema if self._embedder is None else self._embedder.schema
        self._place = place_of(read, schema, request.member)
        self._schema, self._collate = schema, Collator(schema)
        self._names = dict(zip(self._place.numbers.tolist(), self.manifest.schema.modality_names, strict=True))
        self._vocabularies = {
            number: self.manifest.vocabulary(name)
            for number, name in self._names.items()
            if request.explain and schema.modalities[number].kind == "codes"
        }
        self._order = EpochOrder(
            self.manifest.counts(data.split, request.part), 0, 0, data.window_chunks, shuffle=False
        )

    def stretches(self) -> list[Stretch]:
        """All of the part."""
        return cut_stretches(self.manifest.counts(self.request.config.data.split, self.request.part))

    def __call__(self, stretch: Stretch) -> tuple[pa.Table, dict[str, int]]:
        """The stretch's rows, in storage order, and how many samples were skipped for which reason.

        Raises ShardError for damaged records, unless the data section says to skip them.
        """
        tables: list[pa.Table] = []
        skipped: Counter[str] = Counter()
        for start in range(stretch.start, stretch.stop, self.request.batch_size):
            stop = min(start + self.request.batch_size, stretch.stop)
            records, numbers, lost = self._reader.read(*self._order.take(start, stop))
            skipped.update(lost)
            if self._embedder is not None and records:
                records, _ = self._embedder(records)
            batch = self._collate([self._place.put(r) for r in records], numbers, self._place.known(len(records)))
            with torch.no_grad():
                tables.append(self._rows(batch.to(self.device)))
        return pa.concat_tables(tables), dict(skipped)

    def _rows(self, batch: Batch) -> pa.Table:
        explained = explain(self.model, batch, self.tasks) if self.request.explain else None
        output = explained.output if explained is not None else self.model(batch)
        logits = {
            task.name: (output.logits[task.name] / self.request.temperatures.get(task.name, 1.0)).cpu()
            for task in self.tasks
        }
        targets = {task.name: batch.targets[task.name].cpu() for task in self.tasks}
        moment_B = None if batch.moment_B is None else batch.moment_B.cpu()
        said = Predictions(batch.index_B.cpu(), logits, targets, moment_B=moment_B)
        table = predictions_table(self.tasks, said, batch.keys)
        if explained is None:
            return table
        for name, share_BM in explained.modalities.items():
            table = table.append_column(f"{name}.modality_share", self._by_modality(share_BM, batch))
        if explained.experts_BLE is not None:
            table = table.append_column("expert_share", _nested(explained.experts_BLE))
        if has_objects(self._schema):
            found = explain_objects(self.model, batch, self._schema, self.tasks, output, self._vocabularies)
            for name, column in object_columns(found, self._names, len(batch)).items():
                table = table.append_column(name, column)
        if output.experts:
            table = table.append_column("prompt_share", _by_site(output.experts))
        return table

    def _by_modality(self, share_BM: torch.Tensor, batch: Batch) -> pa.Array:
        """One named number per modality; null where the record does not have it."""
        own = torch.from_numpy(self._place.numbers.astype(np.int64))
        share_BM, absent_BM = share_BM.cpu()[:, own], ~batch.present_BM.cpu()[:, own]
        names = self.manifest.schema.modality_names
        columns = [
            pa.array(share_BM[:, m].numpy(), pa.float32(), mask=absent_BM[:, m].numpy()) for m in range(len(names))
        ]
        return pa.StructArray.from_arrays(columns, list(names))


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
