"""How gradients cross ranks: when, how much, in which precision, with how much memory, and with which bits.

What happens is recorded by wrappers around the collectives, so a test says what went over the wire and when.
"""

from __future__ import annotations

import functools
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.checkpoint import checkpoint

from parallel import Engine, MoEConfig, ParallelConfig, create_mesh, init_distributed
from parallel.engine.reducer import IN_FLIGHT
from tests.parallel.runs import Case, make_engine, train_steps
from tests.parallel.state import assemble, read_state, write_state
from tests.ranks import RankError, run_ranks

pytestmark = pytest.mark.together

COLLECTIVES = ("reduce_scatter_tensor", "all_reduce", "reduce", "all_gather_into_tensor", "all_to_all_single")
Event = tuple[str, str, int, int]  # what, type, elements, ranks


def record(events: list[Event], before: Callable[[], None] = lambda: None) -> None:
    """Note every collective of this process from now on: its first big tensor, and between how many ranks."""

    def wrap(name: str) -> None:
        original = getattr(dist, name)

        @functools.wraps(original)
        def noted(*args: Any, **kwargs: Any) -> Any:
            before()
            sent = args[1] if name == "reduce_scatter_tensor" else args[0]
            events.append((name, str(sent.dtype), sent.numel(), dist.get_world_size(kwargs.get("group"))))
            return original(*args, **kwargs)

        setattr(dist, name, noted)

    for name in COLLECTIVES:
        wrap(name)


def on_arrival(layer: nn.Module, call: Callable[[], None]) -> None:
    """Call when the gradient of the layer's input is there: its backward pass has ended."""

    def watch(module: nn.Module, args: tuple[Any, ...]) -> None:
        recomputed = torch._C._current_graph_task_id() != -1
        if args[0].requires_grad and not recomputed:
            args[0].register_hook(lambda gradient: call())

    layer.register_forward_pre_hook(watch)


# --- overlap ----------------------------------------------------------------------------------------------------------


def _one_step(rank: int, world: int, cases: list[Case]) -> list[dict[str, Any]]:
    """Events of the first step of each case."""
    init_distributed("cpu", 60)
    found = []
    events: list[Event] = []
    record(events)
    for case in cases:
        engine = make_engine(rank, world, case)
        on_arrival(engine.module.layers[0], lambda: events.append(("first layer done", "", 0, 0)))
        experts = sum(p.numel() for n, p in engine.module.named_parameters() if ".experts." in n)
        dense = sum(p.numel() for p in engine.module.parameters()) - experts
        events.clear()
        train_steps(engine, case, rank, world, 0, 1)
        found.append({"events": list(events), "dense": dense, "experts": experts})
        engine.close()
    return found


TWELVE = Case(2, 1, layers=12, experts=8)
CASES = [
    TWELVE,
    replace(TWELVE, zero_stage=2),
    replace(TWELVE, recompute=True),
    replace(TWELVE, precision="bf16", recompute=True, zero_stage=2),
    replace(TWELVE, precision="bf16", data="rank_empty"),
    replace(TWELVE, data="modality_missing", zero_stage=2),
]
ACCUMULATED = [
    replace(TWELVE, layers=2, accumulation=2, zero_stage=stage, precision=precision)
    for stage in (1, 2)
    for precision in ("fp32", "bf16")
]


@functools.cache
def steps() -> dict[Case, list[dict[str, Any]]]:
    cases = CASES + ACCUMULATED
    ranks = run_ranks(_one_step, 4, cases)
    return {case: [rank[i] for rank in ranks] for i, case in enumerate(cases)}


def reductions(events: list[Event]) -> list[Event]:
    return [event for event in events if event[0] == "reduce_scatter_tensor"]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_are_sent_before_the_first_layer_is_done(case: Case) -> None:
    for rank, found in enumerate(steps()[case]):
        events = found["events"]
        done = [i for i, event in enumerate(events) if event[0] == "first layer done"]
        if case.data == "rank_empty" and rank:
            assert not done, "no encoder was called: the next test compares these ranks with the first one"
            continue
        early = sum(event[2] for event in reductions(events[: done[0]]))
        share = early / sum(event[2] for event in reductions(events))
        assert share >= 0.85, f"rank {rank} sent {share:.0%} before its first layer was done"


