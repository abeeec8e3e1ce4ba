"""Blocks and files of a checkpoint: cut anywhere, read by interval, and nothing damaged or missing passes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from benchmarks.checkpoint_scale import Blocks, CountedFiles, Rank, checkpoint_at, read, value_of, write
from trainer.checkpoints import reader, stream, writer
from trainer.checkpoints.index import Index, joined, message
from trainer.checkpoints.listing import list_checkpoints
from trainer.checkpoints.pieces import ROLES, CheckpointError, Wanted
from trainer.checkpoints.stream import Interval, Written, block_bytes, digest_rows

MODEL = Blocks(blocks=2, dim=16, experts=8)
SIZES = {name: int(np.prod(shape)) for name, shape in MODEL.parameters().items()}
EXPERTS = "backbone.blocks.1.moe.experts.w2_EHD"


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A checkpoint of two ranks in files of 16 KiB and blocks of 1 KiB, and requests of at most 4 KiB."""
    for module in (stream, writer):
        monkeypatch.setattr(module, "PART", 1 << 14)
    monkeypatch.setattr(reader, "REQUEST", 1 << 12)
    write(str(tmp_path), MODEL, 2, 2)
    return tmp_path


def files_of(folder: Path, rank: int) -> list[Path]:
    return sorted((folder / "checkpoints" / "step-0000000001").glob(f"*-{rank:05d}-*.safetensors"))


