"""Checkpoints of many ranks: few files and requests, little read without need, and every value where it belongs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from benchmarks.checkpoint_scale import LATENCY_S, Blocks, CountedFiles, Rank, checkpoint_at, read, value_of, write
from parallel import Fragment
from trainer.checkpoints import reader
from trainer.checkpoints.pieces import ROLES, Wanted
from trainer.checkpoints.writer import CheckpointWriter
from trainer.worker.mailbox import Mailbox

SMALL, WIDE = Blocks(blocks=3, dim=64), Blocks(blocks=2, dim=128)


def test_a_made_up_world_holds_every_element_once() -> None:
    """What the tests below rest on."""
    for world, degree in ((6, 1), (24, 8), (64, 4)):
        held = dict.fromkeys(SMALL.parameters(), 0)
        for rank in range(world):
            for name, _, numel in SMALL.intervals(rank, world, degree):
                held[name] += numel
        assert held == {name: int(np.prod(shape)) for name, shape in SMALL.parameters().items()}


def test_1024_ranks_save_in_few_requests(tmp_path: Path) -> None:
    figures = write(str(tmp_path), SMALL, 1024, 8)
    assert LATENCY_S == 0.025
    assert figures["files"] == 1024 + 3, "one a rank, the index, the description, the marker"
    # Every rank makes the folder, or looks into it, and writes a file; rank 0 writes three more.
    assert figures["requests"] == pytest.approx((1023 * 2 + 5) / 1024)
    assert figures["most_requests"] == 5
    assert figures["write_s"] + figures["commit_s"] <= 3
    again = read(str(tmp_path), SMALL, 1024, 8, check=True)
    assert (again["bytes_read"], again["requests"], again["files"]) == (1.0, 1.0, 1.0), "its own file, and nothing else"
    fewer = read(str(tmp_path), SMALL, 512, 8, check=True)
    assert fewer["most_requests"] == 10


def test_clearing_costs_what_pages_of_files_cost(tmp_path: Path) -> None:
    figures = write(str(tmp_path), SMALL, 1024, 8, saves=2)
    # A save's; a look for what else is there, a marker, and two pages of 1,027 files, listed and removed.
    assert figures["most_requests"] == 5 + 2 + 2 * 2
    assert figures["files"] == 1027


@pytest.mark.parametrize(
    ("writers", "readers", "requests", "files"),
    [
        ((8, 8), (64, 8), 9, 1.0),
        ((8, 8), (256, 8), 16, 1.75),
        ((8, 8), (1, 1), 8, 8.0),
        ((8, 1), (5, 1), 7, 2.4),
        ((256, 8), (8, 8), 70, 60.0),
        ((256, 8), (12, 4), 54, 40.5),
    ],
    ids=str,
)
def test_another_world_reads_little_more_than_it_needs(
    writers: tuple[int, int], readers: tuple[int, int], requests: int, files: float, tmp_path: Path
) -> None:
    write(str(tmp_path), WIDE, *writers)
    figures = read(str(tmp_path), WIDE, *readers, check=True)
    assert 1 <= figures["bytes_read"] <= 1.5
    assert (figures["most_requests"], figures["files"]) == (requests, files)


def flat(total: int, tensors: int, rank: int, world: int) -> list[tuple[int, int, int]]:
    """(tensor, start, numel) of a rank, if `tensors` of equal size lie one after the other and are cut evenly."""
    size, part = total // tensors, -(-total // world)
    begin, end = rank * part, min(total, (rank + 1) * part)
    edges = [(at, max(begin, at * size), min(end, (at + 1) * size)) for at in range(tensors)]
    return [(at, low - at * size, high - low) for at, low, high in edges if low < high]


class Flat:
    """An engine with ten tensors of 400,000 elements in one optimizer group."""

    total, tensors = 4_000_000, 10
    averages = False

    def __init__(self, rank: int, world: int) -> None:
        self.intervals = flat(self.total, self.tensors, rank, world)

    def logical_parameters(self) -> dict[str, tuple[int, ...]]:
        return {f"layer{at}.w": (self.total // self.tensors,) for at in range(self.tensors)}

    def buffers(self) -> dict[str, torch.Tensor]:
        return {}

    def fragments(self) -> list[Fragment]:
        return [
            Fragment(
                f"layer{at}.w", (), start, numel, *(torch.from_numpy(value_of(at, r, start, numel)) for r in range(3))
            )
            for at, start, numel in self.intervals
        ]


@pytest.mark.parametrize("world", [64, 256])
def test_many_ranks_read_what_eight_have_written(world: int, tmp_path: Path) -> None:
    """5.3 and 19.7 bytes were read for each that 64 and 256 ranks needed, when pieces had one digest each."""
    store = dist.HashStore()
    for rank in (*range(1, 8), 0):
        writer = CheckpointWriter(str(tmp_path), rank, 8, "flat", 1, 0, mailbox=Mailbox(store, rank, 8))
        writer.save(Flat(rank, 8), {"step": 1, "score": None, "progress": {"epoch": 0}})  # type: ignore[arg-type]
        assert writer.settle()
    index, needed, files = checkpoint_at(str(tmp_path)).index(), 0, CountedFiles()
    checkpoint = checkpoint_at(str(tmp_path), files)
    files.bytes_read = files.requests = 0
    for rank in range(0, world, 5):
        wanted = [Wanted(f"layer{at}.w", role, *where) for role in ROLES for at, *where in Flat(rank, world).intervals]
        checkpoint.reader(index).read_all(wanted)
        needed += 4 * sum(each.numel for each in wanted)
    assert files.bytes_read / needed <= 1.1
    # One a role, two where a role's end is another rank's.
    assert files.requests <= 4 * len(range(0, world, 5))


def test_what_two_ranks_need_is_read_by_one_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that a world reads is what is there, but for the edges of blocks, if nothing is read to save requests."""
    monkeypatch.setattr(reader, "MOST", 1.0)
    write(str(tmp_path), SMALL, 4, 2)
    files = CountedFiles()
    checkpoint = checkpoint_at(str(tmp_path), files)
    index = checkpoint.index()
    files.bytes_read = 0
    for rank in range(8):
        wanted = [Wanted(name, "master", *where) for name, *where in Rank(SMALL, rank, 8, 2).intervals]
        checkpoint.reader(index).read_all(wanted)
    assert files.bytes_read < 1.2 * 4 * sum(int(np.prod(shape)) for shape in SMALL.parameters().values())
