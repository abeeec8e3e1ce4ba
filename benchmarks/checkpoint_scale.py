"""A checkpoint of a world that is not there: 1,024 ranks write one and others read it, on a storage that counts.

Every rank is a real `CheckpointWriter` or reader over the fragments that ZeRO with expert parallelism would give it;
only the engine is made up. One rank, and then rank 0 with its commit, are timed on a storage that takes `LATENCY_S`
for each request; the others have written at that time.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from fsspec.implementations.local import LocalFileSystem

from parallel import Fragment
from trainer.checkpoints.checkpoint import Checkpoint, read_checkpoint
from trainer.checkpoints.pieces import ROLES, Wanted
from trainer.checkpoints.writer import CheckpointWriter
from trainer.worker.mailbox import Mailbox

LATENCY_S = 0.025
SAMPLE = 8
"""Ranks of a reading world that are looked at, at most."""
CASES = (((8, 8), (64, 8)), ((8, 8), (256, 8)), ((8, 8), (1, 1)), ((256, 8), (8, 8)), ((256, 8), (96, 4)))
PAGE = 1000
"""Files that an object store lists, or removes, in one request."""


class CountedFiles(LocalFileSystem):
    """Local files as an object store has them: every call is a request, which takes its time."""

    cachable = False
    protocol = "counted"

    def __init__(self, latency_s: float = 0.0) -> None:
        super().__init__()
        self.latency_s, self.requests, self.bytes_read = latency_s, 0, 0
        self.files_read: set[str] = set()
        self._inside = threading.local()
        self._counting = threading.Lock()

    def _request(self, call: Callable[..., Any], *args: Any, **options: Any) -> Any:
        if getattr(self._inside, "request", False):  # one call of fsspec is made of others
            return call(*args, **options)
        with self._counting:
            self.requests += 1
        time.sleep(self.latency_s)
        self._inside.request = True
        try:
            return call(*args, **options)
        finally:
            self._inside.request = False

    def cat_file(self, path: str, *args: Any, **options: Any) -> bytes:
        data: bytes = self._request(super().cat_file, path, *args, **options)
        with self._counting:
            self.bytes_read += len(data)
            self.files_read.add(path)
        return data

    def open(self, *args: Any, **options: Any) -> Any:
        return self._request(super().open, *args, **options)

    def pipe_file(self, *args: Any, **options: Any) -> Any:
        return self._request(super().pipe_file, *args, **options)

    def ls(self, *args: Any, **options: Any) -> Any:
        return self._request(super().ls, *args, **options)

    def exists(self, *args: Any, **options: Any) -> Any:
        return self._request(super().exists, *args, **options)

    def makedirs(self, *args: Any, **options: Any) -> Any:
        return self._request(super().makedirs, *args, **options)

    def rm_file(self, *args: Any, **options: Any) -> Any:
        return self._request(super().rm_file, *args, **options)

    def rm(self, path: str | list[str], recursive: bool = False, **options: Any) -> Any:
        """A folder is listed first."""
        files = len(path) if isinstance(path, list) else len(list(Path(path).iterdir()))
        for _ in range((1 + recursive) * -(-files // PAGE) - 1):
            self._request(lambda: None)
        return self._request(super().rm, path, recursive=recursive, **options)


@dataclass(frozen=True)
class Blocks:
    """A model of blocks: attention, norms, and experts with biases, as logical parameters and groups of ZeRO."""

    blocks: int = 12
    dim: int = 256
    experts: int = 64

    def groups(self) -> Iterator[tuple[bool, dict[str, tuple[int, ...]]]]:
        """Each optimizer group: whether it holds experts, and its parameters."""
        dim, experts = self.dim, self.experts
        for block in range(self.blocks):
            name = f"backbone.blocks.{block}"
            yield False, {f"{name}.attention.{part}.weight": (dim, dim) for part in ("query", "key", "value", "out")}
            yield False, {f"{name}.{norm}.{part}": (dim,) for norm in ("norm1", "norm2") for part in ("weight", "bias")}
            yield True, {f"{name}.moe.experts.{part}": (experts, dim, dim) for part in ("w1_EDH", "w2_EHD")}
            yield True, {f"{name}.moe.experts.{part}": (experts, dim) for part in ("b1_EH", "b2_ED")}

    def parameters(self) -> dict[str, tuple[int, ...]]:
        """All of them."""
        return {name: shape for _, group in self.groups() for name, shape in group.items()}

    def intervals(self, rank: int, world: int, expert_parallel: int) -> list[tuple[str, int, int]]:
        """What ZeRO gives a rank: (name, start, numel), an even part of every group over the ranks that hold it."""
        found = []
        for experts, group in self.groups():
            copies, place = (world // expert_parallel, rank // expert_parallel) if experts else (world, rank)
            held = {name: int(np.prod(shape)) // (expert_parallel if experts else 1) for name, shape in group.items()}
            part = -(-sum(held.values()) // copies)
            begin, end, at = place * part, (place + 1) * part, 0
            for name, size in held.items():
                low, high = max(begin, at), min(end, at + size)
                if low < high:
                    first = rank % expert_parallel * size if experts else 0
                    found.append((name, first + low - at, high - low))
                at += size
        return found


def value_of(number: int, role: int, start: int, numel: int) -> np.ndarray:
    """Made-up numbers of elements [start, start + numel) of parameter `number`, exact in fp32."""
    found: np.ndarray = ((np.arange(start, start + numel) * 7 + number * 13 + role * 1009) % (1 << 20)).astype("<f4")
    return found


class Rank:
    """An engine that is asked for its fragments only."""

    averages = False

    def __init__(self, model: Blocks, rank: int, world: int, expert_parallel: int) -> None:
        self.model, self.intervals = model, model.intervals(rank, world, expert_parallel)
        self.numbers = {name: number for number, name in enumerate(model.parameters())}

    def logical_parameters(self) -> dict[str, tuple[int, ...]]:
        return self.model.parameters()

    def buffers(self) -> dict[str, torch.Tensor]:
        return {}

    def fragments(self) -> list[Fragment]:
        shapes = self.model.parameters()
        return [
            Fragment(
                name,
                shapes[name],
                start,
                numel,
                *(torch.from_numpy(value_of(self.numbers[name], role, start, numel)) for role in range(len(ROLES))),
            )
            for name, start, numel in self.intervals
        ]


def write(folder: str, model: Blocks, world: int, expert_parallel: int, saves: int = 1) -> dict[str, float]:
    """All ranks of a world write a checkpoint: files, requests, and seconds at `LATENCY_S` a request.

    Of several `saves` only the newest checkpoint is kept, and the figures are those of the last save.
    """
    store = dist.HashStore()
    requests, seconds = [], {}
    writers = [
        CheckpointWriter(folder, rank, world, "scale", 1, 0, mailbox=Mailbox(store, rank, world))
        for rank in range(world)
    ]
    for rank in [*range(1, world), 0]:
        writer, engine = writers[rank], Rank(model, rank, world, expert_parallel)
        writer._fs = files = CountedFiles(LATENCY_S if rank in (0, 1) else 0.0)
        if writer._inventory is not None:
            writer._inventory._fs = files
        for step in range(1, saves + 1):
            meta = {"step": step, "score": None, "progress": {"epoch": 0}}
            files.requests, begin = 0, time.perf_counter()
            writer.save(engine, meta)  # type: ignore[arg-type]
            stall = time.perf_counter() - begin
            if not writer.settle():
                raise RuntimeError(f"rank {rank}: {writer.failed}")
            seconds[rank] = time.perf_counter() - begin - stall
        requests.append(files.requests)
    found = list(Path(f"{folder}/checkpoints").rglob("*.safetensors"))
    index = next(path for path in found if path.name.endswith("index.safetensors"))
    begin = time.perf_counter()
    checkpoint_at(folder, step=saves).reader(index.read_bytes())
    return {
        "files": len(found) + 2,
        "requests": sum(requests) / world,
        "most_requests": max(requests),
        "write_s": seconds.get(1, 0.0),
        "commit_s": seconds[0],
        "index_bytes": index.stat().st_size,
        "open_index_s": time.perf_counter() - begin,
    }


def checkpoint_at(folder: str, files: CountedFiles | None = None, step: int = 1) -> Checkpoint:
    """The one that `write` has left."""
    return read_checkpoint(files or CountedFiles(), f"{folder}/checkpoints/step-{step:010d}")


def read(folder: str, model: Blocks, world: int, expert_parallel: int, check: bool = False) -> dict[str, float]:
    """Ranks of another world read their part: bytes read for bytes needed, requests and files of a rank.

    The index is at hand. `most_a_file`: requests for each file that is touched, of the rank with the most.

    Raises ValueError: with `check`, a value that is not what was written.
    """
    index = checkpoint_at(folder).index()
    needed, files, most, most_a_file, touched = 0, CountedFiles(), 0, 0.0, 0
    ranks = np.unique(np.linspace(0, world - 1, min(world, SAMPLE)).astype(int)).tolist()
    checkpoint = checkpoint_at(folder, files)
    files.requests = files.bytes_read = 0
    for rank in ranks:
        engine = Rank(model, rank, world, expert_parallel)
        wanted = [Wanted(name, role, start, numel) for role in ROLES for name, start, numel in engine.intervals]
        before = files.requests
        files.files_read.clear()
        values = checkpoint.reader(index).read_all(wanted)
        most = max(most, files.requests - before)
        most_a_file = max(most_a_file, (files.requests - before) / len(files.files_read))
        touched += len(files.files_read)
        needed += 4 * sum(each.numel for each in wanted)
        for each, value in zip(wanted, values, strict=True) if check else ():
            right = value_of(engine.numbers[each.name], ROLES.index(each.role), each.start, each.numel)
            if not np.array_equal(value.numpy(), right):
                raise ValueError(f"rank {rank} of {world}: {each} is not what was written")
    return {
        "bytes_read": files.bytes_read / needed,
        "requests": files.requests / len(ranks),
        "most_requests": most,
        "files": touched / len(ranks),
        "most_a_file": most_a_file,
    }


def measure(quick: bool) -> dict[str, float]:
    """Prints and returns figures of a world of 1,024 with expert-parallel degree 8, and of changes of size."""
    model, found = Blocks(dim=128 if quick else 256), {}
    with tempfile.TemporaryDirectory(prefix="checkpoint_scale_") as folder:
        figures = write(folder, model, 1024, 8)
        _print("1,024 ranks write", figures)
        found |= {f"save {key}": round(value, 4) for key, value in figures.items()}
        for world, degree in ((1024, 8), (512, 8), (64, 8)):
            found |= _read(folder, model, (1024, 8), (world, degree))
    with tempfile.TemporaryDirectory(prefix="checkpoint_scale_") as folder:
        figures = write(folder, model, 1024, 8, saves=2)
        _print("and remove an older one", figures)
        found |= {f"save and remove {key}": round(figures[key], 4) for key in ("most_requests", "commit_s")}
    for (world, degree), reader in CASES:
        with tempfile.TemporaryDirectory(prefix="checkpoint_scale_") as folder:
            write(folder, model, world, degree)
            found |= _read(folder, model, (world, degree), reader)
    return found


def _read(folder: str, model: Blocks, writer: tuple[int, int], reader: tuple[int, int]) -> dict[str, float]:
    figures = read(folder, model, *reader)
    name = f"{writer[0]} (EP {writer[1]}) to {reader[0]} (EP {reader[1]})"
    _print(name, figures)
    return {f"{name} {key}": round(value, 4) for key, value in figures.items()}


def _print(name: str, figures: dict[str, float]) -> None:
    print(f"{name:28}" + "  ".join(f"{key} {value:,.3f}" for key, value in figures.items()), flush=True)
