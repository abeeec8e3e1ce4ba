"""A rank's part of a checkpoint: one stream of bytes, cut into few files, with a digest of every block.

The stream holds, one role after the other (`pieces.ROLES`), the intervals of logical tensors that the rank owns, as
fp32, those of the smallest tensors first. Small tensors and large ones (experts) are shared among different numbers
of ranks, so what another number of ranks needs of a stream lies together, and is read in few requests. The stream is
cut into files of at most `PART` bytes, each in safetensors layout, and into blocks: a reader that needs a slice reads
and checks the blocks that cover it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import fsspec
import numpy as np
import torch
from torch import Tensor

from data_shards.lease.create import creating_mode
from parallel import Fragment
from trainer.checkpoints.pieces import LIVE, ROLES

PART = 1 << 28
"""Bytes of a file, at most: files are written and read side by side."""
BLOCKS = 1 << 18
"""Blocks of a checkpoint, about: at 16 bytes a digest they are 4 MiB of its index."""
SMALLEST_BLOCK, LARGEST_BLOCK = 1 << 10, 1 << 20
DIGEST = 16
"""Bytes of a block's digest: the beginning of its SHA-256."""
WRITERS = 4


@dataclass(frozen=True)
class Interval:
    """Elements [start, start + numel) of a flat logical tensor."""

    name: str
    start: int
    numel: int


@dataclass(frozen=True)
class Stream:
    """A copy of what a rank owns, detached from training. `values` is 1-D fp32 on the CPU, one role after the other."""

    intervals: list[Interval]
    values: Tensor
    roles: tuple[str, ...] = ROLES


@dataclass(frozen=True)
class Written:
    """What a reader must know of a rank's files: header lengths P, header digests (P, 16), block digests (B, 16)."""

    header_bytes: np.ndarray
    header_digests: np.ndarray
    block_digests: np.ndarray


def role_of(fragment: Fragment, role: str) -> Tensor:
    """The live tensor that a checkpoint holds as this role."""
    if role == LIVE:
        return fragment.master
    if role == "master" and fragment.average is not None:
        return fragment.average
    found: Tensor = getattr(fragment, role)
    return found


def snapshot(fragments: Iterable[Fragment], roles: tuple[str, ...] = ROLES) -> Stream:
    """Copies of this rank's fragments, in the stream's order; training may go on changing the originals."""
    kept = [fragment for fragment in fragments if fragment.numel]
    kept.sort(key=lambda fragment: math.prod(fragment.shape))
    each = sum(fragment.numel for fragment in kept)
    on_gpu = bool(kept) and kept[0].master.is_cuda
    values, at = torch.empty(len(roles) * each, dtype=torch.float32, pin_memory=on_gpu), 0
    for role in roles:
        for fragment in kept:
            values[at : at + fragment.numel].copy_(role_of(fragment, role).detach(), non_blocking=True)
            at += fragment.numel
    if on_gpu:
        torch.cuda.current_stream(kept[0].master.device).synchronize()  # one wait for all copies
    return Stream([Interval(fragment.name, fragment.start, fragment.numel) for fragment in kept], values, roles)


def block_bytes(elements: int) -> int:
    """Size of the blocks of a checkpoint with so many elements over all roles and ranks: a power of two."""
    size = LARGEST_BLOCK
    while size > SMALLEST_BLOCK and size * BLOCKS > 4 * elements:
        size //= 2
    return size


def file_name(tag: str, rank: int, part: int) -> str:
    """Of one file of a rank's stream. `tag` is that of the save, so no two ever write the same file."""
    return f"{tag}-{rank:05d}-{part:03d}.safetensors"


def write_stream(
    fs: fsspec.AbstractFileSystem,
    folder: str,
    name: Callable[[int], str],
    stream: Stream,
    block: int,
    before_file: Callable[[], None] = lambda: None,
) -> Written:
    """Write a stream's files, several at a time.

    Args:
        name: of the file of a part. before_file: is called before each file, and raises where none may be written.
    """
    data = memoryview(stream.values.numpy().astype("<f4", copy=False).view(np.uint8))  # type: ignore[arg-type]
    begins = range(0, len(data), PART)

    def write(begin: int) -> tuple[int, bytes, list[bytes]]:
        end = min(begin + PART, len(data))
        header = _header(stream, begin // 4, end // 4)
        before_file()
        with fs.open(f"{folder}/{name(begin // PART)}", creating_mode(fs)) as file:
            file.write(header)
            file.write(data[begin:end])
        blocks = [data_digest(data[at : min(at + block, end)]) for at in range(begin, end, block)]
        return len(header), data_digest(header), blocks

    with ThreadPoolExecutor(WRITERS) as pool:
        parts = list(pool.map(write, begins))
    return Written(
        np.array([length for length, _, _ in parts], np.int32),
        digest_rows([digest for _, digest, _ in parts]),
        digest_rows([digest for _, _, digests in parts for digest in digests]),
    )


def data_digest(data: bytes | memoryview) -> bytes:
    """What an index holds for these bytes."""
    return hashlib.sha256(data).digest()[:DIGEST]


def digest_rows(digests: Sequence[bytes]) -> np.ndarray:
    """Digests as an array (n, 16) of bytes."""
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST)


def _header(stream: Stream, begin: int, end: int) -> bytes:
    """Of a safetensors file that holds elements [begin, end) of the stream. One that is cut has a part in each file."""
    entries: dict[str, Any] = {}
    at = 0
    for role in stream.roles:
        for interval in stream.intervals:
            low, high = max(begin, at), min(end, at + interval.numel)
            if low < high:
                entries[f"{interval.name}|{role}|{interval.start + low - at}"] = {
                    "dtype": "F32",
                    "shape": [high - low],
                    "data_offsets": [4 * (low - begin), 4 * (high - begin)],
                }
            at += interval.numel
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # data begins at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text
