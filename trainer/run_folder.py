"""Names and shapes of what a run leaves behind in its folder, for those who write it and those who read it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import fsspec

from trainer.config.sections import TrackingConfig

if TYPE_CHECKING:
    from trainer.checkpoints.checkpoint import Checkpoint

RUN_FILE = "mlflow_run.json"


def stored_run_id(config: TrackingConfig, fs: fsspec.AbstractFileSystem, folder: str) -> str | None:
    """The MLflow run that a run's folder belongs to; None if it has none in this store."""
    if not fs.exists(f"{folder}/{RUN_FILE}"):
        return None
    stored = json.loads(fs.cat_file(f"{folder}/{RUN_FILE}"))
    return str(stored["run_id"]) if stored["uri"] == config.uri else None


def run_of(checkpoint: Checkpoint) -> str | None:
    """The MLflow run that wrote a checkpoint: as the checkpoint says, or as the run's folder does.

    A run that was started without a driver has its first checkpoints before the server has named it.
    """
    stored = checkpoint.meta["mlflow_run_id"]
    path = f"{checkpoint.path.rsplit('/', 2)[0]}/{RUN_FILE}"
    if stored is None and checkpoint.fs.exists(path):
        stored = json.loads(checkpoint.fs.cat_file(path))["run_id"]
    return stored  # type: ignore[no-any-return]
