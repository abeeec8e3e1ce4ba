"""What a mapping's records look like: the schema of the packed data set."""

from __future__ import annotations

from typing import Any

from data_shards.records.schema import DatasetSchema, ModalitySpec, TaskSpec
from data_shards.sources.tables.mapping import Mapping, Task
from data_shards.sources.tables.modalities import (
    CodesTable,
    ImageTable,
    Modality,
    ObjectTable,
    SeriesTable,
    TextTable,
    VectorTable,
    WaveformTable,
)


def dataset_schema(mapping: Mapping) -> DatasetSchema:
    """Modalities and tasks in the order of the file; ValueError as the schema's own."""
    modalities = [_spec(name, modality) for name, modality in mapping.modalities.items()]
    tasks = [_task(name, task) for name, task in mapping.tasks.items()]
    return DatasetSchema(mapping.name, tuple(modalities), tuple(tasks), mapping.description)


def _spec(name: str, table: Modality) -> ModalitySpec:
    """Of a series and of all that has a time with its window."""
    about: dict[str, Any] = {"kind": table.kind, "unit": table.unit, "description": table.description}  # type: ignore[attr-defined]
    if table.timed:
        about |= {"time_unit": table.time_unit, "horizon": table.horizon}
        about |= {} if isinstance(table, SeriesTable) else {"timed": True}
    if isinstance(table, ObjectTable):
        about["max_objects"] = table.max_objects
    return ModalitySpec(name, **about, **_shape(table))


def _shape(table: Modality) -> dict[str, Any]:
    """What the kinds do not share."""
    if isinstance(table, SeriesTable):
        return {"channels": table.names, "units": table.units, "max_length": table.max_length}
    if isinstance(table, VectorTable):
        known = tuple(f"{column}_known" for column in table.columns) if table.empty == "known" else ()
        names = table.columns + known
        return {"channels": names, "shape": (table.size or len(names),)}
    if isinstance(table, TextTable):
        return {"max_length": table.max_length}
    if isinstance(table, ImageTable):
        return {"shape": (table.channels, table.height, table.width), "dtype": "uint8"}
    if isinstance(table, CodesTable):
        return {"valued": table.value is not None, "max_length": table.max_length}
    assert isinstance(table, WaveformTable), "all kinds are named"
    about: dict[str, Any] = {"channels": table.lead_names, "shape": (table.lead_count,)}
    return about | {"rate": table.rate, "max_length": table.max_length}


def _task(name: str, task: Task) -> TaskSpec:
    about: dict[str, Any] = {"unit": task.unit, "description": task.description}
    if task.kind == "survival":
        # Until the training part was seen, their number is all that is known
        edges = task.edges or tuple(range(1, (task.intervals or 0) + 1))
        return TaskSpec(name, task.kind, edges=edges, unit=task.time_unit, description=task.description)
    if task.at_moments:
        about |= {"timed": True, "time_unit": task.time_unit}
    classes = task.columns if task.kind == "multilabel" else task.names
    dim = len(task.columns) or 1 if task.kind == "regression" else 0
    return TaskSpec(name, task.kind, classes=classes, dim=dim, **about)
