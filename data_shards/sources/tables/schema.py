"""What a mapping's records look like: the schema of the packed data set."""

from __future__ import annotations

from typing import Any

from data_shards.records.schema import DatasetSchema, Kind, ModalitySpec, TaskSpec
from data_shards.sources.tables.mapping import (
    ImageTable,
    Mapping,
    SeriesTable,
    Task,
    TextTable,
    VectorTable,
)


def dataset_schema(mapping: Mapping) -> DatasetSchema:
    """Modalities and tasks in the order of the file; ValueError as the schema's own."""
    modalities = [_spec(name, modality) for name, modality in mapping.modalities.items()]
    tasks = [_task(name, task) for name, task in mapping.tasks.items()]
    return DatasetSchema(mapping.name, tuple(modalities), tuple(tasks), mapping.description)


def _spec(name: str, table: Any) -> ModalitySpec:
    kind: Kind = table.kind
    about = {"unit": table.unit, "description": table.description}
    if isinstance(table, SeriesTable):
        window = {"time_unit": table.time_unit, "horizon": table.horizon, "max_length": table.max_length}
        return ModalitySpec(name, kind, channels=table.names, units=table.units, **window, **about)  # type: ignore[arg-type]
    if isinstance(table, VectorTable):
        known = tuple(f"{column}_known" for column in table.columns) if table.empty == "known" else ()
        names = table.columns + known
        return ModalitySpec(name, kind, channels=names, shape=(table.size or len(names),), **about)
    if isinstance(table, TextTable):
        return ModalitySpec(name, kind, max_length=table.max_length, **about)
    if isinstance(table, ImageTable):
        return ModalitySpec(name, kind, shape=(table.channels, table.height, table.width), dtype="uint8", **about)
    leads = table.leads if isinstance(table.leads, tuple) else ()
    shape = (len(leads) or table.leads,)
    return ModalitySpec(
        name, kind, channels=leads, shape=shape, rate=table.rate, max_length=table.max_length, **about
    )  # fmt: skip


def _task(name: str, task: Task) -> TaskSpec:
    classes = task.columns if task.kind == "multilabel" else task.classes
    dim = len(task.columns) or 1 if task.kind == "regression" else 0
    return TaskSpec(name, task.kind, classes=classes, dim=dim, unit=task.unit, description=task.description)
