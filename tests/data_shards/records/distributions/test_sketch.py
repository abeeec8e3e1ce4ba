"""Sketches: the same whatever the way, and their quantiles within a bucket of the exact ones."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards.records.distributions.sketch import LIMIT, PROBABILITIES, Sketch, keys_of, limit_of, values_of

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
ROWS = st.lists(st.tuples(st.integers(0, 2), FINITE), max_size=60)


def sketch_of(rows: list[tuple[int, float]], limit: int) -> Sketch:
    sketch = Sketch(3, limit)
    if rows:
        channel, value = zip(*rows, strict=True)
        sketch.add(np.array(channel), np.array(value, np.float32))
    return sketch


def state(sketch: Sketch) -> list[list[int]]:
    return [column.tolist() for column in sketch.columns()]


def by_definition(rows: list[tuple[int, float]], limit: int) -> list[list[int]]:
    """Slow and obvious: each channel at the lowest level at which its keys fit."""
    found: list[tuple[int, int, int, int]] = []
    for channel in range(3):
        keys = [int(keys_of(np.array([value]))[0]) for own, value in rows if own == channel]
        level = next(level for level in range(33) if len({key >> level for key in keys}) <= limit)
        counts = Counter(key >> level for key in keys)
        found += [(channel, level, key, count) for key, count in sorted(counts.items())]
    return [list(column) for column in zip(*found, strict=True)] if found else [[], [], [], []]


@settings(max_examples=300, deadline=None)
@given(ROWS, st.integers(2, 9), st.lists(st.integers(0, 60), max_size=4), st.permutations(range(5)))
def test_the_state_is_that_of_the_definition_in_any_grouping_and_order(
    rows: list[tuple[int, float]], limit: int, cuts: list[int], order: list[int]
) -> None:
    expected = by_definition(rows, limit)
    assert state(sketch_of(rows, limit)) == expected
    bounds = [0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    pieces = [rows[start:end] for start, end in itertools.pairwise(bounds)]
    pieces = [pieces[i] for i in order if i < len(pieces)]
    one_by_one = Sketch(3, limit)
    for piece in pieces:
        one_by_one.merge(sketch_of(piece, limit))
        if len(piece) % 2:
            one_by_one.counts()  # settles in between
    assert state(one_by_one) == expected
    halves = [Sketch(3, limit), Sketch(3, limit)]
    for number, piece in enumerate(pieces):
        halves[number % 2].merge(sketch_of(piece, limit))
    halves[1].merge(halves[0])
    assert state(halves[1]) == expected


@settings(max_examples=200, deadline=None)
@given(ROWS, st.integers(2, 9))
def test_columns_and_back(rows: list[tuple[int, float]], limit: int) -> None:
    sketch = sketch_of(rows, limit)
    again = Sketch.of_columns(3, limit, *sketch.columns())
    assert state(again) == state(sketch)
    again.merge(sketch_of([(1, 2.5)], limit))
    assert state(again) == by_definition([*rows, (1, 2.5)], limit)


@settings(max_examples=300, deadline=None)
@given(st.lists(FINITE, min_size=1, max_size=80), st.integers(2, 12))
def test_quantiles_lie_within_a_bucket_of_numpys(values: list[float], limit: int) -> None:
    value_N = np.array(values, np.float32) + np.float32(0)
    sketch = sketch_of([(1, value) for value in values], limit)
    low_C, high_C = np.full(3, value_N.min()), np.full(3, value_N.max())
    found_CP = sketch.quantiles(low_C, high_C)
    exact_P = np.quantile(value_N.astype(np.float64), PROBABILITIES)
    _, level_E, key_E, _ = sketch.columns()
    level = int(level_E[0])
    width_E = values_of(((key_E.astype(np.int64) + 1) << level) - 1) - values_of(key_E.astype(np.int64) << level)
    slack = 1e-9 * np.abs(value_N.astype(np.float64)).max()
    assert (np.abs(found_CP[1] - exact_P) <= width_E.max() + slack).all()
    assert (np.diff(found_CP[1]) >= -slack).all()
    assert (found_CP[1, 0], found_CP[1, -1]) == (value_N.min(), value_N.max())
    assert (found_CP[[0, 2]] == 0).all()


def test_by_hand() -> None:
    rows = [(0, 3.0), (0, 1.0), (0, 2.0), (0, 1.0), (2, -5.0)]
    sketch = sketch_of(rows, LIMIT)
    quartiles = sketch.quantiles(np.array([1.0, 0, -5]), np.array([3.0, 0, -5]), (0.0, 0.25, 0.5, 0.75, 1.0))
    assert quartiles.tolist() == [[1.0, 1.0, 1.5, 2.25, 3.0], [0.0] * 5, [-5.0] * 5]
    assert sketch.counts().tolist() == [4, 0, 1]


def test_keys_are_in_the_order_of_values_and_zeros_are_one() -> None:
    values = np.array([-np.finfo("f4").max, -1.5, -1e-45, -0.0, 0.0, 1e-45, 1.5, np.finfo("f4").max], np.float32)
    keys = keys_of(values)
    assert keys[3] == keys[4] == 1 << 31
    assert (np.diff(np.delete(keys, 3).astype(np.int64)) > 0).all()
    assert np.array_equal(values_of(keys), values.astype(np.float64))
    with pytest.raises(ValueError, match="finite values only"):
        keys_of(np.array([1.0, np.nan]))


def test_a_million_numbers_fit_and_quantiles_are_close() -> None:
    rng = np.random.default_rng(0)
    value_N = rng.standard_normal(1_000_000).astype(np.float32)
    sketch, channel_N = Sketch(1), np.zeros(100_000, np.int64)
    for piece in np.split(value_N, 10):
        sketch.add(channel_N, piece)
    found_P = sketch.quantiles(value_N[None].min(1), value_N[None].max(1))[0]
    exact_P = np.quantile(value_N.astype(np.float64), PROBABILITIES)
    assert len(sketch.columns()[0]) <= LIMIT
    assert np.abs(found_P - exact_P).max() < 3e-3
    # Whole numbers: exact
    whole = Sketch(1)
    whole.add(np.zeros(1_000_000, np.int64), np.round(100 * value_N))
    low, high = np.array([np.round(100 * value_N).min()]), np.array([np.round(100 * value_N).max()])
    assert np.array_equal(
        whole.quantiles(low, high)[0], np.quantile(np.round(100 * value_N).astype("f8"), PROBABILITIES)
    )


def test_entries_stay_bounded_with_many_channels() -> None:
    assert (limit_of(1), limit_of(1024), limit_of(4096), limit_of(10**6)) == (2048, 2048, 512, 64)
    assert len(PROBABILITIES) == 33 and PROBABILITIES[0] == 0 and PROBABILITIES[16] == 0.5 and PROBABILITIES[-1] == 1
    assert list(PROBABILITIES) == sorted(set(PROBABILITIES))


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (([0, 0], [0, 0], [5, 5], [1, 1]), "not ascending"),
        (([0], [0], [5], [0]), "count less than 1"),
        (([3], [0], [5], [1]), "not ascending"),
        (([0, 0], [0, 1], [5, 6], [1, 1]), "levels of a sketch"),
        (([0], [32], [0], [1]), "levels of a sketch"),
        (([0], [8], [1 << 24], [1]), "beyond its level"),
        (([0, 0, 0], [0, 0, 0], [1, 2, 3], [1, 1, 1]), "more than 2"),
    ],
)
def test_columns_that_are_no_sketch(columns: tuple[list[int], ...], words: str) -> None:
    channel, level, key, count = (np.array(c, t) for c, t in zip(columns, ("i4", "i1", "u4", "i8"), strict=True))
    with pytest.raises(ValueError, match=words):
        Sketch.of_columns(3, 2, channel, level, key, count)


def test_sketches_of_other_channels_do_not_merge() -> None:
    with pytest.raises(ValueError, match="of 4 channels by 2048 keys cannot join one of 3 by 2048"):
        Sketch(3).merge(Sketch(4))
