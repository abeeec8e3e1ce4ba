"""Options of a training step that must not change its result, and what a run says about its cost."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.ranks import run_ranks
from tests.trainer.tiny import config, packed
from trainer.config.run_config import RunConfig
from trainer.jobs.job import run
from trainer.training.loop import TrainingLoop
from trainer.worker.context import SingleContext


class Rank(SingleContext):
    """One of several ranks."""

    def __init__(self, rank: int, world: int) -> None:
        super().__init__("cpu")
        self.rank, self.world, self.local_rank = rank, world, rank


def _job(rank: int, world: int, tree: dict[str, Any]) -> dict[str, Any]:
    return run(RunConfig.of(tree), Rank(rank, world))


def lines(storage: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (storage / "run" / "metrics.jsonl").read_text().splitlines()]


def losses(storage: Path) -> dict[int, float]:
    return {
        line["step"]: line["metrics"]["train/loss"]
        for line in lines(storage)
        if "train/loss" in line.get("metrics", {})
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return packed(tmp_path_factory.mktemp("tiny") / "data")


def test_recomputed_activations_change_nothing(data: str, tmp_path: Path) -> None:
    """Two ranks that exchange tokens again during the backward pass, dropout and router noise on."""
    found = []
    for recompute in (False, True):
        layout: dict[str, Any] = {"parallel__workers": 2, "parallel__expert_parallel": 2, "training__batch_size": 7}
        chosen = config(data, tmp_path / str(recompute), training__activation_checkpointing=recompute, **layout)
        run_ranks(_job, 2, chosen.model_dump(mode="json"))
        found.append(losses(tmp_path / str(recompute)))
    assert len(found[0]) > 5
    assert found[0] == found[1]


def test_a_run_tells_its_size_its_speed_and_leaves_a_trace(data: str, tmp_path: Path) -> None:
    chosen = config(data, tmp_path, training__profile=2)
    result = run_ranks(_job, 1, chosen.model_dump(mode="json"))[0]
    assert result["status"] == "finished"
    params = next(line["params"] for line in lines(tmp_path) if "parameters.total" in line.get("params", {}))
    assert int(params["parameters.active"]) < int(params["parameters.total"])
    last = [line["metrics"] for line in lines(tmp_path) if "perf/mfu" in line.get("metrics", {})][-1]
    assert 0 < last["perf/mfu"] < 1.5 and last["perf/tflops"] > 0
    with gzip.open(tmp_path / "run" / "profile" / "trace.json.gz") as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert {"ProfilerStep#5", "ProfilerStep#6"} <= names
    assert "aten::addmm" in names


def test_compile_says_what_is_missing(data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(ValueError, match=r"training.compile=true, but .*no compiler.*install a C\+\+ compiler"):
        run(config(data, tmp_path, training__compile=True), SingleContext("cpu"))


@pytest.mark.long
@pytest.mark.slow
def test_compiled_parts_give_the_same_losses(data: str, tmp_path: Path) -> None:
    found = []
    for compiled in (False, True):
        changes: dict[str, Any] = {"model__dropout": 0.0, "model__ffn_hidden": 16, "training__epochs": 1}
        chosen = config(data, tmp_path / str(compiled), training__compile=compiled, **changes)
        run_ranks(_job, 1, chosen.model_dump(mode="json"))
        found.append(losses(tmp_path / str(compiled)))
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_time_is_hidden_of_what_is_learned_from_and_not_of_what_is_evaluated(data: str, tmp_path: Path) -> None:
    """One step that moves next to nothing."""
    still: dict[str, Any] = {"training__max_steps": 1, "optim__lr": 1e-12, "model__dropout": 0.0}
    for name, share in (("whole", 0.0), ("hidden", 0.4)):
        run(config(data, tmp_path / name, model__time_dropout=share, **still), SingleContext())
    assert abs(losses(tmp_path / "whole")[1] - losses(tmp_path / "hidden")[1]) > 1e-4
    told = [[own["metrics"] for own in lines(tmp_path / name) if "metrics" in own] for name in ("whole", "hidden")]
    found = [next(own["val/loss"] for own in each if "val/loss" in own) for each in told]
    assert found[0] == pytest.approx(found[1], abs=1e-6)


def test_minutes_are_the_time_of_all_processes_of_a_run(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three seconds a step: 40 in two minutes. Stopped after 30 and twice as slow then: five more, in 30 seconds."""
    pace = {"slow_from": 10_000}

    def count(loop: TrainingLoop) -> None:
        step = loop.progress.step
        loop.progress.seconds = 3.0 * step + 3.0 * max(0, step - pace["slow_from"])

    monkeypatch.setattr(TrainingLoop, "_count_seconds", count)
    chosen = config(data, tmp_path / "whole", training__epochs=1000, training__minutes=2.0, training__eval_every=5)
    assert run(chosen, SingleContext())["step"] == 40
    logged = [line for line in lines(tmp_path / "whole") if "train/lr" in line.get("metrics", {})]
    rate = {line["step"]: line["metrics"]["train/lr"] for line in logged}
    assert rate[40] < 0.1 * max(rate.values())
    pace["slow_from"] = 30
    first = chosen.model_copy(
        update={"training": chosen.training.model_copy(update={"storage": str(tmp_path / "cut"), "max_steps": 30})}
    )
    assert run(first, SingleContext())["step"] == 30
    again = first.model_copy(update={"training": first.training.model_copy(update={"max_steps": None})})
    assert run(again, SingleContext())["step"] == 35


@pytest.mark.parametrize(("seconds_of_a_step", "steps"), [(2.0, 20), (10.0, 5)])
def test_a_run_that_time_ends_is_evaluated_first(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds_of_a_step: float, steps: int
) -> None:
    """Half a minute: over after 20 steps, when it is first known how many fit, or before, when they are slow."""

    def count(loop: TrainingLoop) -> None:
        loop.progress.seconds = seconds_of_a_step * loop.progress.step

    monkeypatch.setattr(TrainingLoop, "_count_seconds", count)
    chosen = config(data, tmp_path, training__epochs=1000, training__minutes=0.5, training__eval_every=1000)
    assert run(chosen, SingleContext())["step"] == steps
    assert [line["step"] for line in lines(tmp_path) if "val/loss" in line.get("metrics", {})] == [steps]


def test_minutes_by_the_clock_end_a_run(data: str, tmp_path: Path) -> None:
    chosen = config(data, tmp_path, training__epochs=100_000, training__minutes=0.02)
    result = run(chosen, SingleContext())
    assert 20 <= result["step"] < 100_000 and result["status"] == "finished"
