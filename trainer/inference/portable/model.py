"""An exported model that takes records in their plain form (`portable.values`) and says what `predict` says of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from data_shards import Batch, DatasetSchema, Record
from data_shards.loading.collate import Collator
from data_shards.packing.encode import newest
from data_shards.records.codec import encode_record
from data_shards.records.columns import Columns, cut, samples_of
from data_shards.records.decoder import Decoder
from trainer.checkpoints.description import statistics_from_json
from trainer.checkpoints.pieces import CheckpointError
from trainer.config.run_config import RunConfig
from trainer.inference.answers import predicted
from trainer.inference.explain import check_explainable
from trainer.inference.exported import exported, exported_vocabularies
from trainer.inference.portable.example import example_record, plain_form
from trainer.inference.portable.values import Fields, record_of
from trainer.metrics.predictions import Predictions
from trainer.metrics.said import plain_rows
from trainer.models.job_type import job_type

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

BATCH = 64
Answers = Callable[[Batch], "pa.Table"]


class PortableModel:
    """A model of one data set, ready for records.

    Args:
        url: folder that `checkpoint export` wrote.

    Raises:
        CheckpointError: no export, a damaged one, or one of a mixture of data sets.
    """

    def __init__(self, url: str, device: torch.device | str = "cpu") -> None:
        about, config, self.model = exported(url, device)
        self.opened(url, about, config, device)

    def opened(self, url: str, about: dict[str, Any], config: RunConfig, device: torch.device | str) -> None:
        """What is needed besides the model. Raises CheckpointError: of a mixture of data sets."""
        if config.data.mixture:
            raise CheckpointError(
                f"{url} was trained on a mixture of data sets, and plain records belong to none of them: use `predict`"
            )
        self.url, self.about, self.device = url, about, torch.device(device)
        self.schema = DatasetSchema.from_json(json.dumps(about["schema"]))
        self.tasks = job_type(config.model_job).tasks(config, self.schema)
        self._vocabularies = exported_vocabularies(url, about)
        self._decoder, self._collate = Decoder(self.schema), Collator(self.schema)

    def records(self, given: Sequence[Fields]) -> list[Record]:
        """Records from their plain form, those without a key called by their numbers. Raises ValueError."""
        return [record_of(fields, self.schema, number) for number, fields in enumerate(given)]

    def columns(self, record: Record) -> list[Columns]:
        """The samples of a record as a batch is built from: one, or one a moment.

        Raises:
            ValueError: it does not fit the schema, or has codes whose vocabulary was not exported.
        """
        kept, _ = newest(record, self.schema)
        stored = self._decoder.columns(encode_record(kept, self.schema, self._vocabularies), record.key)
        return [cut(stored, self.schema, number) for number in range(samples_of(stored))]

    def batch(self, records: Sequence[Record]) -> Batch:
        """Records as the model's batch, on the CPU. Raises ValueError: see `columns`."""
        samples = self._samples(records)
        return self._collate([own for own, _ in samples], np.array([number for _, number in samples], np.int64))

    def answer(self, given: Sequence[Fields | Record]) -> list[dict[str, Any]]:
        """As `predict`, of plain records or `Record`s, each row a dict of plain values: without pyarrow and pandas.

        Raises ValueError: see `columns`; a record that is not in the plain form.
        """
        own = [
            each if isinstance(each, Record) else record_of(each, self.schema, number)
            for number, each in enumerate(given)
        ]
        batches = self._batches(self._samples(own))
        return [row for batch in batches for row in plain_rows(self.tasks, self.predictions(batch), batch.keys)]

    def predictions(self, batch: Batch) -> Predictions:
        """What the model says of a batch, without gradients."""
        with torch.no_grad():
            return predicted(self.tasks, self.model(batch), batch)

    def predict(self, records: Sequence[Record], explain: bool = False, embeddings: bool = False) -> pa.Table:
        """The rows of `predict`, without labels: one a record, or one a moment; `record` is its place in the list.

        Raises ValueError: see `columns`; a model that cannot be explained.
        """
        return self.said(self._samples(records), explain, embeddings)

    def said(self, samples: Sequence[tuple[Columns, int]], explain: bool = False, embeddings: bool = False) -> pa.Table:
        """As `predict`, of samples with the number of the record that each is of."""
        import pyarrow as pa  # `answer` needs none

        rows = self.answers(explain, embeddings)
        tables = [rows(batch) for batch in self._batches(samples)]
        if not tables:
            raise ValueError("there is no record to predict")
        table = pa.concat_tables(tables)
        labels = [f"{task.name}.target" for task in self.tasks]
        return table.drop_columns(labels)

    def rows(self, given: Sequence[Fields], **wishes: bool) -> pd.DataFrame:
        """As `predict`, of plain records, as a data frame whose lists are lists."""
        import pandas as pd  # what predicts without a frame needs none

        table = self.predict(self.records(given), **wishes)
        return pd.DataFrame({name: table[name].to_pylist() for name in table.column_names})

    @cached_property
    def example(self) -> dict[str, Any]:
        """A made-up plain record (`portable.example`)."""
        statistics = statistics_from_json(self.about["statistics"])
        return example_record(self.schema, statistics, self._vocabularies)

    def _samples(self, records: Sequence[Record]) -> list[tuple[Columns, int]]:
        return [(own, number) for number, record in enumerate(records) for own in self.columns(record)]

    def _batches(self, samples: Sequence[tuple[Columns, int]]) -> Iterator[Batch]:
        for start in range(0, len(samples), BATCH):
            part = samples[start : start + BATCH]
            numbers = np.array([number for _, number in part], np.int64)
            yield self._collate([own for own, _ in part], numbers).to(self.device)

    def answers(self, explain: bool = False, embeddings: bool = False) -> Answers:
        """What says the rows of a batch. Raises ValueError: a model that cannot be explained."""
        from trainer.inference.rows import Rows  # tables of pyarrow: `answer` needs none

        if explain:
            check_explainable(self.model)
        names, numbers = dict(enumerate(self.schema.modality_names)), self.schema.numbers
        vocabularies = {numbers[name]: own for name, own in self._vocabularies.items()}
        return Rows(self.model, self.schema, self.tasks, names, {}, explain, embeddings, vocabularies)

    @cached_property
    def description(self) -> dict[str, Any]:
        """Modalities and tasks in JSON, for those who send records."""
        modalities = [
            {
                "name": spec.name,
                "kind": spec.kind,
                "form": plain_form(spec),
                "timed": spec.has_times,
                "time_unit": spec.time_unit,
                "channels": list(spec.channels),
                "units": list(spec.units) or ([spec.unit] if spec.unit else []),
                "shape": list(spec.shape),
            }
            for spec in self.schema.modalities
        ]
        tasks = [
            {"name": t.name, "kind": t.kind, "classes": list(t.classes), "edges": list(t.edges), "unit": t.unit}
            for t in self.tasks
        ]
        about = {"data": self.schema.name, "step": self.about["step"], "calibration": self.about.get("calibration")}
        return {**about, "modalities": modalities, "tasks": tasks}