def test_files_are_bounded_and_any_safetensors_reader_opens_them(in_parts: Path) -> None:
    numbers = {name: number for number, name in enumerate(MODEL.parameters())}
    seen = {(name, role): 0 for name in SIZES for role in ROLES}
    for rank in range(2):
        files = files_of(in_parts, rank)
        # 12 bytes of every element, of which this rank has one half: 8 of 8 experts' numbers and the dense ones.
        assert len(files) == -(-12 * sum(SIZES.values()) // 2 // (1 << 14))
        for path in files:
            assert path.stat().st_size <= (1 << 14) + 4096
            for key, values in load_file(path).items():
                name, role, start = key.split("|")
                right = value_of(numbers[name], ROLES.index(role), int(start), len(values))
                assert np.array_equal(values, right), key
                seen[name, role] += len(values)
    assert seen == {(name, role): SIZES[name] for name in SIZES for role in ROLES}


def test_any_world_reads_parts(in_parts: Path) -> None:
    for world, degree in ((1, 1), (2, 2), (3, 1), (8, 4)):
        read(str(in_parts), MODEL, world, degree, check=True)


def test_a_slice_costs_its_blocks_and_no_more(in_parts: Path) -> None:
    files = CountedFiles()
    found = checkpoint_at(str(in_parts), files).reader()
    files.requests = files.bytes_read = 0
    values = found.read(EXPERTS, "exp_avg", 300, 10)
    assert torch.equal(values, torch.from_numpy(value_of(list(SIZES).index(EXPERTS), 1, 300, 10)))
    assert (files.requests, files.bytes_read) == (1, 1024)


def test_small_gaps_are_read_over_and_large_ones_are_not(in_parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = CountedFiles()
    found = checkpoint_at(str(in_parts), files).reader()

    def cost(wanted: list[Wanted]) -> tuple[int, int]:
        files.requests = files.bytes_read = 0
        found.read_all(wanted)
        return files.requests, files.bytes_read

    whole = [Wanted(name, "master", *where) for name, *where in Rank(MODEL, 0, 2, 2).intervals]
    # Rank 0 has half of the experts, 1,024 elements in four blocks; the middle of them is not wanted.
    middle = next(at for at, each in enumerate(whole) if each.name == EXPERTS)
    assert whole[middle].numel == 1024
    holed = [*whole, Wanted(EXPERTS, "master", 0, 256), Wanted(EXPERTS, "master", 768, 256)]
    del holed[middle]
    assert cost(holed) == cost(whole)
    assert cost([Wanted(EXPERTS, "master", 0, 10), Wanted(EXPERTS, "exp_avg", 0, 10)]) == (2, 2048)
    fewest = cost(whole)
    monkeypatch.setattr(reader, "GAP", 1023)
    assert cost(holed) == (fewest[0] + 1, fewest[1] - 1024), "a gap of 1,024 bytes costs more than a request"
    monkeypatch.setattr(reader, "GAP", 1024)
    assert cost(holed) == fewest
    monkeypatch.setattr(reader, "MOST", 1.0)
    assert cost(holed) == (fewest[0] + 1, fewest[1] - 1024)


def spans(*places: tuple[int, int, int]) -> list[reader._Span]:
    return [reader._Span(*place) for place in places]


def bridged(most: float, *places: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """Ranks and bytes, in files of 100 bytes."""
    return [(span.rank, span.begin, span.end) for span in reader._bridged(spans(*places), most, 100)]


def test_the_smallest_gaps_are_read_over_within_a_file_and_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    places = ((0, 0, 10), (0, 18, 30), (0, 33, 40), (0, 45, 50))  # gaps of 8, 3 and 5; 34 bytes are needed
    assert bridged(36.9, *places) == list(places)
    assert bridged(37, *places) == [(0, 0, 10), (0, 18, 40), (0, 45, 50)]
    assert bridged(42, *places) == [(0, 0, 10), (0, 18, 50)]
    assert bridged(50, *places) == [(0, 0, 50)]
    # Another rank's stream and another file are requests of their own, whatever is between.
    apart = ((0, 80, 99), (0, 101, 110), (1, 110, 120))
    assert bridged(1000, *apart) == list(apart)
    assert bridged(1000, (0, 80, 104), (0, 106, 110)) == [(0, 80, 110)], "in the file where the first one ends"
    monkeypatch.setattr(reader, "GAP", 4)
    assert bridged(1000, *places) == [(0, 0, 10), (0, 18, 40), (0, 45, 50)]


def test_a_stream_begins_with_the_smallest_tensors(in_parts: Path) -> None:
    """In each role, on every rank: what lies together is what another number of ranks needs together."""
    for rank in range(2):
        keys = [key.split("|") for path in files_of(in_parts, rank) for key in header_of(path)]
        for role in ROLES:
            sizes = [SIZES[name] for name, of, _ in keys if of == role]
            assert sizes == sorted(sizes) and len(set(sizes)) == 4


def header_of(path: Path) -> list[str]:
    data = path.read_bytes()
    entries: dict[str, dict[str, list[int]]] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return sorted(entries, key=lambda key: entries[key]["data_offsets"])


@pytest.mark.parametrize("where", ["header", "first", "last"])
def test_every_byte_is_checked(where: str, in_parts: Path) -> None:
    path = files_of(in_parts, 1)[1]
    data = bytearray(path.read_bytes())
    data[{"header": 20, "first": 8 + int.from_bytes(data[:8], "little"), "last": -1}[where]] ^= 1
    path.write_bytes(bytes(data))
    (row,) = list_checkpoints(str(in_parts), verify=True)
    assert f"{path.name}, bytes " in str(row.problem) and "not match their digest: the file was changed" in str(
        row.problem
    )
    assert where != "header" or "(its header)" in str(row.problem)
    (row,) = list_checkpoints(str(in_parts))
    assert row.problem is None, "only the description is looked at"


def test_a_damaged_block_is_named_by_what_is_in_it(in_parts: Path) -> None:
    for path in files_of(in_parts, 0):
        for key, values in load_file(path).items():
            name, role, _ = key.split("|")
            if (name, role) == (EXPERTS, "exp_avg_sq") and len(values) > 600:
                data, needle = path.read_bytes(), values[300:310].tobytes()
                path.write_bytes(data.replace(needle, b"\1" * len(needle)))
    with pytest.raises(CheckpointError, match=rf"\({EXPERTS}, exp_avg_sq\) do not match their digest"):
        checkpoint_at(str(in_parts)).reader().read(EXPERTS, "exp_avg_sq", 300, 10)
    checkpoint_at(str(in_parts)).reader().read(EXPERTS, "exp_avg", 300, 10)


def test_a_missing_file_is_said(in_parts: Path) -> None:
    files_of(in_parts, 1)[0].unlink()
    with pytest.raises(CheckpointError, match=r"00001-000.safetensors is missing: the checkpoint is incomplete"):
        checkpoint_at(str(in_parts)).reader().verify(SIZES)


def described(*ranks: list[tuple[int, int]], blocks: int = 1) -> Index:
    """An index of `w` with 10 elements, of ranks that hold these intervals in one file and one block."""
    messages = []
    for intervals in ranks:
        files = int(bool(intervals))
        written = Written(
            np.full(files, 64, np.int32), digest_rows([b"h" * 16] * files), digest_rows([b"b" * 16] * files * blocks)
        )
        messages.append(message([Interval("w", *where) for where in intervals], written, {"w": 0}))
    return Index(joined(messages, ["w"]), {"w": (2, 5)}, "tag", 1024)


def test_an_index_holds_every_element_once() -> None:
    described([(3, 7)], [], [(0, 3)]).check("here")
    with pytest.raises(CheckpointError, match=r"here is incomplete: it holds 9 of the 10 elements of w$"):
        described([(4, 6)], [(0, 3)]).check("here")
    with pytest.raises(CheckpointError, match="holds 12 of the 10 elements of w, some of them twice"):
        described([(3, 7)], [(0, 5)]).check("here")
    with pytest.raises(CheckpointError, match="holds 10 of the 10 elements of w, some of them twice"):
        described([(4, 6)], [(0, 3), (2, 1)]).check("here")
    with pytest.raises(CheckpointError, match="has not the digest of every block"):
        described([(0, 10)], blocks=0).check("here")
    other = Index(joined([message([], *NOTHING)], ["w"]), {"v": (4,)}, "tag", 1024)
    with pytest.raises(CheckpointError, match="holds 0 of the 4 elements of v"):
        other.check("here")


NOTHING: tuple[Written, dict[str, int]] = (Written(np.empty(0, np.int32), digest_rows([]), digest_rows([])), {"w": 0})


def test_blocks_grow_with_the_checkpoint() -> None:
    assert [block_bytes(n) for n in (10, 10**8, 10**9, 10**10, 10**12)] == [1024, 1024, 8192, 131072, 1048576]


def test_a_snapshot_is_a_copy() -> None:
    engine = Rank(MODEL, 0, 2, 2)
    fragments = engine.fragments()
    copy = stream.snapshot(fragments)
    before = copy.values.clone()
    for fragment in fragments:
        fragment.master.zero_()
    assert torch.equal(copy.values, before) and len(before) == 3 * sum(f.numel for f in fragments)
