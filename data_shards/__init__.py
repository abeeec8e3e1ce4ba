"""Sharded multimodal records: what the model sees, in an order that depends on (seed, epoch) only.

Names are imported on first use, so that tools that only pack or look at data never load torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data_shards.config import DataConfig
    from data_shards.errors import ManifestError, PathError, RecordError, ShardError
    from data_shards.inspection.summary import summary
    from data_shards.loading.batch import (
        Batch,
        CodesGroup,
        Group,
        ImageGroup,
        SeriesGroup,
        TextGroup,
        VectorGroup,
        WaveformGroup,
    )
    from data_shards.loading.costs import TokenWeights
    from data_shards.loading.dataset import DataSet, open_data
    from data_shards.loading.loader import Step, StepLoader
    from data_shards.loading.order import EpochOrder, Position
    from data_shards.packing.pack import pack
    from data_shards.records.record import Codes, Objects, Record, Series
    from data_shards.records.schema import DatasetSchema, ModalitySpec, TaskSpec, group_layout
    from data_shards.shards.manifest import Manifest
    from data_shards.shards.opening import open_manifest
    from data_shards.sources import create_source
    from data_shards.sources.base import Source

_HOME = {
    "loading.batch": (
        "Batch",
        "CodesGroup",
        "Group",
        "ImageGroup",
        "SeriesGroup",
        "TextGroup",
        "VectorGroup",
        "WaveformGroup",
    ),
    "config": ("DataConfig",),
    "errors": ("ManifestError", "PathError", "RecordError", "ShardError"),
    "inspection.summary": ("summary",),
    "loading.loader": ("Step", "StepLoader"),
    "shards.manifest": ("Manifest",),
    "shards.opening": ("open_manifest",),
    "loading.order": ("EpochOrder", "Position"),
    "loading.costs": ("TokenWeights",),
    "loading.dataset": ("DataSet", "open_data"),
    "records.record": ("Codes", "Objects", "Record", "Series"),
    "records.schema": ("DatasetSchema", "ModalitySpec", "TaskSpec", "group_layout"),
    "sources": ("Source", "create_source"),
    "packing.pack": ("pack",),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "Batch",
    "Codes",
    "CodesGroup",
    "DataConfig",
    "DataSet",
    "DatasetSchema",
    "EpochOrder",
    "Group",
    "ImageGroup",
    "Manifest",
    "ManifestError",
    "ModalitySpec",
    "Objects",
    "PathError",
    "Position",
    "Record",
    "RecordError",
    "Series",
    "SeriesGroup",
    "ShardError",
    "Source",
    "Step",
    "StepLoader",
    "TaskSpec",
    "TextGroup",
    "TokenWeights",
    "VectorGroup",
    "WaveformGroup",
    "create_source",
    "group_layout",
    "open_data",
    "open_manifest",
    "pack",
    "summary",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module data_shards has no attribute {name!r}")
    return getattr(import_module(f"data_shards.{_MODULE[name]}"), name)
