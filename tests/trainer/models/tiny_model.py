"""The FuseMoE of the tiny data set and a batch for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from data_shards import Batch, StepLoader
from data_shards.shards.manifest import Manifest
from parallel import LocalDispatcher
from tests.trainer.tiny import SCHEMA, config
from trainer.models.fusemoe.model import FuseMoE


def build(manifest: Manifest, **changes: Any) -> FuseMoE:
    """All experts here; `changes` as `tests.trainer.tiny.config` takes them."""
    run = config(manifest.url, Path("unused"), **changes)
    torch.manual_seed(0)
    tasks = list(SCHEMA.task_names)
    return FuseMoE(manifest.schema, tasks, manifest.statistics["default"], run.model, LocalDispatcher(), 0)


def batch_of(manifest: Manifest, size: int = 8) -> Batch:
    """The first one of training, on the CPU."""
    data = config(manifest.url, Path("unused")).data
    return next(StepLoader(manifest, data, "train", size, 0, 1).steps(0)).micro_batches[0]
