"""The average of the weights: what a loop over the steps gives, on any ranks; and training does not know of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from parallel import Engine, init_distributed
from parallel.engine.averages import WeightAverages, share_kept
from tests.parallel.runs import Case, make_engine, train_steps
from tests.ranks import run_ranks

DECAY, STEPS = 0.6, 6


def weights_of(engine: Engine) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in engine.module.named_parameters()}


def _followed(rank: int, world: int, case: Case, decay: float) -> dict[str, Any]:
    """Losses of steps, and the largest difference of an average to that of the obvious loop."""
    init_distributed("cpu", 60)
    engine = make_engine(rank, world, case, ema=decay)
    average, losses, worst, changed = weights_of(engine), [], 0.0, False
    for step in range(STEPS):
        losses += train_steps(engine, case, rank, world, step, step + 1)[0]
        before = weights_of(engine)
        for name, weight in before.items():
            average[name] += (1 - share_kept(decay, step + 1)) * (weight - average[name])
        with engine.averaged():
            for name, weight in weights_of(engine).items():
                worst = max(worst, float((weight - average[name]).abs().max()))
        changed = changed or any(not torch.equal(before[name], weight) for name, weight in weights_of(engine).items())
    moved = max(float((before[name] - average[name]).abs().max()) for name in before)
    engine.close()
    return {"losses": losses, "worst": worst, "changed": changed, "moved": moved}


@pytest.mark.parametrize(
    ("world", "degree", "stage"), [(1, 1, 1), (2, 2, 1), pytest.param(2, 1, 2, marks=pytest.mark.long)]
)
def test_the_average_is_that_of_a_loop_and_weights_go_on_as_without(world: int, degree: int, stage: int) -> None:
    case = Case(degree, stage, steps=STEPS)
    with_average = run_ranks(_followed, world, case, DECAY)
    for found in with_average:
        assert found["worst"] < 1e-6 < 1e-3 < found["moved"] and not found["changed"]
    assert with_average[0]["losses"] == run_ranks(_trained, world, case)[0]


def _trained(rank: int, world: int, case: Case) -> list[float]:
    init_distributed("cpu", 60)
    engine = make_engine(rank, world, case)
    with engine.averaged():  # of none: as it is
        assert not engine.averages
    losses, _ = train_steps(engine, case, rank, world, 0, STEPS)
    engine.close()
    return losses


def _refused(rank: int, world: int) -> bool:
    """Whether a refused step leaves the average alone."""
    init_distributed("cpu", 60)
    engine = make_engine(rank, world, replace(Case(1, 1), accumulation=1), ema=DECAY)
    train_steps(engine, Case(1, 1), rank, world, 0, 2)
    before = [fragment.average.clone() for fragment in engine.fragments() if fragment.average is not None]
    for parameter in engine.module.parameters():
        parameter.grad = None
    engine.backward(sum(parameter.sum() for parameter in engine.module.parameters()) * float("nan"))  # type: ignore[arg-type]
    assert not engine.step()
    after = [fragment.average for fragment in engine.fragments()]
    engine.close()
    return bool(before) and all(torch.equal(a, b) for a, b in zip(before, after, strict=True) if b is not None)


def test_a_refused_step_is_none_of_the_average() -> None:
    assert run_ranks(_refused, 1) == [True]


def test_an_error_inside_brings_the_weights_back_and_asks_no_other_rank() -> None:
    weight, gathered = torch.ones(3), []
    own = WeightAverages([weight], 0.5)
    own.tensors[0].zero_()

    def look(fails: bool) -> None:
        with own.in_place(lambda: gathered.append(weight.clone())):
            assert not weight.any()
            if fails:
                raise OSError("the storage is away")

    look(False)
    assert [float(one.sum()) for one in gathered] == [0.0, 3.0]
    with pytest.raises(OSError, match="away"):
        look(True)
    assert [float(one.sum()) for one in gathered] == [0.0, 3.0, 0.0]  # not once more: others may never come
    assert torch.equal(weight, torch.ones(3)) and not own.tensors[0].any()


def test_early_weights_are_soon_forgotten() -> None:
    assert [share_kept(0.99, update) for update in (1, 10)] == [2 / 11, 11 / 20] and share_kept(0.99, 10_000) == 0.99
