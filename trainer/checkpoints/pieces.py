"""The files of a checkpoint: flat pieces of logical tensors, in safetensors layout, each with its digest.

A checkpoint knows nothing of ranks, expert parallelism or ZeRO. Every logical tensor (a parameter's fp32 master, or
one of its Adam moments, with all experts in global order) is one flat array; each rank writes the intervals that it
owns and a reader takes the intervals that it needs, from whichever files hold them.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import fsspec
import numpy as np
import torch
from torch import Tensor

from data_shards.lease.create import create_file, creating_mode
from parallel import Fragment

ROLES = ("master", "exp_avg", "exp_avg_sq")


class CheckpointError(ValueError):
    """A checkpoint is partial, damaged or foreign. The text is a sentence that names the file."""


class ForeignCheckpointError(CheckpointError):
    """An intact checkpoint, of another model. No older one would fit either."""


@dataclass(frozen=True)
class Piece:
    """Elements [start, start + numel) of a flat logical tensor: bytes [begin, end) of `file`."""

    file: str
    name: str
    role: str
    start: int
    numel: int
    begin: int
    end: int
    sha256: str


@dataclass(frozen=True)
class Snapshot:
    """A copy of one owned interval, detached from training."""

    name: str
    role: str
    start: int
    values: np.ndarray


def snapshot(fragments: Iterable[Fragment]) -> list[Snapshot]:
    """Copies of this rank's fragments; training may go on changing the originals."""
    # On a CPU `cpu()` hands back the live tensor itself: `clone` is the copy.
    return [
        Snapshot(fragment.name, role, fragment.start, getattr(fragment, role).detach().cpu().clone().numpy())
        for fragment in fragments
        if fragment.numel
        for role in ROLES
    ]


def write_pieces(fs: fsspec.AbstractFileSystem, folder: str, file: str, parts: Sequence[Snapshot]) -> list[Piece]:
    """Write one safetensors file of 1-D float32 tensors, which is not there yet, and describe its pieces."""
    header: dict[str, Any] = {}
    # The header is the first thing in the file and names every offset, so they are counted before anything is written.
    offset = 0
    for part in parts:
        key = f"{part.name}|{part.role}|{part.start}"
        header[key] = {
            "dtype": "F32",
            "shape": [len(part.values)],
            "data_offsets": [offset, offset + part.values.nbytes],
        }
        offset += part.values.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # data begins at a multiple of 8 bytes
    base, begin, pieces = 8 + len(text), 0, []
    with fs.open(f"{folder}/{file}", creating_mode(fs)) as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for part in parts:
            # One interval at a time: no second copy of the whole state.
            data = np.ascontiguousarray(part.values, dtype="<f4").tobytes()
            stream.write(data)
            end = begin + len(data)
            digest = hashlib.sha256(data).hexdigest()
            pieces.append(
                Piece(file, part.name, part.role, part.start, len(part.values), base + begin, base + end, digest)
            )
            begin = end
    return pieces


def write_digested_json(fs: fsspec.AbstractFileSystem, path: str, value: Any) -> str:
    """Write a JSON file, which is not there yet, and return the SHA-256 of its bytes. Raises FileExistsError."""
    data = json.dumps(value, indent=1).encode()
    create_file(fs, path, data)
    return hashlib.sha256(data).hexdigest()


def read_verified_json(fs: fsspec.AbstractFileSystem, path: str, sha256: str) -> Any:
    """Read a JSON file, checked against its digest. Raises CheckpointError."""
    try:
        data = fs.cat_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: the checkpoint is incomplete") from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise CheckpointError(f"{path} does not match the digest it was committed with: it was changed or cut short")
    try:
        return json.loads(data)
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error})") from None


def piece_rows(pieces: Iterable[Piece]) -> list[dict[str, Any]]:
    """Pieces as JSON rows."""
    return [asdict(piece) for piece in pieces]


class PieceReader:
    """Reads intervals of logical tensors; every piece is checked against its digest before it is used."""

    def __init__(self, fs: fsspec.AbstractFileSystem, folder: str, pieces: Iterable[Piece]) -> None:
        self._fs, self._folder = fs, folder
        self._by_tensor: dict[tuple[str, str], list[Piece]] = defaultdict(list)
        for piece in pieces:
            self._by_tensor[piece.name, piece.role].append(piece)

    def read(self, name: str, role: str, start: int, numel: int) -> Tensor:
        """Float32 elements [start, start + numel). Raises CheckpointError: an interval is missing or damaged."""
        out, filled = torch.empty(numel), 0
        for piece in self._by_tensor[name, role]:
            low, high = max(start, piece.start), min(start + numel, piece.start + piece.numel)
            if low < high:
                values = self._load(piece)
                # Pieces of a tensor do not overlap, so that `filled` tells whether any is missing.
                out[low - start : high - start] = values[low - piece.start : high - piece.start]
                filled += high - low
        if filled != numel:
            raise CheckpointError(
                f"{self._folder} is incomplete: it holds {filled} of the {numel} elements of {name}, {role}"
            )
        return out

    def _load(self, piece: Piece) -> Tensor:
        path = f"{self._folder}/{piece.file}"
        try:
            # All of the piece, however little of it is wanted: its digest covers all of it.
            data = self._fs.cat_file(path, start=piece.begin, end=piece.end)
        except FileNotFoundError:
            raise CheckpointError(f"{path} is missing: the checkpoint is incomplete") from None
        if hashlib.sha256(data).hexdigest() != piece.sha256:
            raise CheckpointError(
                f"{path}, bytes {piece.begin} to {piece.end} ({piece.name}, {piece.role}) do not match their digest: "
                "the file was changed or cut short"
            )
        # A copy that may be written to: torch warns of memory that may not.
        return torch.frombuffer(bytearray(data), dtype=torch.float32)
