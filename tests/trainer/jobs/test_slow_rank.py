"""A rank that is busy for longer than `parallel.timeout_s` with a commit or a metric costs time, and not the run."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.ranks import run_ranks
from tests.trainer.tiny import config, packed
from tests.trainer.worker.test_collectives import Victim
from trainer.checkpoints.writer import CheckpointWriter
from trainer.config.run_config import RunConfig
from trainer.evaluation import part
from trainer.jobs.job import run

TIMEOUT_S = 3.0


def _once(function: Any, took: list[float]) -> Any:
    """The function, which takes twice the timeout when it is called for the first time."""

    def slow(*args: Any) -> Any:
        if not took:
            time.sleep(2 * TIMEOUT_S)
            took.append(2 * TIMEOUT_S)
        return function(*args)

    return slow


def _run(rank: int, world: int, tree: dict[str, Any], slow: str | None) -> tuple[dict[str, float], int]:
    took: list[float] = []
    if slow == "commit":
        CheckpointWriter._commit = _once(CheckpointWriter._commit, took)  # type: ignore[method-assign]
    elif slow == "metric":
        part.part_results = _once(part.part_results, took)
    result = run(RunConfig.model_validate(tree), Victim(rank, world, None))
    return result["metrics"], len(took)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return packed(tmp_path_factory.mktemp("data"))


def _tree(data: Any, folder: Any) -> dict[str, Any]:
    parallel = {"parallel__workers": 2, "parallel__expert_parallel": 2, "parallel__timeout_s": TIMEOUT_S}
    return config(data, folder, **parallel).model_dump(mode="json")


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    return run_ranks(_run, 2, _tree(data, tmp_path_factory.mktemp("run")), None)


@pytest.mark.long
@pytest.mark.parametrize("slow", ["commit", "metric"])
def test_training_outlives_it_with_the_same_figures(data, undisturbed, tmp_path, slow):
    start = time.monotonic()
    found = run_ranks(_run, 2, _tree(data, tmp_path), slow)
    assert time.monotonic() - start > 2 * TIMEOUT_S
    # It is the first rank alone that is slow.
    assert [took for _, took in found] == [1, 0]
    assert [metrics for metrics, _ in found] == [metrics for metrics, _ in undisturbed]
    assert found[0][0]["test/records"] == 8.0
