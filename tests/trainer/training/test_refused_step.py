"""A step that was refused as not finite leaves no trace in what learns, also where a run goes on right after it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from benchmarks.finished_run import newest_checkpoint
from tests.ranks import run_ranks
from tests.trainer.jobs.test_train import FixedContext, weights
from tests.trainer.tiny import config, packed
from trainer.config.run_config import RunConfig
from trainer.jobs.job import run
from trainer.training.loop import TrainingLoop

pytestmark = pytest.mark.together
REFUSED = 3


def _job(rank: int, world: int, tree: dict[str, Any], stop_at: int | None) -> dict[str, Any]:
    """A run whose third step has a loss that is not finite on rank 1."""
    original = TrainingLoop._loss

    def loss(loop: TrainingLoop, *args: Any) -> Tensor:
        bad = loop.progress.step + 1 == REFUSED and rank == 1
        return original(loop, *args) * (float("nan") if bad else 1.0)

    TrainingLoop._loss = loss  # type: ignore[method-assign]
    return run(RunConfig.of(tree), FixedContext(rank, world, stop_at))


def job(run_config: RunConfig, stop_at: int | None = None) -> dict[str, Any]:
    result: dict[str, Any] = run_ranks(_job, 2, run_config.model_dump(mode="json"), stop_at)[0]
    return result


def logged(storage: Path) -> dict[int, dict[str, float]]:
    lines = [json.loads(line) for line in (storage / "run" / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["metrics"] for line in lines if "train/grad_norm" in line.get("metrics", {})}


@pytest.mark.long
def test_a_run_goes_on_as_if_the_step_had_not_been(tmp_path: Path) -> None:
    data = packed(tmp_path / "data")
    settings: dict[str, Any] = {
        "training__on_nonfinite": "skip",
        "training__epochs": 2,
        "parallel__workers": 2,
        "parallel__expert_parallel": 2,
    }
    whole, broken = (config(data, tmp_path / name, **settings) for name in ("whole", "broken"))
    assert job(whole)["status"] == "finished"
    # Stopped before and after the refused step, and continued from the checkpoints of both.
    buffers = []
    for stop_at in (REFUSED - 1, 1):
        job(broken, stop_at)
        checkpoint = newest_checkpoint(str(tmp_path / "broken" / "run"))
        buffers.append({name: list(values) for name, values in checkpoint.meta["buffers"].items()})
    assert checkpoint.step == REFUSED and checkpoint.meta["progress"]["nonfinite_steps"] == 1
    assert any(any(values) for values in buffers[0].values()), "biases have moved before"
    assert buffers[0] == buffers[1], "and not by the refused step"
    assert job(broken)["status"] == "finished"
    expected, got = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    for name in expected:
        np.testing.assert_array_equal(got[name], expected[name], err_msg=name)
    for storage in ("whole", "broken"):
        steps = logged(tmp_path / storage)
        assert steps[REFUSED]["train/grad_norm"] == float("inf") and "train/loss" not in steps[REFUSED]
        assert all(np.isfinite(metrics["train/loss"]) for step, metrics in steps.items() if step != REFUSED)
    losses = [{s: m.get("train/loss") for s, m in logged(tmp_path / name).items()} for name in ("whole", "broken")]
    assert losses[0] == losses[1] and len(losses[0]) == 8
