"""Metrics of predictions that lie on several ranks are those of all of them on one, however they are dealt."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache

import numpy as np
import pytest
import torch

from data_shards import TaskSpec
from tests.ranks import run_ranks
from trainer.metrics.predictions import PredictionCollector, Predictions
from trainer.metrics.scores import part_metrics
from trainer.metrics.spread.exact import Sums, _whole, exact_parts
from trainer.metrics.spread.scores import spread_part_metrics
from trainer.worker.collectives import exchange_rows
from trainer.worker.ordered_rows import in_order_over_ranks, rising_key

TASKS = [
    TaskSpec("died", "binary"),
    TaskSpec("kind", "multiclass", classes=("u", "v", "w")),
    TaskSpec("codes", "multilabel", classes=("p", "q", "never")),
    TaskSpec("days", "regression", dim=2),
    TaskSpec("life", "survival", edges=(1.0, 2.0, 4.0), unit="days"),
    TaskSpec("one", "binary"),
    TaskSpec("none", "regression"),
]


def made(number: int, moments: bool) -> list[tuple[torch.Tensor, ...]]:
    """(record, moment, logits, targets) of many samples: few scores, so that most tie, and labels that are missing."""
    rng = np.random.default_rng(number)
    samples = 157
    index = np.sort(rng.integers(0, 40, samples)) if moments else np.arange(samples)
    moment = rng.random(samples).astype(np.float32) if moments else np.full(samples, np.nan, np.float32)
    logits, targets = {}, {}
    for task in TASKS:
        logits[task.name] = (rng.integers(-6, 7, (samples, task.dim)) / 4).astype(np.float32)
        if task.kind == "multiclass":
            target = rng.integers(0, 3, (samples, 1)).astype(float)
        elif task.kind == "survival":
            target = np.stack([rng.exponential(2.5, samples), rng.random(samples) < 0.7], axis=1)
        elif task.kind == "regression":
            target = rng.normal(3, 2, (samples, task.width))
        else:
            target = (rng.random((samples, task.width)) < 0.3).astype(float)
        target[rng.random(samples) < 0.2] = np.nan
        targets[task.name] = target.astype(np.float32)
    targets["codes"][rng.random(samples) < 0.3, 1] = np.nan
    targets["codes"][:, 2] = np.where(np.isnan(targets["codes"][:, 2]), np.nan, 0)
    targets["one"] = np.where(np.isnan(targets["one"]), np.nan, 1).astype(np.float32)
    targets["none"][:] = np.nan
    return index, moment, logits, targets  # type: ignore[return-value]


def collector_of(number: int, moments: bool, rows: np.ndarray) -> PredictionCollector:
    index, moment, logits, targets = made(number, moments)
    found = PredictionCollector(TASKS)
    for own in np.array_split(rows, 3):
        if len(own):
            found.add(
                torch.from_numpy(index[own]),  # type: ignore[arg-type]
                torch.from_numpy(moment[own]),  # type: ignore[arg-type]
                {name: torch.from_numpy(value[own]) for name, value in logits.items()},  # type: ignore[attr-defined]
                {name: torch.from_numpy(value[own]) for name, value in targets.items()},  # type: ignore[attr-defined]
            )
    return found


def _on_ranks(rank: int, world: int) -> list[tuple[dict[str, float], Predictions]]:
    found = []
    for number, moments in ((0, False), (1, True), (2, True)):
        # Of the last one a rank has nothing at all
        dealt = np.random.default_rng(world).integers(0, max(1, world - (number == 2)), 157)
        own = collector_of(number, moments, np.flatnonzero(dealt == rank)).to_owners()
        found.append((spread_part_metrics("test", TASKS, own), own))
    return [
        (
            metrics,
            (own.index_B.numpy(), None if own.moment_B is None else own.moment_B.numpy(), own.logits["kind"].numpy()),
        )
        for metrics, own in found
    ]  # type: ignore[misc]


@lru_cache
def answers_of(world: int) -> list:  # type: ignore[type-arg]
    return run_ranks(_on_ranks, world)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_merged_as_gathered(world: int) -> None:
    answers = answers_of(world)
    for place, (number, moments) in enumerate(((0, False), (1, True), (2, True))):
        whole = collector_of(number, moments, np.random.default_rng(5).permutation(157)).to_first()
        assert whole is not None
        expected = part_metrics("test", TASKS, whole)
        own = [answer[place] for answer in answers]
        assert all(metrics == own[0][0] for metrics, _ in own), "the same on every rank"
        assert own[0][0].keys() == expected.keys() and len(expected) > 20
        for name, value in expected.items():
            assert own[0][0][name] == pytest.approx(value, rel=1e-12, abs=1e-15), name
        assert own[0][0]["test/died/auroc"] == expected["test/died/auroc"], "to the last bit"
        # Stretches, one after the other, are the whole part; no record is on two ranks, and each rank has its share
        np.testing.assert_array_equal(np.concatenate([rows[0] for _, rows in own]), whole.index_B.numpy())
        np.testing.assert_array_equal(np.concatenate([rows[2] for _, rows in own]), whole.logits["kind"].numpy())
        if moments:
            np.testing.assert_array_equal(np.concatenate([rows[1] for _, rows in own]), whole.moment_B.numpy())  # type: ignore[union-attr]
        sets = [set(rows[0].tolist()) for _, rows in own]
        assert sum(map(len, sets)) == len(set.union(*sets)) == whole.records
        assert max(len(rows[0]) for _, rows in own) <= 1.3 * 157 / world


def test_figures_do_not_depend_on_the_number_of_ranks() -> None:
    one, *others = map(answers_of, (1, 2, 3))
    for answers in others:
        assert [metrics for metrics, _ in answers[0]] == [metrics for metrics, _ in one[0]], "to the last bit"


def test_a_sum_is_rounded_once() -> None:
    rng = np.random.default_rng(0)
    array = rng.normal(size=3000) * 10.0 ** rng.integers(-20, 20, 3000)
    values = array.tolist()
    exact = sum(map(Fraction, values))
    assert sum(map(Fraction, exact_parts(array[:70], exact_parts(array[70:])))) == exact
    sums = Sums()
    sums.add("a", values[:1000])
    sums.add("b", [])
    sums.add("a", np.array(values[1000:]))
    sums.add("c", [1.0, math.inf])
    assert sums.everywhere() == {"a": float(exact), "b": 0.0, "c": math.inf}
    assert _whole([1e16, 1.0, 1.0]) == 1e16 + 2, "parts of several ranks"
    assert math.fsum(values) == float(exact) != sum(values)


def _sorted_over_ranks(rank: int, world: int) -> tuple[list[int], list[int]]:
    key = torch.tensor([5, 5, 5, -9, 2**62, 5]) if rank else torch.arange(rank, 60, 7)
    rows = torch.stack([key.int() * 0 + rank, torch.arange(len(key), dtype=torch.int32)], dim=1)
    found, keys = in_order_over_ranks(rows, key)
    arrived = exchange_rows([torch.full((rank + other, 1), 10 * rank + other) for other in range(world)])
    wanted = [10 * other + rank for other in range(world) for _ in range(rank + other)]
    assert arrived[:, 0].tolist() == wanted
    return keys.tolist(), found.tolist()  # type: ignore[return-value]


def test_rows_in_order_over_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = run_ranks(_sorted_over_ranks, 3)
    keys = [key for own, _ in answers for key in own]
    assert keys == sorted([*range(0, 60, 7), *[5, 5, 5, -9, 2**62, 5] * 2])
    holders = [rank for rank, (own, _) in enumerate(answers) if 5 in own]
    assert len(holders) == 1, "rows of one key are on one rank"
    own, rows = answers[holders[0]]
    assert [row for key, row in zip(own, rows, strict=True) if key == 5] == [  # type: ignore[comparison-overlap]
        [rank, n] for rank in (1, 2) for n in (0, 1, 2, 5)
    ]  # in the order of ranks
    value = torch.tensor([-math.inf, -3.5, -1e-300, -0.0, 0.0, 1e-300, 2.0, math.inf], dtype=torch.float64)
    key = rising_key(value)
    assert (key.diff() > 0).tolist() == [True, True, True, False, True, True, True]
