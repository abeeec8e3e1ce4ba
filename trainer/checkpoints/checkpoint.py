"""Topology-free checkpoints: valid only when committed, readable at any world size.

A checkpoint is a folder `checkpoints/step-NNNNNNNNNN` of a run: few safetensors files of each rank (`stream.py`), the
index of all of them (`index.py`), `checkpoint.json` (everything that is not a tensor, and the index's digest) and, last
of all, `COMMIT` with the digest of that description. A folder without `COMMIT` is not a checkpoint, whatever it holds.
Here they are read; `find.py` finds them, and `writer.py` writes them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import fsspec
import numpy as np
import torch
from torch import Tensor

from trainer.checkpoints.index import Index
from trainer.checkpoints.pieces import (
    ROLES,
    CheckpointError,
    Piece,
    PieceReader,
    Reader,
    Wanted,
    read_verified,
    read_verified_json,
)
from trainer.checkpoints.reader import StreamReader
from trainer.run_folder import run_of

FORMAT = 2
FIRST_FORMAT = 1
"""A description and whole pieces for each rank; it is read, and not written any more."""


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
    def ranked_by(self) -> dict[str, str] | None:
        """`metric` and `mode` of the scores in it; None before the first evaluation, or where nothing tells."""
        if "ranked_by" in self.meta:
            ranked: dict[str, str] | None = self.meta["ranked_by"]
            return ranked
        # Of an earlier version: its recipe says both.
        stored = self.meta.get("config", {}).get("training", {}).get("early_stopping", {})
        if self.meta.get("progress", {}).get("best_score") is None or not {"metric", "mode"} <= stored.keys():
            return None
        return {"metric": stored["metric"], "mode": stored["mode"]}

    @property
    def url(self) -> str:
        """Its folder, as any command takes it: a path on this machine, else a URL."""
        return address(self.fs, self.path)

    @property
    def run_dir(self) -> str:
        """Folder of the run that it belongs to, as any command takes it."""
        return address(self.fs, self.path.rsplit("/", 2)[0])

    @property
    def roles(self) -> tuple[str, ...]:
        """What it holds of every parameter."""
        return tuple(self.meta.get("index", {}).get("roles", ROLES))

    @property
    def run_id(self) -> str | None:
        """The MLflow run that wrote it."""
        return run_of(self.run_dir, self.meta["mlflow_run_id"])

    def index(self) -> bytes:
        """Where every element lies, checked against the committed digest: one rank can read it for all.

        Raises CheckpointError.
        """
        if self.meta["format"] != FIRST_FORMAT:
            stored = self.meta["index"]
            return read_verified(self.fs, f"{self.path}/{stored['file']}", stored["sha256"])
        rows: list[dict[str, Any]] = []
        for file, digest in self.meta["ranks"].items():
            rows += read_verified_json(self.fs, f"{self.path}/{file}", digest)["pieces"]
        return json.dumps(rows).encode()

    def reader(self, index: bytes | None = None) -> Reader:
        """Of its tensors. `index`: what `index()` returned, if it is at hand. Raises CheckpointError."""
        data = self.index() if index is None else index
        if self.meta["format"] == FIRST_FORMAT:
            return PieceReader(self.fs, self.path, [Piece(**row) for row in json.loads(data)])
        stored = self.meta["index"]
        found = Index(data, self.meta["parameters"], stored["tag"], stored["block"], stored["part"], self.roles)
        found.check(self.path)
        return StreamReader(self.fs, self.path, found)


def address(fs: fsspec.AbstractFileSystem, path: str) -> str:
    """A folder of `fs` as any command takes it: a path on this machine, else a URL."""
    return path if path.startswith("/") else str(fs.unstrip_protocol(path))


def best_first(newest_first: list[Checkpoint]) -> list[Checkpoint]:
    """Those with a score, the best first, of equal ones the earliest, as early stopping has it.

    Scores of another metric than the newest one's do not compare, so those are left out.
    """
    scored = [entry for entry in newest_first if entry.score is not None]
    ranked = next((entry.ranked_by for entry in newest_first if entry.ranked_by is not None), None)
    alike = [entry for entry in scored if ranked is None or entry.ranked_by in (None, ranked)]
    return sorted(alike, key=lambda entry: (-(entry.score or 0.0), entry.step))


def read_checkpoint(fs: fsspec.AbstractFileSystem, path: str) -> Checkpoint:
    meta = read_verified_json(fs, f"{path}/checkpoint.json", fs.cat_file(f"{path}/COMMIT").decode().strip())
    if meta.get("format") not in (FIRST_FORMAT, FORMAT):
        raise CheckpointError(
            f"{path} has checkpoint format {meta.get('format')}, not {FORMAT}: use the version that wrote it"
        )
    return Checkpoint(fs, path, meta)


def checkpoint_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Every parameter of a checkpoint as one float32 tensor under its logical name, and the persistent buffers.

    Raises CheckpointError.
    """
    parameters = checkpoint.meta["parameters"]
    wanted = [Wanted(name, "master", 0, int(np.prod(shape))) for name, shape in parameters.items()]
    values = checkpoint.reader().read_all(wanted)
    weights = {name: value.view(tuple(parameters[name])) for name, value in zip(parameters, values, strict=True)}
    return weights | {name: torch.tensor(value) for name, value in checkpoint.meta.get("buffers", {}).items()}
