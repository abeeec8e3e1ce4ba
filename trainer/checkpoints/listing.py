"""What is there of a run's checkpoints, and whether every byte of them is still what was written."""

from __future__ import annotations

from dataclasses import dataclass

import fsspec
import numpy as np

from trainer.checkpoints.checkpoint import Checkpoint, read_checkpoint
from trainer.checkpoints.find import checkpoint_folders
from trainer.checkpoints.pieces import CheckpointError
from trainer.run_folder import CHECKPOINTS


@dataclass(frozen=True)
class Listed:
    """One checkpoint folder of a run. `problem` says why it cannot be used, if so."""

    path: str
    step: int
    epoch: float | None
    score: float | None
    bytes: int
    problem: str | None


def list_checkpoints(run_dir: str, verify: bool = False) -> list[Listed]:
    """All checkpoint folders of a run (or the one given), oldest first, usable or not.

    Args:
        verify: read every piece and compare it with its digest, not only the description.
    """
    fs, root = fsspec.url_to_fs(run_dir)
    root = root.rstrip("/")
    folders = [root] if "/step-" in root else checkpoint_folders(fs, f"{root}/{CHECKPOINTS}")
    if not folders:
        raise CheckpointError(f"{run_dir} has no {CHECKPOINTS}/step-... folder: give the folder of a run")
    return [_listed(fs, path, verify) for path in folders]


def _listed(fs: fsspec.AbstractFileSystem, path: str, verify: bool) -> Listed:
    size = sum(int(entry["size"] or 0) for entry in fs.ls(path, detail=True))
    step = int(path.rsplit("-", 1)[1])
    try:
        if not fs.exists(f"{path}/COMMIT"):
            raise CheckpointError("not committed: it was being written when the run ended")
        checkpoint = read_checkpoint(fs, path)
        if verify:
            verify_checkpoint(checkpoint)
    except CheckpointError as error:
        return Listed(path, step, None, None, size, str(error))
    progress = checkpoint.meta["progress"]
    return Listed(path, step, progress["epoch"], checkpoint.score, size, None)


def verify_checkpoint(checkpoint: Checkpoint) -> None:
    """Read every byte of every file. Raises CheckpointError at the first that is missing or damaged."""
    sizes = {name: int(np.prod(shape)) for name, shape in checkpoint.meta["parameters"].items()}
    checkpoint.reader().verify(sizes)
