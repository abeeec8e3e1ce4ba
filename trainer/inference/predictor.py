"""A checkpoint applied to records: a model without engine or process group, and tables of what it says.

A data set is cut into stretches at chunk boundaries; a stretch is predicted on its own, so they may be handed to any
number of processes in any order, and put together again in the order of the data set. A model of a mixture predicts
one data set at a time, in the place of the one that it was trained on; the answers are to that one's tasks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from data_shards import Batch, EpochOrder, open_manifest
from data_shards.loading.collate import Collator
from data_shards.loading.schema_map import place_of
from data_shards.shards.reader import Reader
from trainer.checkpoints.checkpoint import Checkpoint
from trainer.inference.embedder import Embedder
from trainer.inference.explain import check_explainable
from trainer.inference.export import checkpoint_model
from trainer.inference.request import Request, checkpoint_schema, load_needed, model_tasks
from trainer.inference.rows import Rows

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
        self.schema = schema = checkpoint_schema(checkpoint)
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
        self._collate = Collator(schema)
        names = dict(zip(self._place.numbers.tolist(), self.manifest.schema.modality_names, strict=True))
        vocabularies = {
            number: self.manifest.vocabulary(name)
            for number, name in names.items()
            if request.explain and schema.modalities[number].kind == "codes"
        }
        self._rows = Rows(
            self.model,
            schema,
            self.tasks,
            names,
            request.temperatures,
            request.explain,
            request.embeddings,
            vocabularies,
        )
        self._order = EpochOrder(
            self.manifest.counts(data.split, request.part), 0, 0, data.window_chunks, shuffle=False
        )

    def stretches(self) -> list[Stretch]:
        """All of the part."""
        return cut_stretches(self.manifest.counts(self.request.config.data.split, self.request.part))

    def batches(self, stretch: Stretch) -> Iterator[tuple[Batch, dict[str, int]]]:
        """The stretch's batches, and how many samples of each were skipped for which reason."""
        for start in range(stretch.start, stretch.stop, self.request.batch_size):
            stop = min(start + self.request.batch_size, stretch.stop)
            records, numbers, lost = self._reader.read(*self._order.take(start, stop))
            if self._embedder is not None and records:
                records, _ = self._embedder(records)
            batch = self._collate([self._place.put(r) for r in records], numbers, self._place.known(len(records)))
            yield batch.to(self.device), dict(lost)

    def __call__(self, stretch: Stretch) -> tuple[pa.Table, dict[str, int]]:
        """The stretch's rows, in storage order, and how many samples were skipped for which reason.

        Raises ShardError for damaged records, unless the data section says to skip them.
        """
        tables: list[pa.Table] = []
        skipped: Counter[str] = Counter()
        for batch, lost in self.batches(stretch):
            skipped.update(lost)
            tables.append(self._rows(batch))
        return pa.concat_tables(tables), dict(skipped)
