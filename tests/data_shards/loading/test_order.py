"""The order of an epoch: exactly once, a function of (seed, epoch), the same global batches at every world size."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards.loading.order import EpochOrder, first_numbers, places, share_bounds
from data_shards.loading.shares import Place, share_by_records, share_by_tokens
from data_shards.permutation import _by_first_byte, permutation

COUNTS = st.lists(st.integers(0, 9), min_size=1, max_size=40).filter(lambda counts: sum(counts) > 0)

GOLDEN = [
    (0, 1),
    (0, 0),
    (0, 2),
    (2, 0),
    (2, 1),
    (0, 3),
    (2, 2),
    (3, 4),
    (3, 0),
    (4, 1),
    (3, 3),
    (3, 2),
    (3, 1),
    (4, 0),
]
GOLDEN_PERMUTATION = [5, 3, 4, 8, 6, 2, 1, 7, 0, 9]


def slow_permutation(n: int, *key: object) -> list[int]:
    """The definition: sort the places by the raw Philox stream under a BLAKE2 key."""
    digest = hashlib.blake2b(repr(("fleximoe-order-1", *key)).encode(), digest_size=16).digest()
    words = [int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")]
    stream = np.random.Philox(key=np.array(words, np.uint64))
    return [place for _, place in sorted((int(stream.random_raw()), place) for place in range(n))]


def slow_sequence(counts: list[int], seed: int, epoch: int, window: int) -> list[tuple[int, int]]:
    """The whole epoch as a plain list of (chunk, number in the chunk)."""
    chunks = [chunk for chunk, count in enumerate(counts) if count]
    chunks = [chunks[i] for i in slow_permutation(len(chunks), seed, epoch, "chunks")]
    sequence = []
    for w, start in enumerate(range(0, len(chunks), window)):
        entries = [(chunk, i) for chunk in chunks[start : start + window] for i in range(counts[chunk])]
        sequence += [entries[i] for i in slow_permutation(len(entries), seed, epoch, w)]
    return sequence


def pairs(entries: tuple[np.ndarray, np.ndarray]) -> list[tuple[int, int]]:
    return list(zip(entries[0].tolist(), entries[1].tolist(), strict=True))


@settings(max_examples=100, deadline=None)
@given(COUNTS, st.integers(0, 2**40), st.integers(0, 1000), st.integers(1, 50), st.data())
def test_pieces_of_any_size_are_the_slow_sequence(
    counts: list[int], seed: int, epoch: int, window: int, data: st.DataObject
) -> None:
    order = EpochOrder(np.array(counts), seed, epoch, window)
    expected, taken, start = slow_sequence(counts, seed, epoch, window), [], 0
    assert order.total == sum(counts)
    while start < order.total:
        stop = start + data.draw(st.integers(1, 60))
        taken += pairs(order.take(start, stop))
        start = stop
    assert taken == expected
    assert sorted(taken) == [(chunk, i) for chunk, count in enumerate(counts) for i in range(count)]


@settings(max_examples=200, deadline=None)
@given(COUNTS, st.integers(0, 1000), st.integers(1, 5), st.booleans(), st.data())
def test_the_numbers_of_a_step_are_its_entries_in_storage_order(
    counts: list[int], epoch: int, window: int, shuffle: bool, data: st.DataObject
) -> None:
    order = EpochOrder(np.array(counts), 3, epoch, window, shuffle)
    start = data.draw(st.integers(0, sum(counts)))
    stop = start + data.draw(st.integers(0, sum(counts) + 5))
    everything = [(chunk, i) for chunk, count in enumerate(counts) for i in range(count)]
    expected = sorted(everything.index(entry) for entry in pairs(order.take(start, stop)))
    assert order.numbers(start, stop).tolist() == expected
    assert pairs(places(first_numbers(np.array(counts)), np.arange(len(everything)))) == everything


@settings(max_examples=100, deadline=None)
@given(COUNTS, st.integers(0, 2**40), st.integers(1, 8), st.data())
def test_exactly_once_through_stops_and_other_world_sizes(
    counts: list[int], seed: int, window: int, data: st.DataObject
) -> None:
    """Train some steps, stop, go on with other ranks, another batch size, another way to deal, until the epoch ends."""
    total, position, seen = sum(counts), 0, []
    bounds, cost_N = np.array([0, total]), np.arange(total) * 7919 % 50 + 1
    while position < total:
        world, batch_size = data.draw(st.integers(1, 17)), data.draw(st.integers(1, 40))
        for _ in range(data.draw(st.integers(1, 4))):
            number_N = EpochOrder(np.array(counts), seed, 3, window).numbers(position, position + batch_size)
            micro = data.draw(st.integers(1, 3))
            if data.draw(st.booleans()):
                by_rank = [
                    share_by_tokens(number_N, cost_N[number_N], bounds, Place(rank, world, micro))[0]
                    for rank in range(world)
                ]
            else:
                by_rank = [share_by_records(number_N, bounds, Place(rank, world, micro)) for rank in range(world)]
                sizes = [sum(len(batch) for batch in batches) for batches in by_rank]
                assert max(sizes) - min(sizes) <= 1
            assert {len(batches) for batches in by_rank} == {micro}
            together = sorted(number for batches in by_rank for batch in batches for number in batch.tolist())
            assert together == number_N.tolist()  # the global step does not depend on the world size
            seen += together
            position = min(position + batch_size, total)
    assert sorted(seen) == list(range(total))


def test_golden_order() -> None:
    """Pinned: a checkpoint of today must find the same order tomorrow."""
    order = EpochOrder(np.array([4, 0, 3, 5, 2]), seed=7, epoch=2, window_chunks=2)
    assert pairs(order.take(0, 14)) == GOLDEN
    assert permutation(10, 1, 2, "x").tolist() == GOLDEN_PERMUTATION


def test_epochs_and_seeds_differ_and_repeat() -> None:
    counts = np.full(20, 10)
    make = lambda seed, epoch: pairs(EpochOrder(counts, seed, epoch, 4).take(0, 200))  # noqa: E731
    assert make(1, 0) == make(1, 0)
    assert len({tuple(make(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_storage_order_without_shuffling() -> None:
    order = EpochOrder(np.array([2, 0, 3]), 5, 9, window_chunks=1, shuffle=False)
    assert pairs(order.take(0, 99)) == [(0, 0), (0, 1), (2, 0), (2, 1), (2, 2)]
    assert pairs(order.take(1, 3)) == [(0, 1), (2, 0)]


def test_no_records() -> None:
    order = EpochOrder(np.array([0, 0]), 1, 0, 4)
    assert order.total == 0 and pairs(order.take(0, 10)) == []


def test_many_are_sorted_as_few(monkeypatch: pytest.MonkeyPatch) -> None:
    few = permutation(5000, 3, "x")
    monkeypatch.setattr("data_shards.permutation._LARGE", 0)
    np.testing.assert_array_equal(permutation(5000, 3, "x"), few)
    assert permutation(0, 3).tolist() == [] and permutation(1, 3).tolist() == [0]
    same = np.repeat(np.array([5 << 56, 3, 5 << 56 | 1], np.uint64), 100)  # of equal ones the first comes first
    np.testing.assert_array_equal(_by_first_byte(same), np.argsort(same, kind="stable"))


def test_permutations_look_uniform() -> None:
    """Every place is hit about equally often by the first entry (chi-square far below its 1e-6 quantile)."""
    first = np.bincount([permutation(8, 0, epoch, "chunks")[0] for epoch in range(4000)], minlength=8)
    assert ((first - 500) ** 2 / 500).sum() < 40


def test_windows_mix_records_of_their_chunks() -> None:
    chunk_N, _ = EpochOrder(np.full(64, 16), 0, 0, window_chunks=16).take(0, 64)
    assert len(set(chunk_N.tolist())) > 10  # out of 16 chunks of the first window


@pytest.mark.parametrize("world", [1, 2, 5, 16])
def test_a_rank_touches_few_chunks(world: int) -> None:
    order = EpochOrder(np.full(64, 32), 0, 0, window_chunks=16)
    touched = []
    for start in range(0, 512, 64):  # one window
        number_N = order.numbers(start, start + 64)
        for rank in range(world):
            (own,) = share_by_records(number_N, np.array([0, order.total]), Place(rank, world, 1))
            touched.append(set((own // 32).tolist()))
    assert np.mean([len(chunks) for chunks in touched]) <= 16 / world + 2


def test_share_bounds_tile() -> None:
    for n in range(30):
        for parts in range(1, 9):
            bounds = [share_bounds(n, part, parts) for part in range(parts)]
            assert [b for b, _ in bounds[1:]] == [e for _, e in bounds[:-1]]
            assert (bounds[0][0], bounds[-1][1]) == (0, n)
