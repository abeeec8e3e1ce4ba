"""Topology-free checkpoints: written while training goes on, valid only when committed, readable at any world size.

A checkpoint is a folder `checkpoints/step-NNNNNNNNNN` of a run: one safetensors file of pieces per rank, their
description, `checkpoint.json` (everything that is not a tensor) and, last of all, `COMMIT` with the digest of that
description. A folder without `COMMIT` is not a checkpoint, whatever it holds. Ranks write on their own; rank 0 waits
for the descriptions of all ranks and commits, so no collective runs beside training.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import fsspec
import torch

from parallel import Engine
from trainer.checkpoint_files import (
    ROLES,
    CheckpointError,
    ForeignCheckpointError,
    Piece,
    PieceReader,
    Snapshot,
    piece_rows,
    read_json,
    snapshot,
    write_json,
    write_pieces,
)

logger = logging.getLogger(__name__)

FORMAT = 1
FOLDER = "checkpoints"
ADAPTER = "adapter"
RANKS_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint. `meta` is the content of checkpoint.json."""

    fs: fsspec.AbstractFileSystem
    path: str
    meta: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.meta["step"])

    @property
    def score(self) -> float | None:
        """Value of the metric that ranks checkpoints; larger is better; None before the first evaluation."""
        score = self.meta["score"]
        return None if score is None else float(score)

    @property
    def url(self) -> str:
        """Its folder, as any command takes it: a path on this machine, else a URL."""
        return address(self.fs, self.path)

    @property
    def run_dir(self) -> str:
        """Folder of the run that it belongs to, on `fs`."""
        return self.path.rsplit("/", 2)[0]

    def pieces(self) -> list[Piece]:
        """Descriptions of all pieces, checked against the committed digests."""
        rows: list[Piece] = []
        for file, digest in self.meta["ranks"].items():
            rows += [Piece(**row) for row in read_json(self.fs, f"{self.path}/{file}", digest)["pieces"]]
        return rows

    def reader(self) -> PieceReader:
        return PieceReader(self.fs, self.path, self.pieces())


def address(fs: fsspec.AbstractFileSystem, path: str) -> str:
    """A folder of `fs` as any command takes it: a path on this machine, else a URL."""
    return path if path.startswith("/") else str(fs.unstrip_protocol(path))


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
        from trainer.adapter import open_adapter

        return open_adapter(fs, path)
    usable = list(_usable(url))
    if not usable:
        raise CheckpointError(
            f"{url} holds no committed checkpoint: give the folder of a run, or one of its {FOLDER}/step-... folders"
        )
    scored = [entry for entry in usable if entry.score is not None]
    return max(scored, key=lambda entry: (entry.score or 0.0, -entry.step)) if scored else usable[0]


def newest_checkpoint(run_dir: str) -> Checkpoint | None:
    """The newest committed checkpoint of a run whose description is intact."""
    return next(_usable(run_dir), None)


def _usable(run_dir: str) -> Iterator[Checkpoint]:
    """Committed checkpoints with an intact description, newest first; damaged ones are passed over, aloud."""
    fs, _ = fsspec.url_to_fs(run_dir)
    for path in committed_paths(run_dir):
        try:
            yield read_checkpoint(fs, path)
        except CheckpointError as error:
            logger.warning("%s; it is passed over", error)


def read_checkpoint(fs: fsspec.AbstractFileSystem, path: str) -> Checkpoint:
    meta = read_json(fs, f"{path}/checkpoint.json", fs.cat_file(f"{path}/COMMIT").decode().strip())
    if meta.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {meta.get('format')}, not {FORMAT}: use the version that wrote it"
        )
    return Checkpoint(fs, path, meta)


def checkpoint_folders(fs: fsspec.AbstractFileSystem, root: str) -> list[str]:
    if not fs.exists(root):
        return []
    fs.invalidate_cache(root)
    return sorted(path.rstrip("/") for path in fs.ls(root, detail=False) if "/step-" in path)


def load_engine(checkpoint: Checkpoint, engine: Engine, moments: bool = True) -> None:
    """Put a checkpoint into a live engine of any topology; each rank reads what it owns.

    Raises CheckpointError: damaged, incomplete, or written by a model of other parameters (names the first one).
    """
    check_parameters(checkpoint, engine.logical_parameters())
    reader = checkpoint.reader()
    roles = ROLES if moments else ROLES[:1]
    values = [
        (getattr(fragment, role), reader.read(fragment.name, role, fragment.start, fragment.numel))
        for fragment in engine.fragments()
        for role in roles
    ]
    for target, value in values:
        target.copy_(value)
    _load_buffers(checkpoint, engine)
    if moments:
        engine.optimizer_step = checkpoint.step
    engine.after_restore()


def _load_buffers(checkpoint: Checkpoint, engine: Engine) -> None:
    stored, live = checkpoint.meta.get("buffers", {}), engine.buffers()
    for name in sorted(stored.keys() ^ live.keys()):
        raise ForeignCheckpointError(
            f"{checkpoint.path} does not fit this model: {name} is only in "
            f"{'the checkpoint' if name in stored else 'the model'}; use the recipe it was written with"
        )
    for name, tensor in live.items():
        tensor.copy_(torch.tensor(stored[name], dtype=tensor.dtype).view_as(tensor))


def check_parameters(checkpoint: Checkpoint, expected: dict[str, tuple[int, ...]]) -> None:
    """Raises CheckpointError if the model's parameters are not the checkpoint's."""
    stored = {name: tuple(shape) for name, shape in checkpoint.meta["parameters"].items()}
    for name in sorted(stored.keys() | expected.keys()):
        if stored.get(name) != expected.get(name):
            raise ForeignCheckpointError(
                f"{checkpoint.path} does not fit this model: parameter {name} is {stored.get(name, 'absent')} in the "
                f"checkpoint and {expected.get(name, 'absent')} in the model; use the recipe it was written with"
            )


