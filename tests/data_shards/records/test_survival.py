"""Intervals of time: where they end, and where a time falls."""

from __future__ import annotations

import numpy as np
import pytest

from data_shards import DatasetSchema, ModalitySpec, Record, TaskSpec
from data_shards.records.check import validate
from data_shards.records.survival import count_intervals, edges_from, interval_of, life_table, seen_and_censored

nan = np.nan


def test_intervals_hold_equally_many_seen_times() -> None:
    rng = np.random.default_rng(0)
    time, seen = rng.exponential(10, 1000), rng.random(1000) < 0.5
    edges = edges_from(time, seen, 20)
    counts = np.bincount(interval_of(edges, time[seen]), minlength=21)
    assert len(edges) == 20 and counts[20] == 0 and counts[:20].max() - counts[:20].min() <= 1
    assert edges[-1] == np.float32(time[seen].max()), "a longer censored time moves no edge"
    assert set(edges) <= set(time[seen].astype(np.float32).astype(float).tolist())
    assert edges_from(time, seen, 1) == (edges[-1],)


def test_equal_times_make_fewer_intervals_and_none_is_empty() -> None:
    time = np.array([1.0] * 50 + [2.0] * 3 + [7.0] * 50 + [9.0])
    assert edges_from(time, np.ones(104), 10) == (1.0, 2.0, 7.0, 9.0)
    assert edges_from(time, np.ones(104), 2) == (2.0, 9.0)


def test_what_is_unlabelled_censored_or_at_time_0_is_no_edge() -> None:
    time = np.array([0.0, 1.0, 2.0, 3.0, nan, 50.0])
    assert edges_from(time, np.array([1, 1, 0, 1, nan, 0]), 5) == (1.0, 3.0)


def test_nothing_seen_is_a_sentence() -> None:
    with pytest.raises(ValueError, match="none of 2 training records was seen at a time above 0, so no interval"):
        edges_from(np.array([1.0, nan, 0.0]), np.array([0, nan, 1]), 5)
    with pytest.raises(ValueError, match="0 intervals are asked for"):
        edges_from(np.array([1.0]), np.array([1]), 0)


def test_counts_and_life_table_by_hand() -> None:
    rows = np.array([(0.0, 1), (1.0, 0), (1.0, 1), (1.5, 0), (2.0, 1), (9.0, 0), (9.0, 1), (nan, nan)], np.float32)
    counts = count_intervals((1.0, 2.0), rows)
    assert counts.tolist() == [1, 1, 1, 2, 1, 1]
    assert seen_and_censored(counts.tolist()) == (4, 3)
    assert life_table(counts.tolist()).tolist() == [2.5 / (7 - 0.5 + 1), 1.5 / (4 - 0.5 + 1)]


SCHEMA = DatasetSchema(
    "d", (ModalitySpec("v", "vector", shape=(1,)),), (TaskSpec("life", "survival", edges=(1.0, 2.0), unit="days"),)
)


def test_edges_are_part_of_the_schema_and_of_its_digest() -> None:
    again = DatasetSchema.from_json(SCHEMA.to_json())
    assert again == SCHEMA and again.tasks[0].edges == (1.0, 2.0)
    other = DatasetSchema("d", SCHEMA.modalities, (TaskSpec("life", "survival", edges=(1.0, 3.0), unit="days"),))
    assert other.digest() != SCHEMA.digest()


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ([-1.0, 1.0], "time -1 must be 0 or more"),
        ([1.0, 2.0], "seen 2 must be 0 or 1"),
        ([1.0, nan], "seen nan must be 0 or 1"),
        ([nan, 1.0], "time nan must be 0 or more"),
        ([np.inf, 1.0], "the target is infinite"),
        (3.0, r"target shape \(1,\), not \(2,\)"),
        ([100_000_000.5, 1.0], "give it in a larger unit"),
    ],
)
def test_illegal_labels(label: object, words: str) -> None:
    with pytest.raises(ValueError, match=f"record r, task life.*{words}"):
        validate(SCHEMA, Record("r", {}, {"life": np.array(label)}))


@pytest.mark.parametrize("label", [[0.0, 1.0], [0.5, 0.0], [1e9, 0.0], [nan, nan]])
def test_legal_labels(label: list[float]) -> None:
    validate(SCHEMA, Record("r", {}, {"life": np.array(label)}))
