"""The checkpoint that a path or URL means: a checkpoint's folder, an adapter's, or a run's best one."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import fsspec

from trainer.checkpoints.adapter import open_adapter
from trainer.checkpoints.checkpoint import Checkpoint, best_first, read_checkpoint
from trainer.checkpoints.pieces import CheckpointError
from trainer.run_folder import ADAPTER, CHECKPOINTS

logger = logging.getLogger(__name__)


def open_checkpoint(url: str) -> Checkpoint:
    """The committed checkpoint (or adapter) in this folder; of a run the best one, or the newest if none has a score.

    Raises:
        CheckpointError: nothing usable is there.
    """
    fs, path = fsspec.url_to_fs(url)
    path = path.rstrip("/")
    if fs.exists(f"{path}/COMMIT"):
        return read_checkpoint(fs, path)
    if fs.exists(f"{path}/{ADAPTER}.json"):
        return open_adapter(fs, path)
    usable = list(_usable(url))
    if not usable:
        raise CheckpointError(
            f"{url} holds no committed checkpoint: give the folder of a run, or one of its {CHECKPOINTS}/step-... "
            "folders"
        )
    return (best_first(usable) or usable)[0]


def _usable(run_dir: str) -> Iterator[Checkpoint]:
    """Committed checkpoints with an intact description, newest first; damaged ones are passed over, aloud."""
    fs, _ = fsspec.url_to_fs(run_dir)
    for path in committed_paths(run_dir):
        try:
            yield read_checkpoint(fs, path)
        except CheckpointError as error:
            logger.warning("%s; it is passed over", error)


def checkpoint_folders(fs: fsspec.AbstractFileSystem, root: str) -> list[str]:
    fs.invalidate_cache(root)
    try:
        return sorted(path.rstrip("/") for path in fs.ls(root, detail=False) if "/step-" in path)
    except FileNotFoundError:
        return []


def committed_paths(run_dir: str) -> list[str]:
    """Folders of a run's committed checkpoints, newest first."""
    fs, root = fsspec.url_to_fs(run_dir)
    folders = reversed(checkpoint_folders(fs, f"{root.rstrip('/')}/{CHECKPOINTS}"))
    return [path for path in folders if fs.exists(f"{path}/COMMIT")]
