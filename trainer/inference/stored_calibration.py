"""How a checkpoint's chances held on the test part, from what its run has left of it: for whoever opens an export."""

from __future__ import annotations

import io
from typing import Any

import fsspec
import pyarrow.parquet

from trainer.checkpoints.checkpoint import Checkpoint
from trainer.metrics.calibration import reliability, statements
from trainer.metrics.prediction_table import STEP, predictions_of
from trainer.run_folder import TEST_PREDICTIONS, stored_result

_OF = {"multiclass": "the chance of the class that was chosen", "binary": "the chance of class 1"}
_OF_LABELS = "the chance of each label"


def stored_calibration(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """By task of classes, in 15 bins of the stated chance: statements, their mean, and the share that came true.

    None where the run has left no predictions of its test part, or those of another checkpoint.
    """
    fs, root = fsspec.url_to_fs(checkpoint.run_dir)
    file = f"{root}/{TEST_PREDICTIONS}"
    try:
        table = pyarrow.parquet.read_table(io.BytesIO(fs.cat_file(file)))
        if not _said_by(checkpoint, table.schema.metadata or {}):
            return None
        tasks, said = predictions_of(table)
    except (OSError, ValueError, KeyError, TypeError):  # not there, or not readable by this version
        return None
    found = {}
    for task in tasks:
        stated = statements(task, said.logits[task.name], said.targets[task.name])
        if stated is not None and len(stated[0]):
            bins = reliability(*stated)
            found[task.name] = {
                "of": _OF.get(task.kind, _OF_LABELS),
                "error": bins.error,
                "count": [int(count) for count in bins.count],
                "stated": bins.stated.tolist(),
                "true": bins.true.tolist(),
            }
    return {"part": "test", "records": len(said.index_B.unique()), "tasks": found}


def _said_by(checkpoint: Checkpoint, metadata: dict[bytes, bytes]) -> bool:
    if STEP in metadata:
        return int(metadata[STEP]) == checkpoint.step
    # Of an earlier version: the result names the checkpoint that was tested.
    result = stored_result(checkpoint.run_dir)
    return result is not None and result["checkpoint"].rstrip("/").endswith(checkpoint.path.rsplit("/", 1)[-1])
