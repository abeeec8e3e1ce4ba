"""What a checkpoint is made of, and how it is read: intervals of flat logical tensors.

A checkpoint knows nothing of ranks, expert parallelism or ZeRO. Every logical tensor (a parameter's fp32 master, or
one of its Adam moments, with all experts in global order) is one flat array; each rank writes the intervals that it
owns (`stream.py`, `index.py`) and a reader takes the intervals that it needs, from whichever files hold them
(`reader.py`). Here is also the reader of what earlier versions wrote.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from data_shards.lease.create import create_file

if TYPE_CHECKING:
    import fsspec

ROLES = ("master", "exp_avg", "exp_avg_sq")
LIVE = "live"
AVERAGED = (*ROLES, LIVE)
"""Of a run that averages its weights: the average is its `master`, which everybody reads; `live` goes on training."""


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
class Wanted:
    """Elements [start, start + numel) of a flat logical tensor."""

    name: str
    role: str
    start: int
    numel: int


class Reader(ABC):
    """Reads intervals of logical tensors; what is read is checked against its digest before it is used."""

    @abstractmethod
    def read_all(self, wanted: Sequence[Wanted]) -> list[Tensor]:
        """Float32 elements of each. Raises CheckpointError: an interval is missing or damaged."""

    def read(self, name: str, role: str, start: int, numel: int) -> Tensor:
        """One interval. Raises as `read_all`."""
        return self.read_all([Wanted(name, role, start, numel)])[0]

    @abstractmethod
    def verify(self, sizes: dict[str, int]) -> None:
        """Read everything: all elements of parameters with so many. Raises CheckpointError at the first that is missing
        or damaged."""


def write_digested_json(fs: fsspec.AbstractFileSystem, path: str, value: Any) -> str:
    """Write a JSON file, which is not there yet, and return the SHA-256 of its bytes. Raises FileExistsError."""
    data = json.dumps(value, indent=1).encode()
    create_file(fs, path, data)
    return hashlib.sha256(data).hexdigest()


def read_verified(fs: fsspec.AbstractFileSystem, path: str, sha256: str) -> bytes:
    """Read a small file, checked against its digest. Raises CheckpointError."""
    try:
        data: bytes = fs.cat_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: the checkpoint is incomplete") from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise CheckpointError(f"{path} does not match the digest it was committed with: it was changed or cut short")
    return data


def read_verified_json(fs: fsspec.AbstractFileSystem, path: str, sha256: str) -> Any:
    """Read a JSON file, checked against its digest. Raises CheckpointError."""
    try:
        return json.loads(read_verified(fs, path, sha256))
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error})") from None


class PieceReader(Reader):
    """Reads what earlier versions wrote: whole pieces, as a digest covers all of one, and each of them once."""

    def __init__(self, fs: fsspec.AbstractFileSystem, folder: str, pieces: Iterable[Piece]) -> None:
        self._fs, self._folder = fs, folder
        self._by_tensor: dict[tuple[str, str], list[Piece]] = defaultdict(list)
        for piece in pieces:
            self._by_tensor[piece.name, piece.role].append(piece)

    def read_all(self, wanted: Sequence[Wanted]) -> list[Tensor]:
        by_tensor: dict[tuple[str, str], list[tuple[Wanted, Tensor]]] = defaultdict(list)
        values = [torch.empty(each.numel) for each in wanted]
        for each, value in zip(wanted, values, strict=True):
            by_tensor[each.name, each.role].append((each, value))
        for key, targets in by_tensor.items():
            self._read(key, targets)
        return values

    def verify(self, sizes: dict[str, int]) -> None:
        for name, size in sizes.items():
            for role in ROLES:
                self.read(name, role, 0, size)

    def _read(self, key: tuple[str, str], targets: list[tuple[Wanted, Tensor]]) -> None:
        filled = [0] * len(targets)
        for piece in self._by_tensor[key]:
            values: Tensor | None = None
            for at, (each, out) in enumerate(targets):
                low, high = max(each.start, piece.start), min(each.start + each.numel, piece.start + piece.numel)
                if low < high:
                    values = self._load(piece) if values is None else values
                    # Pieces of a tensor do not overlap, so that `filled` tells whether any is missing.
                    out[low - each.start : high - each.start] = values[low - piece.start : high - piece.start]
                    filled[at] += high - low
        for (each, _), held in zip(targets, filled, strict=True):
            if held != each.numel:
                raise CheckpointError(
                    f"{self._folder} is incomplete: it holds {held} of the {each.numel} elements of {each.name}, "
                    f"{each.role}"
                )

    def _load(self, piece: Piece) -> Tensor:
        path = f"{self._folder}/{piece.file}"
        try:
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
