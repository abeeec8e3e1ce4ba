"""What a fine-tuning run hands on: everything that was trained, and which backbone it belongs to.

An adapter is a folder with `adapter.safetensors` (trained tensors and frozen routing keys: a few MB) and `adapter.json`
(recipe, schema, statistics, the backbone's digest, the digest of the tensors). It stands for the checkpoint that it was
made from: `evaluate` takes it in the same way, and refuses another backbone in the same way.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import fsspec
import safetensors.torch
import torch
from torch import Tensor

from trainer.checkpoints.checkpoint import Checkpoint, address, checkpoint_weights
from trainer.checkpoints.pieces import CheckpointError, Reader, Wanted
from trainer.run_folder import ADAPTER

FORMAT = "fleximoe-adapter-1"
ORIGIN = ("config", "schema", "embedded", "statistics", "schema_digest", "data_digest", "mlflow_run_id", "step")
"""What a checkpoint's description says of where its weights come from, in whatever form they are handed on."""
KEPT = (*ORIGIN, "score", "parameters", "buffers", "backbone", "encoders")


def write_adapter(checkpoint: Checkpoint, url: str) -> dict[str, Any]:
    """Write the adapter of a checkpoint to a folder, the description last; returns its size.

    Raises CheckpointError: the checkpoint is damaged, or of a job that has no frozen backbone.
    """
    if checkpoint.meta.get("backbone") is None:
        job = checkpoint.meta["config"]["job"]
        raise CheckpointError(f"{checkpoint.path} is of job={job}, which has no frozen backbone: there is no adapter")
    weights = checkpoint_weights(checkpoint)
    data = safetensors.torch.save(weights, metadata={"format": FORMAT})
    about = {
        "format": FORMAT,
        "checkpoint": checkpoint.url,
        "sha256": hashlib.sha256(data).hexdigest(),
        **{key: checkpoint.meta.get(key) for key in KEPT},
    }
    fs, root = fsspec.url_to_fs(url)
    fs.makedirs(root, exist_ok=True)
    fs.pipe_file(f"{root}/{ADAPTER}.safetensors", data)
    fs.pipe_file(f"{root}/{ADAPTER}.json", json.dumps(about, indent=1).encode())
    return {"adapter": url, "bytes": len(data), "parameters": sum(value.numel() for value in weights.values())}


@dataclass(frozen=True)
class Adapter(Checkpoint):
    """An adapter in the place of a checkpoint. It has no moments: training cannot continue from it."""

    @property
    def run_dir(self) -> str:
        """Folder that the adapter lies in: its run's, or wherever it was taken."""
        return address(self.fs, self.path.rsplit("/", 1)[0])

    def index(self) -> bytes:
        return b""

    def reader(self, index: bytes | None = None) -> Reader:
        return _AdapterReader(self)


class _AdapterReader(Reader):
    """Reads intervals of an adapter's tensors."""

    def __init__(self, adapter: Adapter) -> None:
        path = f"{adapter.path}/{ADAPTER}.safetensors"
        try:
            data = adapter.fs.cat_file(path)
        except FileNotFoundError:
            raise CheckpointError(f"{path} is missing: the adapter is incomplete") from None
        if hashlib.sha256(data).hexdigest() != adapter.meta["sha256"]:
            raise CheckpointError(f"{path} does not match its digest: it was changed or cut short")
        self._tensors: dict[str, Tensor] = safetensors.torch.load(data)

    def read_all(self, wanted: Sequence[Wanted]) -> list[Tensor]:
        if any(each.role != "master" for each in wanted):
            raise CheckpointError("an adapter has no optimiser state: continue from a checkpoint of its run")
        return [self._read(each) for each in wanted]

    def verify(self, sizes: dict[str, int]) -> None:
        """All of it was read and checked."""

    def _read(self, each: Wanted) -> Tensor:
        values = self._tensors[each.name].to(torch.float32).flatten()[each.start : each.start + each.numel]
        if len(values) != each.numel:
            raise CheckpointError(
                f"the adapter is incomplete: it holds {len(values)} of the {each.numel} elements of {each.name}"
            )
        return values


def open_adapter(fs: fsspec.AbstractFileSystem, path: str) -> Adapter:
    """The adapter in this folder. Raises CheckpointError: of another format."""
    meta = json.loads(fs.cat_file(f"{path}/{ADAPTER}.json"))
    if meta.get("format") != FORMAT:
        raise CheckpointError(f"{path} has format {meta.get('format')!r}; this version reads {FORMAT!r}")
    return Adapter(fs, path, meta)
