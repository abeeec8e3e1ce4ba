"""Statistics of stretches against values worked out by hand."""

from __future__ import annotations

import numpy as np

from trainer.baseline.features.stretches import OF_OBJECTS, OF_SERIES, of_objects, of_series, starts

NONE = float("nan")


def test_a_channel_of_four_observations() -> None:
    # Window of 8: late is from 6 on, early is before 2.
    time_O, value_O = np.array([0.0, 1.0, 6.0, 7.0]), np.array([4.0, 2.0, 1.0, 5.0])
    found = dict(zip(OF_SERIES, of_series(np.array([0]), time_O, value_O, np.array([8.0]))[0].tolist(), strict=True))
    assert found == {
        "count": 4,
        "first": 4,
        "last": 5,
        "min": 1,
        "max": 5,
        "mean": 3,
        "std": np.sqrt((1 + 1 + 4 + 4) / 4),
        "median": 3,
        "late_mean": 3,
        "late_min": 1,
        "early_mean": 3,
        "first_time": 0,
        "last_time": 7,
        "change": 1,
        # Times from their mean: -3.5, -2.5, 2.5, 3.5; values: 1, -1, -2, 2. 1.0 / 37 in all.
        "trend": (-3.5 + 2.5 - 5 + 7) / 37,
    }


def test_stretches_do_not_touch_each_other() -> None:
    key_O = np.array([3, 3, 3, 5, 9, 9])
    assert starts(key_O).tolist() == [0, 3, 4]
    time_O, value_O = np.array([1.0, 2.0, 9.0, 5.0, 4.0, 4.0]), np.array([3.0, 1.0, 2.0, 7.0, -1.0, -3.0])
    both = of_series(starts(key_O), time_O, value_O, np.array([10.0, 10.0, 4.0]))
    for number, own in enumerate((slice(0, 3), slice(3, 4), slice(4, 6))):
        alone = of_series(np.array([0]), time_O[own], value_O[own], np.array([4.0 if number == 2 else 10.0]))
        np.testing.assert_array_equal(both[number], alone[0])
    column = dict(zip(OF_SERIES, both.T.tolist(), strict=True))
    assert column["median"] == [2, 7, -2]
    # Nothing late in the second; of one time, or of two that are equal, no line can be drawn.
    np.testing.assert_array_equal(column["late_mean"], [2, NONE, -2])
    np.testing.assert_array_equal(column["late_min"], [2, NONE, -3])
    np.testing.assert_array_equal(column["early_mean"], [2, NONE, NONE])
    assert np.isnan(column["trend"]).tolist() == [False, True, True]


def test_without_a_window_nothing_is_early_or_late() -> None:
    found = of_series(np.array([0]), np.array([0.0, 1.0]), np.array([1.0, 2.0]), np.array([NONE]))[0]
    named = dict(zip(OF_SERIES, found.tolist(), strict=True))
    assert np.isnan([named["late_mean"], named["late_min"], named["early_mean"]]).all() and named["mean"] == 1.5


def test_objects_at_times() -> None:
    found = of_objects(np.array([0, 2]), np.array([1.0, 4.0, 2.0]), np.array([[1.0, 8.0], [3.0, 2.0], [5.0, 6.0]]))
    assert found[0].tolist() == [2, 1, 4, 3, 2, 2, 5, 1, 2, 3, 8]  # last, mean, min, max of both features
    assert found[1].tolist() == [1, 2, 2, 5, 6, 5, 6, 5, 6, 5, 6]
    assert len(OF_OBJECTS) == 3


def test_no_stretch_at_all() -> None:
    assert of_series(np.empty(0, np.int64), np.empty(0), np.empty(0), np.empty(0)).shape == (0, len(OF_SERIES))
    assert of_objects(np.empty(0, np.int64), np.empty(0), np.empty((0, 2))).shape == (0, 11)
