"""The checkpoint that a path or URL means (a checkpoint's folder, an adapter's, a run's best), and what a run has."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import fsspec

from trainer.checkpoints.adapter import open_adapter
from trainer.checkpoints.checkpoint import Checkpoint, best_first, read_checkpoint
from trainer.checkpoints.pieces import CheckpointError
from trainer.run_folder import ADAPTER, BASELINE, CHECKPOINTS, ENSEMBLE

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
        if fs.exists(f"{path}/{ENSEMBLE}") or fs.exists(f"{path}/{BASELINE}"):
            what = "an ensemble" if fs.exists(f"{path}/{ENSEMBLE}") else "a baseline"
            raise CheckpointError(
                f"{url} is {what} and has no checkpoint of its own: it is predicted, evaluated and compared; for "
                "anything else name a run that was trained"
            )
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


def recorded(run_dir: str) -> dict[str, Any]:
    """What a run's newest readable checkpoint says about itself; empty if there is none."""
    newest = next(_usable(run_dir), None)
    return newest.meta if newest else {}


def recorded_recipe(run_dir: str) -> dict[str, Any] | None:
    """The recipe, as plain values, that a run's newest readable checkpoint keeps; None if there is none."""
    return recorded(run_dir).get("config")


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


class Inventory:
    """The checkpoint folders of a run, as the process that owns the run remembers them.

    The storage is asked once at the start and then only when there is something to remove, as nobody else writes under
    the run's name: a save needs no listing to know that its folder is new, or that nothing is to be cleared. What a
    process that has lost the run may still have left is found when something is removed, and at the next start.
    """

    def __init__(self, fs: fsspec.AbstractFileSystem, root: str) -> None:
        self._fs, self._root = fs, root
        self._damaged: set[str] = set()
        self._found: dict[str, Checkpoint | None] = {}
        """By folder; None: not read yet, or nothing to be read when it was."""
        self.refresh()

    def refresh(self) -> None:
        """Ask the storage which folders there are."""
        self._found = {path: self._found.get(path) for path in checkpoint_folders(self._fs, self._root)}

    def __contains__(self, path: str) -> bool:
        return path in self._found

    def begin(self, path: str) -> None:
        """Something is about to be written into a folder: what is known of it may soon be wrong."""
        self._found[path] = None
        self._damaged.discard(path)

    def commit(self, path: str, checkpoint: Checkpoint) -> None:
        """A folder holds this checkpoint now."""
        self._found[path] = checkpoint

    def forget(self, path: str) -> None:
        """A folder is no longer there."""
        self._found.pop(path, None)

    def superfluous(self, newest: int, keep_last: int, keep_best: int) -> list[str]:
        """Folders that the policy does not keep, and those that no attempt will ever commit.

        Args:
            newest: step of the checkpoint that has just been committed.
        """
        unknown = [path for path, held in self._found.items() if held is None and path not in self._damaged]
        if not unknown and not self._not_kept(keep_last, keep_best):
            return []
        self.refresh()
        torn = [path for path in sorted(self._found) if self._is_torn(path)]
        # An older one without COMMIT will never get it; a newer one, of a killed attempt, is written again.
        doomed = [path for path in torn if int(path.rsplit("-", 1)[1]) < newest]
        return doomed + self._not_kept(keep_last, keep_best)

    def _not_kept(self, keep_last: int, keep_best: int) -> list[str]:
        committed = [held for _, held in sorted(self._found.items()) if held is not None]
        # The first of them is the very step that the run's end looks for.
        best = best_first(committed[::-1])[:keep_best]
        kept = {entry.path for entry in [*committed[-keep_last:], *best]}
        return [entry.path for entry in committed if entry.path not in kept]

    def _is_torn(self, path: str) -> bool:
        """Whether a folder has no COMMIT; what has one is read, once."""
        if self._found[path] is not None or path in self._damaged:
            return False
        try:
            self._found[path] = read_checkpoint(self._fs, path)
        except FileNotFoundError:
            return True
        except CheckpointError as error:
            self._damaged.add(path)
            logger.warning("%s; it is left where it is", error)
        return False
