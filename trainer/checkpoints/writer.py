"""Checkpoints are written while training goes on, and the ones that nobody needs any more removed.

Ranks write on their own; rank 0 waits for the descriptions of all ranks and commits, so no collective runs beside
training. What a checkpoint is stands in `checkpoint.py`.

Only the owner of the run's name writes (`data_shards/lease`). A process that was frozen or cut off and comes back late
finds that out before each file. Should it have been frozen in the middle of one: whoever writes the same step later
removes the files that are there and creates new ones, which a late writer cannot replace, COMMIT among them.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import fsspec

from data_shards.errors import LeaseLostError
from data_shards.lease.create import create_file
from data_shards.lease.lease import Guard, Unowned
from parallel import Engine
from trainer.checkpoints.checkpoint import FORMAT, Checkpoint, address, best_first, read_checkpoint
from trainer.checkpoints.find import checkpoint_folders
from trainer.checkpoints.pieces import (
    CheckpointError,
    Snapshot,
    piece_rows,
    snapshot,
    write_digested_json,
    write_pieces,
)
from trainer.run_folder import CHECKPOINTS

logger = logging.getLogger(__name__)

RANKS_TIMEOUT_S = 600.0


class CheckpointWriter:
    """Writes checkpoints of a run in the background, one at a time, and keeps the last n and the best m.

    Args:
        run_dir: URL of the run. rank, world: this process and the number of processes.
        attempt: text that all ranks of this start of the run share, so that leftovers of a killed attempt at the same
            step are never mistaken for this one's.
        agree: collective; whether all ranks are fine.
        before_commit: called on rank 0 when all is written and only the commit is left, so that what it makes durable
            (the metrics up to this step) is never behind a checkpoint.
        guard: tells whether the run's name is this process's own.
    """

    def __init__(
        self,
        run_dir: str,
        rank: int,
        world: int,
        attempt: str,
        keep_last: int,
        keep_best: int,
        agree: Callable[[bool], bool] = lambda ok: ok,
        before_commit: Callable[[], None] = lambda: None,
        guard: Guard | None = None,
    ) -> None:
        self._guard = guard or Unowned()
        self._fs, root = fsspec.url_to_fs(run_dir)
        self._root = f"{root.rstrip('/')}/{CHECKPOINTS}"
        self._rank, self._world, self._attempt = rank, world, attempt
        self._keep_last, self._keep_best, self._before_commit = keep_last, keep_best, before_commit
        self._agree = agree
        self._thread: threading.Thread | None = None
        self._written, self._abandoned = threading.Event(), threading.Event()
        self.failed: Exception | None = None

    def path(self, step: int) -> str:
        return f"{self._root}/step-{step:010d}"

    def url(self, step: int) -> str:
        """Of a step's checkpoint, as any command takes it."""
        return address(self._fs, self.path(step))

    def save(self, engine: Engine, meta: dict[str, Any]) -> None:
        """Copy this rank's state and write it in the background. Collective.

        Waits for the previous checkpoint if that is still being written. A checkpoint that cannot be written is a
        warning, not the end of training: the error is in `failed` until one succeeds. Raises as `settle`.
        """
        # One at a time: two would hold two copies of the state, and could commit in the wrong order.
        self.settle()
        # A copy, as training goes on changing the state while the thread writes.
        parts = snapshot(engine.fragments())
        meta = {**meta, "format": FORMAT, "parameters": engine.logical_parameters(), "world": self._world}
        meta["buffers"] = {name: tensor.tolist() for name, tensor in engine.buffers().items()}
        self._written.clear()
        self._abandoned.clear()
        self._thread = threading.Thread(target=self._write, args=(parts, meta), name="checkpoint", daemon=True)
        self._thread.start()

    def settle(self) -> bool:
        """Return when nothing is being written any more: whether the last checkpoint was committed. Collective.

        Raises LeaseLostError on the rank that holds the run's name, once it belongs to another process.
        """
        if self._thread is not None:
            # For this rank's own part only: all ranks meet in `_agree`, and then rank 0 alone waits for its commit.
            self._written.wait()
            if not self._agree(self.failed is None):
                self._abandoned.set()  # rank 0 would wait in vain for a rank that could not write
            self._thread.join()
            self._thread = None
        # Once more: rank 0 alone knows whether the commit succeeded.
        fine = self._agree(self.failed is None)
        if isinstance(self.failed, LeaseLostError):
            raise self.failed
        return fine

    def _write(self, parts: list[Snapshot], meta: dict[str, Any]) -> None:
        step = int(meta["step"])
        self.failed = None
        try:
            path = self.path(step)
            stem = f"rank-{self._rank:05d}"
            self._guard.check()
            self._fs.makedirs(path, exist_ok=True)
            self._clear(path, stem)
            pieces = write_pieces(self._fs, path, f"{stem}.safetensors", parts)
            self._guard.check()
            # After the pieces: rank 0 takes its presence for theirs.
            write_digested_json(
                self._fs, f"{path}/{stem}.json", {"attempt": self._attempt, "pieces": piece_rows(pieces)}
            )
            # Before the commit, which waits for other ranks: this rank must be able to tell them that it is fine.
            self._written.set()
            if self._rank == 0:
                self._commit(path, meta)
                self._prune(step)
        except LeaseLostError as error:
            self.failed = error
        except Exception as error:  # storage fails in many ways; none of them may end training
            self.failed = error
            logger.warning("checkpoint of step %d could not be written (%s); training goes on", step, error)
        finally:
            # After a failure, too, or `settle` would wait for ever.
            self._written.set()

    def _clear(self, path: str, stem: str) -> None:
        """Remove this rank's files of an earlier attempt at the same step, the marker first."""
        self._fs.invalidate_cache()  # what another process has put there
        names = [*(("COMMIT", "checkpoint.json") if self._rank == 0 else ()), f"{stem}.json", f"{stem}.safetensors"]
        for file in (f"{path}/{name}" for name in names):
            if self._fs.exists(file):
                self._fs.rm_file(file)

    def _commit(self, path: str, meta: dict[str, Any]) -> None:
        ranks = {}
        for rank in range(self._world):
            file = f"rank-{rank:05d}.json"
            ranks[file] = self._await_rank(f"{path}/{file}")
        self._guard.confirm()
        digest = write_digested_json(self._fs, f"{path}/checkpoint.json", {**meta, "ranks": ranks})
        # Metrics first: they are never behind a checkpoint that a run goes on from.
        self._before_commit()
        self._guard.confirm()
        # Last: what is read later counts only if this is there, and matches.
        create_file(self._fs, f"{path}/COMMIT", digest.encode())

    def _await_rank(self, path: str) -> str:
        """Digest of a rank's description, once that rank has written it in this attempt."""
        deadline = time.monotonic() + RANKS_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._abandoned.is_set():
                raise CheckpointError("another rank could not write its part")
            # fsspec remembers listings: another rank's file would never appear.
            self._fs.invalidate_cache()
            if self._fs.exists(path):
                data = self._fs.cat_file(path)
                # Neither a leftover of a killed attempt, nor a file that is still being written.
                if f'"attempt": "{self._attempt}"'.encode() in data and data.endswith(b"}"):
                    return hashlib.sha256(data).hexdigest()
            time.sleep(0.02)
        raise CheckpointError(
            f"{path} did not appear within {RANKS_TIMEOUT_S:.0f} s: does every worker write to the same storage?"
        )

    def _prune(self, newest: int) -> None:
        """Remove what the policy does not keep, and folders that no attempt will ever commit."""
        committed: list[Checkpoint] = []
        doomed: list[str] = []
        for path in checkpoint_folders(self._fs, self._root):
            if not self._fs.exists(f"{path}/COMMIT"):
                # An older one without COMMIT will never get it; a newer one, of a killed attempt, is written again.
                if int(path.rsplit("-", 1)[1]) < newest:
                    doomed.append(path)
                continue
            try:
                committed.append(read_checkpoint(self._fs, path))
            except CheckpointError as error:
                logger.warning("%s; it is left where it is", error)
        # The first of them is the very step that the run's end looks for.
        best = best_first(committed[::-1])[: self._keep_best]
        kept = {entry.path for entry in [*committed[-self._keep_last :], *best]}
        self._guard.confirm()
        for path in [*doomed, *(entry.path for entry in committed if entry.path not in kept)]:
            _remove(self._fs, path)


def _remove(fs: fsspec.AbstractFileSystem, path: str) -> None:
    """Remove a checkpoint folder, its commit marker first, so that no moment shows half a checkpoint."""
    if fs.exists(f"{path}/COMMIT"):
        fs.rm_file(f"{path}/COMMIT")
    fs.rm(path, recursive=True)
