"""A whole step of a run as a GPU would make it in bf16: forward, backward, update, log; watched, not measured.

Branches for GPUs are forced on a CPU. What must hold of every layout: no sum by address in low precision; the host
waits once a layer forward where experts are spread, twice a step elsewhere, never in the backward pass (what is
computed again lies in it); few operations a layer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from parallel import Engine, MoELayer
from tests import varlen_on_cpu  # noqa: F401  # gives the kernel of attention to the CPU
from tests.gpu_branch import Watch, gpu_branch
from tests.ranks import run_ranks
from tests.trainer.jobs.test_train import FixedContext
from tests.trainer.tiny import config, packed
from trainer.config.run_config import RunConfig
from trainer.jobs.job import run
from trainer.training.loop import TrainingLoop
from trainer.training.meter import Meter
from trainer.training.node_usage import NodeUsage

pytestmark = pytest.mark.together
ROUTERS = ("joint", "per_modality", "disjoint")
GRAINS = ("token", "bin", "sample")
LAYERS = 2
# What works on the CPU by design: batches before they are sent, and the exchange of their counts.
ON_HOST = ((TrainingLoop, "_prepare"), (TrainingLoop, "_agree"), (Meter, "add_batch"), (NodeUsage, "read"))


class Steps:
    """Watches the second step of each run; the first one makes what is made once."""

    def __init__(self) -> None:
        self.watch = Watch()
        self.active = False

    @contextlib.contextmanager
    def phases(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            places: list[tuple[type, str, str]] = [
                (Engine, "__call__", "forward"),
                (Engine, "backward", "backward"),
                (Engine, "step", "step"),
                (TrainingLoop, "_log", "log"),
                (MoELayer, "forward", "layer"),
                *[(owner, name, "host") for owner, name in ON_HOST],
            ]
            for owner, name, phase in places:
                stack.enter_context(mock.patch.object(owner, name, self._within(phase, getattr(owner, name))))
            stack.enter_context(mock.patch.object(TrainingLoop, "_train_step", self._step(TrainingLoop._train_step)))
            yield

    def _within(self, phase: str, original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            # What is computed again, or reduced, belongs to the backward pass.
            if not self.active or self.watch._phase == "backward":
                return original(*args, **kwargs)
            with self.watch.phase(phase):
                return original(*args, **kwargs)

        return call

    def _step(self, original: Any) -> Any:
        def call(loop: TrainingLoop, step: Any) -> Any:
            if loop.progress.step != 1:
                return original(loop, step)
            self.active = True
            try:
                with gpu_branch(), self.watch, self.watch.phase("between"):
                    original(loop, step)
            finally:
                self.active = False
            return True  # to stop

        return call


def walk(rank: int, world: int, trees: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for tree in trees:
        steps = Steps()
        with steps.phases():
            run(RunConfig.of(tree), FixedContext(rank, world))
        watch = steps.watch
        found.append(
            {
                "low": [str(one) for one in watch.low_precision_scatters()],
                "waits": {
                    phase: [f"{one.name} {one.where}" for one in watch.found_waits if one.phase == phase]
                    for phase in watch.waits
                },
                "kernels": dict(watch.kernels),
                "layer": dict(watch.by_name["layer"].most_common()),
                "grouped": watch.by_name["layer"]["aten._grouped_mm"],
                "reduced": [str(one) for one in watch.collectives if one.phase == "backward"],
            }
        )
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return packed(tmp_path_factory.mktemp("watched") / "data")


def tree_of(data: str, storage: Path, world: int, **changes: Any) -> dict[str, Any]:
    fixed = {
        "model__moe__noise": 0.0,
        "model__moe__bias_rate": 0.0,
        "parallel__workers": world,
        "parallel__expert_parallel": world,
        "parallel__precision": "bf16",
        "model__moe__experts": 16,
    }
    return config(data, storage, **fixed, **changes).model_dump(mode="json")


EVERY = [(grain, again, dropout) for grain in GRAINS for again in (False, True) for dropout in (0.0, 0.5)]


@pytest.mark.parametrize("cases", [pytest.param(EVERY, marks=pytest.mark.long, id="every"), EVERY[1::4] + EVERY[2::4]])
@pytest.mark.parametrize("world", [pytest.param(1, marks=pytest.mark.long), 2])
@pytest.mark.parametrize("router", ROUTERS)
def test_a_step_keeps_its_bounds(
    data: str, tmp_path: Path, router: str, world: int, cases: list[tuple[str, bool, float]]
) -> None:
    trees = [
        tree_of(
            data,
            tmp_path / str(number),
            world,
            model__moe__router=router,
            model__moe__granularity=grain,
            model__modality_dropout=dropout,
            training__activation_checkpointing=again,
        )
        for number, (grain, again, dropout) in enumerate(cases)
    ]
    for case, got in zip(cases, run_ranks(walk, world, trees, timeout_s=300)[0], strict=True):
        waits = got["waits"]
        assert got["grouped"] >= 2 * LAYERS, "the branch for GPUs was not taken"
        assert got["low"] == [], case
        assert len(waits.get("layer", [])) <= LAYERS * (world - 1), (case, waits["layer"])
        assert waits.get("backward", []) == [], (case, waits["backward"])
        outside = [where for phase in ("forward", "between", "step", "log") for where in waits.get(phase, [])]
        assert len(outside) <= 2, (case, outside)
        assert got["kernels"]["layer"] <= 70 * LAYERS, (case, got["layer"])