class CheckpointWriter:
    """Writes checkpoints of a run in the background, one at a time, and keeps the last n and the best m.

    Args:
        run_dir: URL of the run. rank, world: this process and the number of processes.
        attempt: text that all ranks of this start of the run share, so that leftovers of a killed attempt at the same
            step are never mistaken for this one's.
        agree: collective; whether all ranks are fine.
        before_commit: called on rank 0 when all is written and only the commit is left, so that what it makes durable
            (the metrics up to this step) is never behind a checkpoint.
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
    ) -> None:
        self._fs, root = fsspec.url_to_fs(run_dir)
        self._root = f"{root.rstrip('/')}/{FOLDER}"
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
        warning, not the end of training: the error is in `failed` until one succeeds.
        """
        self.settle()
        parts = snapshot(engine.fragments())
        meta = {**meta, "format": FORMAT, "parameters": engine.logical_parameters(), "world": self._world}
        meta["buffers"] = {name: tensor.tolist() for name, tensor in engine.buffers().items()}
        self._written.clear()
        self._abandoned.clear()
        self._thread = threading.Thread(target=self._write, args=(parts, meta), name="checkpoint", daemon=True)
        self._thread.start()

    def settle(self) -> bool:
        """Return when nothing is being written any more: whether the last checkpoint was committed. Collective."""
        if self._thread is not None:
            self._written.wait()
            if not self._agree(self.failed is None):
                self._abandoned.set()  # rank 0 would wait in vain for a rank that could not write
            self._thread.join()
            self._thread = None
        return self._agree(self.failed is None)

    def _write(self, parts: list[Snapshot], meta: dict[str, Any]) -> None:
        step = int(meta["step"])
        self.failed = None
        try:
            path = self.path(step)
            self._fs.makedirs(path, exist_ok=True)
            stem = f"rank-{self._rank:05d}"
            pieces = write_pieces(self._fs, path, f"{stem}.safetensors", parts)
            write_json(self._fs, f"{path}/{stem}.json", {"attempt": self._attempt, "pieces": piece_rows(pieces)})
            self._written.set()
            if self._rank == 0:
                self._commit(path, meta)
                self._prune(step)
        except Exception as error:  # storage fails in many ways; none of them may end training
            self.failed = error
            logger.warning("checkpoint of step %d could not be written (%s); training goes on", step, error)
        finally:
            self._written.set()

    def _commit(self, path: str, meta: dict[str, Any]) -> None:
        ranks = {}
        for rank in range(self._world):
            file = f"rank-{rank:05d}.json"
            ranks[file] = self._await_rank(f"{path}/{file}")
        digest = write_json(self._fs, f"{path}/checkpoint.json", {**meta, "ranks": ranks})
        self._before_commit()
        self._fs.pipe_file(f"{path}/COMMIT", digest.encode())

    def _await_rank(self, path: str) -> str:
        """Digest of a rank's description, once that rank has written it in this attempt."""
        deadline = time.monotonic() + RANKS_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._abandoned.is_set():
                raise CheckpointError("another rank could not write its part")
            self._fs.invalidate_cache()
            if self._fs.exists(path):
                data = self._fs.cat_file(path)
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
                if int(path.rsplit("-", 1)[1]) < newest:
                    doomed.append(path)
                continue
            try:
                committed.append(read_checkpoint(self._fs, path))
            except CheckpointError as error:
                logger.warning("%s; it is left where it is", error)
        scored = [entry for entry in committed if entry.score is not None]
        best = sorted(scored, key=lambda entry: (-(entry.score or 0.0), entry.step))[: self._keep_best]
        kept = {entry.path for entry in [*committed[-self._keep_last :], *best]}
        for path in [*doomed, *(entry.path for entry in committed if entry.path not in kept)]:
            remove_checkpoint(self._fs, path)


def remove_checkpoint(fs: fsspec.AbstractFileSystem, path: str) -> None:
    """Remove a checkpoint folder, its commit marker first, so that no moment shows half a checkpoint."""
    if fs.exists(f"{path}/COMMIT"):
        fs.rm_file(f"{path}/COMMIT")
    fs.rm(path, recursive=True)


def committed_paths(run_dir: str) -> list[str]:
    """Folders of a run's committed checkpoints, newest first."""
    fs, root = fsspec.url_to_fs(run_dir)
    folders = reversed(checkpoint_folders(fs, f"{root.rstrip('/')}/{FOLDER}"))
    return [path for path in folders if fs.exists(f"{path}/COMMIT")]


def restore(run_dir: str, paths: list[str], engine: Engine, agree: Callable[[bool], bool]) -> Checkpoint | None:
    """Continue from the first of `paths` (the same list on every rank) that every rank can read; None if none can be.

    `agree(ok)` tells whether all ranks are fine: a piece that one rank finds damaged rules the checkpoint out for all.
    """
    fs, _ = fsspec.url_to_fs(run_dir)
    for path in paths:
        checkpoint, error = None, None
        try:
            checkpoint = read_checkpoint(fs, path)
            load_engine(checkpoint, engine)
        except ForeignCheckpointError:
            raise
        except CheckpointError as problem:
            error = problem
        if agree(error is None):
            return checkpoint
        logger.warning("%s; the checkpoint before it is used", error or f"another rank cannot read {path}")
    return None