@pytest.mark.parametrize("case", CASES + ACCUMULATED, ids=str)
def test_what_is_sent_is_one_reduce_scatter_in_fp32(case: Case) -> None:
    """Dense gradients over all 4 ranks and experts over their 2 copies, each once, and one number for the norm."""
    times = case.accumulation if case.zero_stage == 2 else 1
    for found in steps()[case]:
        events = found["events"]
        assert {event[1] for event in reductions(events)} == {"torch.float32"}
        for ranks, elements in ((4, found["dense"]), (2, found["experts"])):
            sent = [event[2] for event in reductions(events) if event[3] == ranks]
            # Padding to equal even slices: at most 2 elements a rank and optimizer group, 2 groups a stage.
            assert times * elements <= sum(sent) <= times * (elements + 4 * ranks * len(sent) / times)
            assert len(sent) == times * (case.layers + (2 if ranks == 4 else 0)), "stages with such parameters"
        # What else is added up over ranks are routing statistics, the reported loss, and the norm.
        sums = [event for event in events if event[0] in ("all_reduce", "reduce")]
        assert [event[1:] for event in sums if event[1] == "torch.float64"] == [("torch.float64", 1, 4)]
        assert len(sums) == case.accumulation + 1 + 1


@pytest.mark.parametrize("case", CASES + ACCUMULATED, ids=str)
def test_every_rank_makes_the_same_calls_in_the_same_order(case: Case) -> None:
    """Whatever its records: also between reductions and the exchanges of the layers."""
    sequences = [[(e[0], e[3]) for e in found["events"] if e[0] in COLLECTIVES] for found in steps()[case]]
    assert all(sequence == sequences[0] for sequence in sequences[1:])


# --- bits -------------------------------------------------------------------------------------------------------------


def _train_late(rank: int, world: int, cases: list[Case], late: int, where: str) -> list[dict[str, Any]]:
    """Two steps in which one rank is late: before its collectives, or inside of its backward pass."""
    init_distributed("cpu", 60)

    def wait() -> None:
        if rank == late:
            time.sleep(0.003)

    if where == "collective":
        record([], wait)
    found = []
    for case in cases:
        engine = make_engine(rank, world, case)
        if where == "hook":
            for layer in engine.module.layers:
                on_arrival(layer, wait)
        losses, norms = train_steps(engine, case, rank, world, 0, 2)
        found.append({"losses": losses, "norms": norms, "state": read_state(engine)})
        engine.close()
    return found


LATE_CASES = [
    Case(2, 2, layers=4, accumulation=2, recompute=True, precision="bf16"),
    Case(1, 1, layers=4, data="rank_empty"),
]


@functools.cache
def trained_late(late: int, where: str) -> list[list[dict[str, Any]]]:
    return run_ranks(_train_late, 4, LATE_CASES, late, where)


@pytest.mark.parametrize(("late", "where"), [(0, "collective"), (3, "collective"), (1, "hook")])
def test_bits_do_not_depend_on_who_is_late(late: int, where: str) -> None:
    for on_time, delayed in zip(trained_late(-1, ""), trained_late(late, where), strict=True):
        for ours, theirs in zip(on_time, delayed, strict=True):
            assert ours["losses"] == theirs["losses"] and ours["norms"] == theirs["norms"]
            for a, b in zip(ours["state"], theirs["state"], strict=True):
                assert a["name"] == b["name"] and a["start"] == b["start"]
                for part in ("master", "exp_avg", "exp_avg_sq"):
                    np.testing.assert_array_equal(a[part], b[part])


# --- memory -----------------------------------------------------------------------------------------------------------


def _live_gradients(rank: int, world: int, case: Case) -> dict[str, float]:
    """Most bytes of gradients at any time of a step: of parameters, in buffers of collectives, and owned parts."""
    init_distributed("cpu", 60)
    engine = make_engine(rank, world, case)
    alive: dict[int, int] = {}
    most = [0]

    def look() -> None:
        whole = sum(p.grad.nbytes for p in engine.module.parameters() if p.grad is not None)
        most[0] = max(most[0], whole + sum(alive.values()))

    def track(tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if id(storage) not in alive:
            alive[id(storage)] = storage.nbytes()
            weakref.finalize(storage, alive.pop, id(storage), None)

    original = dist.reduce_scatter_tensor

    def scatter(output: torch.Tensor, source: torch.Tensor, **kwargs: Any) -> Any:
        track(output)
        track(source)
        look()
        return original(output, source, **kwargs)

    dist.reduce_scatter_tensor = scatter
    for parameter in engine.module.parameters():
        parameter.register_post_accumulate_grad_hook(lambda parameter: look())
    train_steps(engine, case, rank, world, 0, 1)
    layer = engine.module.layers[0]
    elements = [sum(p.numel() for p in module.parameters()) for module in (layer, engine.module)]
    size = next(layer.parameters()).element_size()
    return {"most": most[0], "layer": elements[0], "model": elements[1], "size": size}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [1, 2])
