"""Checkpoints are written while training goes on, and the ones that nobody needs any more removed.

Ranks write on their own; rank 0 waits for the descriptions of all ranks, which come by `Mailbox`, and commits, so no
collective runs beside training. What a checkpoint is stands in `checkpoint.py`.

Only the owner of the run's name writes (`data_shards/lease`). A process that was frozen or cut off and comes back late
finds that out before each file. Should it have been frozen in the middle of one: every save has file names of its own,
and a COMMIT that is there now and was not before, a late writer cannot replace.

A step that is saved again, with its score, keeps its older checkpoint until all of the new one is written.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import fsspec
import numpy as np

from data_shards.errors import LeaseLostError
from data_shards.lease.create import create_file
from data_shards.lease.lease import Guard, Unowned
from parallel import Engine
from trainer.checkpoints.checkpoint import FORMAT, Checkpoint, address
from trainer.checkpoints.find import Inventory
from trainer.checkpoints.index import Index, joined, message
from trainer.checkpoints.pieces import AVERAGED, ROLES, CheckpointError, write_digested_json
from trainer.checkpoints.stream import PART, Stream, block_bytes, file_name, snapshot, write_stream
from trainer.run_folder import CHECKPOINTS
from trainer.worker.mailbox import Mailbox, own_mailbox

logger = logging.getLogger(__name__)

RANKS_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class _Before:
    """What was in a checkpoint's folder before: the marker's content, and files of other saves."""

    commit: bytes | None
    foreign: list[str]


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
        mailbox: by which rank 0 learns what the others have written.
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
        mailbox: Mailbox | None = None,
    ) -> None:
        self._guard = guard or Unowned()
        self._fs, root = fsspec.url_to_fs(run_dir)
        self._root = f"{root.rstrip('/')}/{CHECKPOINTS}"
        self._rank, self._world, self._attempt = rank, world, attempt
        self._keep_last, self._keep_best, self._before_commit = keep_last, keep_best, before_commit
        self._agree = agree
        self._mailbox = mailbox or own_mailbox(rank, world)
        self._saves = 0
        # Rank 0's: what is there before the first save.
        self._inventory = Inventory(self._fs, self._root) if rank == 0 else None
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
        roles = AVERAGED if engine.averages else ROLES
        stream = snapshot(engine.fragments(), roles)
        parameters = engine.logical_parameters()
        block = block_bytes(len(roles) * sum(int(np.prod(shape)) for shape in parameters.values()))
        if self.failed is not None and self._rank == 0:
            self._mailbox.collect(self._topic(self._tag()))  # what nobody asked for
        # All ranks save equally often, so that they agree on the tag.
        self._saves += 1
        tag = self._tag()
        meta = {**meta, "format": FORMAT, "parameters": parameters, "world": self._world}
        meta["index"] = {"file": f"{tag}-index.safetensors", "tag": tag, "block": block, "part": PART}
        if roles != ROLES:
            meta["index"]["roles"] = list(roles)
        meta["buffers"] = {name: tensor.tolist() for name, tensor in engine.buffers().items()}
        self._written.clear()
        self._abandoned.clear()
        self._thread = threading.Thread(target=self._write, args=(stream, meta, tag), name="checkpoint", daemon=True)
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

    def _write(self, stream: Stream, meta: dict[str, Any], tag: str) -> None:
        step, described, before = int(meta["step"]), b"", _Before(None, [])
        self.failed = None
        try:
            path = self.path(step)
            self._guard.check()
            # Before anything is written: what another one commits from now on is not this one's to replace.
            before = self._begin(path, tag)
            described = self._write_part(path, stream, meta, tag)
        except LeaseLostError as error:
            self.failed = error
        except Exception as error:  # storage fails in many ways; none of them may end training
            self._warn(step, error)
        try:
            # Also of a failure, which is a message without content: rank 0 waits for all.
            self._mailbox.post(self._topic(tag), described)
            # Before the commit, which waits for other ranks: this rank must be able to tell them that it is fine.
            self._written.set()
            if self._inventory is not None and self.failed is None:
                self._inventory.commit(path, self._commit(path, meta, tag, before))
                self._clear(self._inventory, step)
        except LeaseLostError as error:
            self.failed = error
        except Exception as error:
            self._warn(step, error)
        finally:
            # After a failure, too, or `settle` would wait for ever.
            self._written.set()

    def _warn(self, step: int, error: Exception) -> None:
        self.failed = error
        logger.warning("checkpoint of step %d could not be written (%s); training goes on", step, error)

    def _write_part(self, path: str, stream: Stream, meta: dict[str, Any], tag: str) -> bytes:
        """This rank's files; returns their description."""
        name = partial(file_name, tag, self._rank)
        written = write_stream(self._fs, path, name, stream, meta["index"]["block"], self._guard.check)
        numbers = {name: number for number, name in enumerate(meta["parameters"])}
        return message(stream.intervals, written, numbers)

    def _begin(self, path: str, tag: str) -> _Before:
        """Make a checkpoint's folder; what is in it, on rank 0.

        A folder that is not known is new and needs no look: should another process have made it since, then nothing of
        this save replaces what is there.
        """
        known = self._inventory is not None and path in self._inventory
        if self._inventory is not None:
            self._inventory.begin(path)
        names = self._names(path) if known else []
        if not names:
            self._fs.makedirs(path, exist_ok=True)
        commit = self._fs.cat_file(f"{path}/COMMIT") if "COMMIT" in names else None
        if commit is None and "checkpoint.json" in names:
            self._fs.rm_file(f"{path}/checkpoint.json")
        foreign = [name for name in names if not name.startswith(tag) and name not in ("COMMIT", "checkpoint.json")]
        return _Before(commit, [f"{path}/{name}" for name in foreign])

    def _names(self, path: str) -> list[str]:
        """What lies in the folder of an earlier attempt at the same step, or of the same step without its score."""
        self._fs.invalidate_cache()  # what another process has put there
        try:
            return [str(name).rsplit("/", 1)[-1] for name in self._fs.ls(path, detail=False)]
        except FileNotFoundError:  # an object store has no empty folders
            return []

    def _commit(self, path: str, meta: dict[str, Any], tag: str, before: _Before) -> Checkpoint:
        index = joined(self._await_ranks(tag), list(meta["parameters"]))
        stored = meta["index"]
        roles = stored.get("roles", ROLES)
        Index(index, meta["parameters"], tag, stored["block"], stored["part"], roles).check(path)
        self._guard.confirm()
        create_file(self._fs, f"{path}/{stored['file']}", index)
        # Metrics first: they are never behind a checkpoint that a run goes on from.
        self._before_commit()
        self._guard.confirm()
        if before.commit is not None:
            # The same step's older checkpoint is whole up to here, and all of this one is written.
            self._replace(path, before.commit)
        stored["sha256"] = hashlib.sha256(index).hexdigest()
        digest = write_digested_json(self._fs, f"{path}/checkpoint.json", meta)
        # Last: what is read later counts only if this is there, and matches.
        create_file(self._fs, f"{path}/COMMIT", digest.encode())
        if before.foreign:
            self._fs.rm(before.foreign)  # as one request, where the storage has one for many
        return Checkpoint(self._fs, path, meta)

    def _replace(self, path: str, commit: bytes) -> None:
        if self._fs.cat_file(f"{path}/COMMIT") != commit:
            raise FileExistsError(f"{path} was committed by another process")
        self._fs.rm_file(f"{path}/COMMIT")
        self._fs.rm_file(f"{path}/checkpoint.json")

    def _await_ranks(self, tag: str) -> list[bytes]:
        """Descriptions of all ranks, once they have written their part."""
        topic, deadline = self._topic(tag), time.monotonic() + RANKS_TIMEOUT_S
        while (messages := self._mailbox.collect(topic)) is None:
            if self._abandoned.is_set():
                raise CheckpointError("another rank could not write its part")
            if time.monotonic() > deadline:
                late = ", ".join(map(str, self._mailbox.missing(topic)))
                raise CheckpointError(f"rank {late} has not written its part within {RANKS_TIMEOUT_S:.0f} s")
            time.sleep(0.02)
        for rank, described in enumerate(messages):
            if not described:
                raise CheckpointError(f"rank {rank} could not write its part")
        return messages

    def _tag(self) -> str:
        return f"{self._attempt[:12]}-{self._saves}"

    def _topic(self, tag: str) -> str:
        return f"checkpoint/{tag}"

    def _clear(self, inventory: Inventory, newest: int) -> None:
        """Remove what the policy does not keep, and folders that no attempt will ever commit."""
        doomed = inventory.superfluous(newest, self._keep_last, self._keep_best)
        if doomed:
            self._guard.confirm()
        for path in doomed:
            inventory.forget(path)
            _remove(self._fs, path)


def _remove(fs: fsspec.AbstractFileSystem, path: str) -> None:
    """Remove a checkpoint folder, its commit marker first, so that no moment shows half a checkpoint."""
    with suppress(FileNotFoundError):
        fs.rm_file(f"{path}/COMMIT")
    fs.rm(path, recursive=True)
