"""Records dealt by tokens: how even, how near in storage, how fast; the same everywhere."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards.loading.deal import deal
from data_shards.loading.order import EpochOrder
from data_shards.loading.shares import Evenness, Load, Place, share_by_records, share_by_tokens

WORLD, EACH, CHUNK = 1024, 32, 64


@pytest.mark.parametrize(
    ("cost", "load", "part"),
    [
        # One record makes a part by itself; the others fill the other part.
        ([5, 1, 1, 1, 1, 1], [0, 0], [0, 1, 1, 1, 1, 1]),
        ([1, 1, 1, 1, 1, 5], [0, 0], [1, 1, 1, 1, 1, 0]),
        # Sums of 9 and 11 around the nearest cut; the nearest record of cost 1 changes sides.
        ([3, 3, 3, 3, 3, 1, 1, 1, 1, 1], [0, 0], [0, 0, 0, 1, 1, 0, 1, 1, 1, 1]),
        # 12 and 14; no single record has cost 1, and 4 for 3 is an exchange that makes 13 and 13.
        ([3, 3, 3, 3, 4, 4, 3, 3], [0, 0], [0, 0, 0, 1, 0, 1, 1, 1]),
        # What parts hold already counts: all are filled up to 6.
        ([1] * 9, [5, 0, 4], [0, 1, 1, 1, 1, 1, 1, 2, 2]),
        # A part that is above the level takes nothing.
        ([1] * 8, [0, 9, 0], [0, 0, 0, 0, 2, 2, 2, 2]),
        # Two a part: the largest first, each to the emptiest part.
        ([9, 8, 7, 3, 2, 1], [0, 0, 0], [0, 1, 2, 2, 1, 0]),
        ([], [0, 0], []),
    ],
)
def test_by_hand(cost: list[int], load: list[int], part: list[int]) -> None:
    assert deal(np.array(cost, np.int64), np.array(load, np.int64)).tolist() == part


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(1, 200), max_size=300), st.integers(1, 40), st.data())
def test_nobody_holds_more_than_the_mean_and_one_record(cost: list[int], parts: int, data: st.DataObject) -> None:
    """A bound that any greedy way keeps; `by records` breaks it."""
    load = data.draw(st.one_of(st.just([0] * parts), st.lists(st.integers(0, 300), min_size=parts, max_size=parts)))
    cost_N, load_P = np.array(cost, np.int64), np.array(load, np.int64)
    part_N = deal(cost_N, load_P)
    assert part_N.shape == cost_N.shape and (part_N >= 0).all() and (part_N < parts).all()
    assert (load_P == load).all(), "the caller's loads are the caller's"
    after_P = load_P + np.bincount(part_N, cost_N, parts).astype(np.int64)
    level = max(int(after_P.sum()) / parts, int(load_P.max()))
    assert after_P.max() <= level * 1.02 + 2 + max(cost, default=0)
    assert (deal(cost_N.copy(), load_P) == part_N).all()


def setting(alike: bool, seed: int = 0) -> tuple[EpochOrder, np.ndarray]:
    """64 modalities of lognormal size, half of them present: in each record by itself, or alike within a chunk."""
    rng = np.random.default_rng(seed)
    chunks = 2 * WORLD * EACH // CHUNK
    size_M = np.maximum(1, np.rint(rng.lognormal(2, 1.0, 64))).astype(np.int64)
    chance = np.repeat(rng.beta(1, 1, (chunks, 64)), CHUNK, axis=0) if alike else 0.5
    cost_N = (rng.random((chunks * CHUNK, 64)) < chance) @ size_M
    return EpochOrder(np.full(chunks, CHUNK), 0, 0, 16), np.maximum(1, cost_N)


def reads(shares: list[list[np.ndarray]]) -> float:
    """Records of the chunks that ranks read, over records that they use."""
    used = sum(len(batch) for batches in shares for batch in batches)
    return CHUNK * sum(len(np.unique(np.concatenate(batches) // CHUNK)) for batches in shares) / used


@pytest.mark.parametrize("alike", [False, True], ids=["independent", "alike"])
def test_the_fullest_of_1024_ranks(alike: bool) -> None:
    """32 records a rank; dealt by records, the fullest has 1.10 and 1.30 times the mean, by tokens 1.02 in both."""
    order, cost_N = setting(alike)
    number_N, bounds = order.numbers(1000, 1000 + WORLD * EACH), np.array([0, order.total])
    before = [share_by_records(number_N, bounds, Place(rank, WORLD, 1)) for rank in range(WORLD)]
    dealt = [share_by_tokens(number_N, cost_N[number_N], bounds, Place(rank, WORLD, 1)) for rank in range(WORLD)]
    after = [batches for batches, _ in dealt]
    assert sorted(np.concatenate([batch for batches in after for batch in batches]).tolist()) == number_N.tolist()
    loads = [int(cost_N[batches[0]].sum()) for batches in after]
    mean = sum(loads) / WORLD
    assert max(loads) / mean <= 1.025
    assert {load for _, load in dealt} == {Load(max(loads), mean, int(cost_N[number_N].max()))}
    assert max(int(cost_N[batches[0]].sum()) for batches in before) / mean > (1.25 if alike else 1.08)
    assert reads(before) == pytest.approx(2.97, abs=0.01) and reads(after) == pytest.approx(3.03, abs=0.02)


def test_what_is_read_where_shares_by_records_would_end_with_chunks() -> None:
    """The price: two ranks to a chunk is as good as reading gets, and only where batch and chunks happen to fit."""
    order, cost_N = setting(alike=False)
    number_N, bounds = order.numbers(0, WORLD * EACH), np.array([0, order.total])
    before = [share_by_records(number_N, bounds, Place(rank, WORLD, 1)) for rank in range(WORLD)]
    dealt = [share_by_tokens(number_N, cost_N[number_N], bounds, Place(rank, WORLD, 1)) for rank in range(WORLD)]
    assert reads(before) == 2.0 and reads([batches for batches, _ in dealt]) == pytest.approx(3.05, abs=0.05)


def test_micro_batches_are_as_even_as_ranks() -> None:
    """Four micro-batches of eight records on each of 1,024 ranks: all 4,096 of them meet one after the other."""
    order, cost_N = setting(alike=False)
    number_N, bounds = order.numbers(0, WORLD * EACH), np.array([0, order.total])
    shares = [share_by_tokens(number_N, cost_N[number_N], bounds, Place(r, WORLD, 4)) for r in range(0, WORLD, 64)]
    tokens = np.array([[cost_N[batch].sum() for batch in batches] for batches, _ in shares])
    assert tokens.shape == (16, 4) and tokens.max() / shares[0][1].mean <= 1.06
    by_records = [share_by_records(number_N, bounds, Place(r, WORLD, 4)) for r in range(0, WORLD, 64)]
    assert max(cost_N[batch].sum() for batches in by_records for batch in batches) / shares[0][1].mean > 1.12


def test_each_data_set_of_a_mixture_is_dealt_by_itself() -> None:
    """Records 0 to 99 cost 1, the others 10: each of four ranks gets a quarter of both."""
    number_N, bounds = np.arange(200), np.array([0, 100, 200])
    cost_N = np.where(number_N < 100, 1, 10)
    for rank in range(4):
        (own,), load = share_by_tokens(number_N, cost_N, bounds, Place(rank, 4, 1))
        assert (int((own < 100).sum()), int((own >= 100).sum())) == (25, 25)
        assert load == Load(275, 275.0, 10)


def test_it_is_fast_enough_to_be_done_by_every_rank() -> None:
    """131,072 records over 1,024 ranks, order and all: some 10 ms; the bound leaves room for a busy machine."""
    rng = np.random.default_rng(0)
    order, cost_N = EpochOrder(np.full(8192, CHUNK), 0, 0, 16), rng.integers(50, 500, 8192 * CHUNK)
    seconds = []
    for start in range(1000, 300_000, 60_000):
        begin = time.process_time()
        number_N = order.numbers(start, start + 131_072)
        share_by_tokens(number_N, cost_N[number_N], np.array([0, order.total]), Place(5, 1024, 1))
        seconds.append(time.process_time() - begin)
    assert min(seconds) < 0.06


def test_what_is_said_of_uneven_steps(caplog: pytest.LogCaptureFixture) -> None:
    even, uneven = Load(110, 100.0, 9), Load(150, 100.0, 90)
    watch = Evenness(Place(0, 8, 2), None)
    watch.add(even)
    assert caplog.text == ""
    watch.add(uneven)
    watch.add(uneven)
    assert caplog.text.count("holds 150 tokens, 1.50 times the mean of 100, and the other ranks wait for it") == 1
    assert "the largest record of the step has 90: a larger training.batch_size" in caplog.text
    assert watch.read() == {"data/token_ratio": 1.5, "data/most_tokens": 150.0}
    assert watch.read() == {}
    watch.add(even)
    assert watch.read() == {"data/token_ratio": 1.1, "data/most_tokens": 110.0}
    caplog.clear()
    bound = Evenness(Place(0, 8, 2), 100)
    bound.add(even)
    bound.add(even)
    assert caplog.text.count("training.max_tokens is 100") == 1
    assert "set training.accumulation to 3 or more" in caplog.text  # 2 x 110 tokens fit into 3 x 100
    caplog.clear()
    other = Evenness(Place(3, 8, 2), 100)
    other.add(uneven)
    assert caplog.text == "" and other.read()["data/token_ratio"] == 1.5
