"""Checkpoints as earlier versions wrote them, by their own code: for each rank pieces and a description of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import numpy as np

from trainer.checkpoints.checkpoint import Checkpoint
from trainer.checkpoints.find import open_checkpoint
from trainer.checkpoints.pieces import ROLES

Part = tuple[str, str, int, np.ndarray]
"""Name, role, start and values of an interval."""


def write_pieces(fs: Any, folder: str, file: str, parts: Iterable[Part]) -> list[dict[str, Any]]:
    """One safetensors file of 1-D float32 tensors, and what describes its pieces."""
    parts, header, offset = list(parts), {}, 0
    for name, role, start, values in parts:
        entry = {"dtype": "F32", "shape": [len(values)], "data_offsets": [offset, offset + values.nbytes]}
        header[f"{name}|{role}|{start}"] = entry
        offset += values.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    base, begin, pieces = 8 + len(text), 0, []
    with fs.open(f"{folder}/{file}", "wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name, role, start, values in parts:
            data = np.ascontiguousarray(values, dtype="<f4").tobytes()
            stream.write(data)
            end, digest = begin + len(data), hashlib.sha256(data).hexdigest()
            pieces.append(
                {"file": file, "name": name, "role": role, "start": start, "numel": len(values)}
                | {"begin": base + begin, "end": base + end, "sha256": digest}
            )
            begin = end
    return pieces


def write_json(fs: Any, path: str, value: Any) -> str:
    data = json.dumps(value, indent=1).encode()
    fs.pipe_file(path, data)
    return hashlib.sha256(data).hexdigest()


def as_first_format(checkpoint: Checkpoint, world: int) -> Checkpoint:
    """The same checkpoint in its folder, as that many ranks of an earlier version would have written it."""
    fs, path, meta = checkpoint.fs, checkpoint.path, dict(checkpoint.meta)
    reader, sizes = checkpoint.reader(), {name: int(np.prod(shape)) for name, shape in meta["parameters"].items()}
    whole = {(name, role): reader.read(name, role, 0, size).numpy() for name, size in sizes.items() for role in ROLES}
    for file in fs.ls(path, detail=False):
        fs.rm_file(file)
    ranks = {}
    for rank in range(world):
        parts: list[Part] = []
        for (name, role), values in whole.items():
            low, high = (len(values) * at // world for at in (rank, rank + 1))
            if low < high:
                parts.append((name, role, low, values[low:high]))
        stem = f"rank-{rank:05d}"
        pieces = write_pieces(fs, path, f"{stem}.safetensors", parts)
        ranks[f"{stem}.json"] = write_json(fs, f"{path}/{stem}.json", {"attempt": "earlier", "pieces": pieces})
    del meta["index"]
    digest = write_json(fs, f"{path}/checkpoint.json", {**meta, "format": 1, "world": world, "ranks": ranks})
    fs.pipe_file(f"{path}/COMMIT", digest.encode())
    return open_checkpoint(checkpoint.url)
