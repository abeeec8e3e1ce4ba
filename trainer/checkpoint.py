"""Topology-free checkpoints: valid only when committed, readable at any world size.

A checkpoint is a folder `checkpoints/step-NNNNNNNNNN` of a run: one safetensors file of pieces per rank, their
description, `checkpoint.json` (everything that is not a tensor) and, last of all, `COMMIT` with the digest of that
description. A folder without `COMMIT` is not a checkpoint, whatever it holds. Here they are found and read; they are
written by `checkpoint_writer.py`.
"""

from __future__ import annotations

import logging
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
    read_json,
)

logger = logging.getLogger(__name__)

FORMAT = 1
FOLDER = "checkpoints"
ADAPTER = "adapter"


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
