"""Shards and chunks end where a reader of the rules, record by record, lets them end; however units are dealt."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards.packing.units.cutter import Cut, Cutter, Piece, Sizes


def one_by_one(sizes: Sizes, size_n: list[int]) -> list[tuple[int, list[int]]]:
    """(records, first rows of chunks) of each shard, as docs/format.md's words say it."""
    shards: list[tuple[int, list[int]]] = []
    rows, shard, chunk, chunk_rows, first = 0, 0, 0, 0, list[int]()
    for size in size_n:
        if not first or chunk_rows >= sizes.chunk_records or chunk + size > sizes.chunk_bytes:
            first.append(rows)
            chunk = chunk_rows = 0
        member = 512 + -(-size // 512) * 512
        rows, shard, chunk, chunk_rows = rows + 1, shard + member, chunk + member, chunk_rows + 1
        if shard >= sizes.shard_bytes:
            shards.append((rows, first))
            rows, shard, first = 0, 0, []
    return [*shards, (rows, first)] if rows else shards


def blocks(most: int) -> st.SearchStrategy[int]:
    """Whole blocks of a tar: sums of them meet a limit exactly."""
    return st.integers(1, most // 512).map(lambda number: 512 * number)


@settings(max_examples=600, deadline=None)
@given(
    st.lists(st.one_of(st.integers(0, 1200), st.integers(0, 9000), blocks(3000)), max_size=40),
    st.lists(st.integers(0, 12), max_size=12),
    st.one_of(st.integers(1, 30_000), blocks(30_000)),
    st.integers(1, 9),
    st.one_of(st.integers(1, 9_000), blocks(9_000)),
)
def test_cut_as_record_by_record(size_n, units, shard_bytes, chunk_records, chunk_bytes):
    sizes = Sizes(shard_bytes, chunk_records, chunk_bytes)
    cutter, found, start = Cutter(sizes), list[Cut](), 0
    for unit, count in enumerate([*units, len(size_n)]):
        found += cutter.add(unit, np.array(size_n[start : start + count], np.int64))
        start += count
    found += cutter.close()
    rows = [sum(piece.stop - piece.start for piece in cut.pieces) for cut in found]
    assert [(n, list(cut.first_k)) for n, cut in zip(rows, found, strict=True)] == one_by_one(sizes, size_n)
    assert [cut.number for cut in found] == list(range(len(found)))


def test_pieces_and_going_on_in_the_middle_of_a_unit():
    sizes = Sizes(shard_bytes=3000, chunk_records=2, chunk_bytes=10_000)
    cutter = Cutter(sizes)
    size_n = np.full(7, 400)  # 1,024 bytes each: three to a shard
    assert cutter.add(0, size_n[:2]) == []
    whole = cutter.add(1, size_n) + cutter.close()
    assert whole == [
        Cut(0, (Piece(0, 0, 2), Piece(1, 0, 1)), (0, 2)),
        Cut(1, (Piece(1, 1, 4),), (0, 2)),
        Cut(2, (Piece(1, 4, 7),), (0, 2)),
    ]
    later = Cutter(sizes, number=1)
    assert later.add(1, size_n, start=1) + later.close() == whole[1:]


@pytest.mark.parametrize("wrong", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_sizes_are_positive(wrong):
    with pytest.raises(ValueError, match="all >= 1"):
        Sizes(*wrong)