def test_gradients_of_a_block_are_held_and_what_is_under_way_and_what_is_owned(precision: str, stage: int) -> None:
    case = Case(1, stage, layers=12, experts=16, precision=precision)
    for found in run_ranks(_live_gradients, 2, case):
        block = found["layer"] * (found["size"] + IN_FLIGHT * 4)
        owned = found["model"] / 2 * 4
        assert found["most"] <= 1.1 * (block + owned), "a block, its buffer and the one before, the part of this rank"
        assert found["most"] >= owned, "it is seen"
        assert found["most"] < 0.75 * found["model"] * (found["size"] + 4), "all gradients at once would be more"


# --- what is refused --------------------------------------------------------------------------------------------------


class Misused(nn.Module):
    """Two stages of one layer each; the second one's weight is used before both."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def stages(self) -> list[list[nn.Module]]:
        return [[self.a], [self.b]]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x @ self.b.weight))


def test_a_parameter_that_is_used_outside_of_its_stage_is_named() -> None:
    with pytest.raises(RankError, match=r"Parameter 'b.weight' got a gradient after its stage was complete"):
        run_ranks(_misuse, 2)


def _misuse(rank: int, world: int) -> None:
    init_distributed("cpu", 60)
    engine = Engine(Misused(), create_mesh(ParallelConfig(workers=world), MoEConfig(experts=2, top_k=1)), lr=0.1)
    engine.backward(engine(torch.ones(3, 4)).sum())


class Together(nn.Module):
    """Two stages that are recomputed by one call."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.a, self.b, self.head = (nn.Linear(4, 4) for _ in range(4))

    def stages(self) -> list[list[nn.Module]]:
        return [[self.a], [self.b], [self.head]]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inside = checkpoint(lambda x: self.b(self.a(x).relu()).relu(), self.embed(x), use_reentrant=False)
        return self.head(inside)


def _recompute_together(rank: int, world: int) -> int:
    """Stages that were sent when the gradient of the second one's input had arrived."""
    init_distributed("cpu", 60)
    engine = Engine(Together(), create_mesh(ParallelConfig(workers=world), MoEConfig(experts=2, top_k=1)), lr=0.1)
    events: list[Event] = []
    record(events)
    sent: list[int] = []
    on_arrival(engine.module.b, lambda: sent.append(len(reductions(events))))
    engine.backward(engine(torch.ones(3, 4)).sum())
    assert engine.step()
    return sent[0]


def test_stages_that_are_recomputed_together_are_sent_one_by_one() -> None:
    """What is computed again is another graph, whose inputs never get a gradient."""
    assert run_ranks(_recompute_together, 2)[0] == 2, "the head, and the second stage itself"


# --- checkpoints of another grouping ----------------------------------------------------------------------------------


def _go_on(rank: int, world: int, case: Case, state: Any, first: int, last: int) -> dict[str, Any]:
    init_distributed("cpu", 60)
    engine = make_engine(rank, world, case, seed=3 if state is None else 99)
    if state is not None:
        write_state(engine, state, first)
    losses, norms = train_steps(engine, case, rank, world, first, last)
    return {"losses": losses, "norms": norms, "state": read_state(engine)}


@pytest.mark.parametrize("staged_first", [True, False])
def test_state_goes_from_one_grouping_to_another(staged_first: bool) -> None:
    """A model without stages has the groups of earlier versions: all dense and all expert parameters."""
    case = Case(2, 1, layers=3, router="per_modality", staged=staged_first)
    whole = run_ranks(_go_on, 2, case, None, 0, 6)
    half = run_ranks(_go_on, 2, case, None, 0, 3)
    other = replace(case, staged=not staged_first, zero_stage=2)
    rest = run_ranks(_go_on, 4, other, assemble([rank["state"] for rank in half]), 3, 6)
    np.testing.assert_allclose(half[0]["losses"] + rest[0]["losses"], whole[0]["losses"], rtol=0, atol=1e-6)
    before, after = (assemble([rank["state"] for rank in ranks]) for ranks in (whole, rest))
    for name, parts in before.items():
        np.testing.assert_allclose(after[name]["master"], parts["master"], rtol=1e-4, atol=1e-6, err_msg=name)


def test_the_losses_of_both_groupings_are_the_same() -> None:
    case = Case(2, 2, layers=3)
    one, other = (run_ranks(_go_on, 2, replace(case, staged=staged), None, 0, 4)[0] for staged in (True, False))
    np.testing.assert_allclose(one["losses"], other["losses"], rtol=1e-6)
