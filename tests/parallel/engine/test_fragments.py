"""The optimizer's state leaves one topology and enters another, and training goes on as if nothing had happened."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from parallel import init_distributed
from tests.parallel.runs import Case, Net, make_engine, train_steps
from tests.parallel.state import assemble, read_state, write_state
from tests.ranks import run_ranks

pytestmark = pytest.mark.together

State = dict[str, dict[str, np.ndarray]]
SAVED_AT, ALL_STEPS = 5, 10
TOPOLOGIES = [(w, ep, stage) for w in (1, 2, 4) for ep in (1, 2, 4) if w % ep == 0 for stage in (1, 2)]


def _start(rank: int, world: int, case: Case) -> dict[str, Any]:
    """Train, read the state half-way, and go on: the uninterrupted run."""
    init_distributed("cpu", 60)
    engine = make_engine(rank, world, case)
    fresh = read_state(engine)
    assert engine.optimizer_step == 0
    train_steps(engine, case, rank, world, 0, SAVED_AT)
    state, step = read_state(engine), engine.optimizer_step
    losses, norms = train_steps(engine, case, rank, world, SAVED_AT, ALL_STEPS)
    shapes = engine.logical_parameters()
    return {"fresh": fresh, "state": state, "step": step, "losses": losses, "norms": norms, "shapes": shapes}


def _resume(rank: int, world: int, cases: list[Case], state: State, step: int, last: int) -> list[dict[str, Any]]:
    """Continue from a state in engines that began with other weights."""
    init_distributed("cpu", 60)
    results = []
    for case in cases:
        engine = make_engine(rank, world, case, seed=99)
        write_state(engine, state, step)
        restored = read_state(engine)
        losses, norms = train_steps(engine, case, rank, world, step, last)
        results.append(
            {
                "restored": restored,
                "losses": losses,
                "norms": norms,
                "step": engine.optimizer_step,
                "state": read_state(engine),
            }
        )
        engine.close()
    return results


@functools.cache
def origin(world: int = 2, expert_parallel: int = 2, precision: str = "fp32") -> list[dict[str, Any]]:
    return run_ranks(_start, world, Case(expert_parallel, 1, router="per_modality", precision=precision))


@functools.cache
def resumed(world: int) -> dict[tuple[int, int, int], list[dict[str, Any]]]:
    wanted = [t for t in TOPOLOGIES if t[0] == world]
    cases = [Case(ep, stage, router="per_modality") for _, ep, stage in wanted]
    state = assemble([rank["state"] for rank in origin()])
    ranks = run_ranks(_resume, world, cases, state, SAVED_AT, ALL_STEPS)
    return {topology: [rank[i] for rank in ranks] for i, topology in enumerate(wanted)}


def test_state_before_the_first_step_is_the_initial_weights_and_zero_moments() -> None:
    fresh = assemble([rank["fresh"] for rank in origin()])
    net = Net(Case(router="per_modality"))
    assert set(fresh) == {name for name, _ in net.named_parameters()}
    for name, parameter in net.named_parameters():
        np.testing.assert_array_equal(fresh[name]["master"], parameter.detach().numpy(), err_msg=name)
        assert not fresh[name]["exp_avg"].any() and not fresh[name]["exp_avg_sq"].any()
    shapes = {name: tuple(parameter.shape) for name, parameter in net.named_parameters()}
    assert origin()[0]["shapes"] == shapes


@pytest.mark.parametrize(("world", "expert_parallel", "stage"), TOPOLOGIES)
def test_resuming_at_another_topology_continues_the_run(world: int, expert_parallel: int, stage: int) -> None:
    ranks = resumed(world)[world, expert_parallel, stage]
    saved = assemble([rank["state"] for rank in origin()])
    restored = assemble([rank["restored"] for rank in ranks])
    for name in saved:
        for part, values in saved[name].items():
            np.testing.assert_array_equal(restored[name][part], values, err_msg=f"{name} {part}")
    for rank in ranks:
        np.testing.assert_allclose(rank["losses"], origin()[0]["losses"], rtol=0, atol=1e-6)
        np.testing.assert_allclose(rank["norms"], origin()[0]["norms"], rtol=1e-5)
        assert rank["step"] == ALL_STEPS


def test_the_same_topology_continues_with_the_same_bits() -> None:
    ranks = resumed(2)[2, 2, 1]
    assert ranks[0]["losses"] == origin()[0]["losses"]
    assert ranks[0]["norms"] == origin()[0]["norms"]


def test_four_to_two_to_four_ranks() -> None:
    case = Case(4, 1, router="per_modality")
    start = origin(4, 4)
    middle = SAVED_AT + 2
    state = assemble([rank["state"] for rank in start])
    on_two = run_ranks(_resume, 2, [replace(case, expert_parallel=2, zero_stage=2)], state, SAVED_AT, middle)
    state = assemble([rank[0]["state"] for rank in on_two])
    on_four = run_ranks(_resume, 4, [case], state, middle, ALL_STEPS)
    losses = on_two[0][0]["losses"] + on_four[0][0]["losses"]
    np.testing.assert_allclose(losses, start[0]["losses"], rtol=0, atol=1e-6)


def test_bf16_resumes_from_fp32_masters_with_the_same_bits() -> None:
    start = origin(2, 2, "bf16")
    state = assemble([rank["state"] for rank in start])
    case = Case(2, 1, router="per_modality", precision="bf16")
    ranks = run_ranks(_resume, 2, [case], state, SAVED_AT, ALL_STEPS)
    assert ranks[0][0]["losses"] == start[0]["losses"]
    rounded = {name: torch.from_numpy(parts["master"]).bfloat16().float().numpy() for name, parts in state.items()}
    assert any((rounded[name] != state[name]["master"]).any() for name in state), "masters carry more than bf16"
