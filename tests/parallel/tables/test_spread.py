"""A table that is spread learns what plain torch learns of a whole one, on any number of ranks."""

from __future__ import annotations

import functools
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from parallel import (
    CodeTable,
    Dispatcher,
    Engine,
    LocalDispatcher,
    MoEConfig,
    ParallelConfig,
    create_mesh,
    init_distributed,
)
from parallel.moe.initial import check_filled, undrawn
from parallel.tables.adamw import RowAdamW
from parallel.tables.updates import RowUpdates
from tests.gpu_branch import gpu_branch
from tests.parallel.state import assemble, read_state, write_state
from tests.parallel.tables.runs import Case, Net, make_engine, train_plain, train_steps
from tests.ranks import run_ranks

pytestmark = pytest.mark.together
FOUR = pytest.mark.long  # four ranks on two cores take long to start; two show the same kinds of exchange

STEPS, SAVED_AT = 8, 5
TABLES = ("tables.drugs.weight", "tables.wards.weight")
ROLES = ("master", "exp_avg", "exp_avg_sq")


def cases_of(world: int) -> list[Case]:
    degrees = [degree for degree in (1, 2, 4) if world % degree == 0]
    cases = [Case(d, stage, accumulation=a) for d in degrees for stage in (1, 2) for a in (1, 2)]
    more = [Case(data="rank_empty"), Case(data="none"), Case(clip=0), Case(spread_above=1000), Case(frozen=True)]
    return cases + more + [Case(rows=3, data="rank_empty")]


def _train(rank: int, world: int, cases: list[Case]) -> list[Any]:
    init_distributed("cpu", 60)
    found = []
    for case in cases:
        engine = make_engine(rank, world, case)
        fresh = read_state(engine)
        losses, norms = train_steps(engine, case, rank, world, 0, STEPS)
        tables = engine.module.tables.values()
        held = [sum(t.numel() for t in (table.weight, *_rows(table))) for table in tables]
        found.append({"losses": losses, "norms": norms, "fresh": fresh, "state": read_state(engine), "held": held})
        engine.close()
    return found


def _rows(table: CodeTable) -> list[torch.Tensor]:
    if table.updates is None:
        return []
    return [table.updates.optimizer.exp_avg_LD, table.updates.optimizer.exp_avg_sq_LD]


@functools.cache
def trained(world: int) -> dict[Case, list[dict[str, Any]]]:
    ranks = run_ranks(_train, world, cases_of(world))
    return {case: [rank[i] for rank in ranks] for i, case in enumerate(cases_of(world))}


@functools.cache
def plain(accumulation: int, data: str, clip: float, frozen: bool, rows: int) -> dict[str, np.ndarray]:
    return train_plain(Case(accumulation=accumulation, data=data, clip=clip, frozen=frozen, rows=rows), STEPS)


@pytest.mark.parametrize(
    ("world", "case"),
    [pytest.param(w, c, marks=FOUR if w == 4 else ()) for w in (1, 2, 4) for c in cases_of(w)],
    ids=str,
)
def test_losses_norms_weights_and_moments_are_those_of_plain_torch(world: int, case: Case) -> None:
    expected = plain(case.accumulation, case.data, case.clip, case.frozen, case.rows)
    ranks = trained(world)[case]
    for rank in ranks:
        np.testing.assert_allclose(rank["losses"], expected["losses"], rtol=0, atol=2e-6)
        np.testing.assert_allclose(rank["norms"], expected["norms"], rtol=2e-6)
    state = assemble([rank["state"] for rank in ranks])
    assert {f"{name}|{role}" for name in state for role in ROLES} == set(expected) - {"losses", "norms"}
    for name, parts in state.items():
        for role in ROLES:
            np.testing.assert_allclose(parts[role], expected[f"{name}|{role}"], rtol=0, atol=2e-6, err_msg=name)
    assert case.frozen or (state[TABLES[0]]["master"][-1] != Net(case).tables["drugs"].weight[-1].tolist()).all(), (
        "a row that no step has used decays nevertheless"
    )


@pytest.mark.parametrize("world", [1, 2, pytest.param(4, marks=FOUR)])
def test_initial_rows_are_the_same_on_any_number_of_ranks(world: int) -> None:
    ranks = trained(world)[Case()]
    fresh = assemble([rank["fresh"] for rank in ranks])
    whole = Net(Case(spread_above=1000))
    for name in TABLES:
        np.testing.assert_array_equal(fresh[name]["master"], whole.get_parameter(name).detach().numpy())
        assert not fresh[name]["exp_avg"].any() and not fresh[name]["exp_avg_sq"].any()
    # 41 rows of 8 numbers, with two moments each: nobody holds another's.
    held = [rank["held"][0] for rank in ranks]
    assert held == {1: [984], 2: [480, 504], 4: [240, 240, 240, 264]}[world]


def test_equal_layouts_give_equal_bits() -> None:
    case = Case(2, accumulation=2)
    again = run_ranks(_train, 2, [case])
    for first, second in zip(trained(2)[case], again, strict=True):
        assert (first["losses"], first["norms"]) == (second[0]["losses"], second[0]["norms"])
        for a, b in zip(first["state"], second[0]["state"], strict=True):
            for role in ROLES:
                np.testing.assert_array_equal(a[role], b[role])


def _halves(rank: int, world: int, case: Case) -> Any:
    """The run as it is, with its state read half-way."""
    init_distributed("cpu", 60)
    engine = make_engine(rank, world, case)
    train_steps(engine, case, rank, world, 0, SAVED_AT)
    state = read_state(engine)
    losses, norms = train_steps(engine, case, rank, world, SAVED_AT, STEPS)
    return {"state": state, "losses": losses, "norms": norms, "end": read_state(engine)}


def _resume(rank: int, world: int, cases: list[Case], state: Any) -> list[Any]:
    init_distributed("cpu", 60)
    found = []
    for case in cases:
        with undrawn():
            engine = make_engine(rank, world, case, seed=99)
        with pytest.raises(RuntimeError, match="not set"):
            check_filled(engine.module)
        write_state(engine, state, SAVED_AT)
        check_filled(engine.module)
        losses, norms = train_steps(engine, case, rank, world, SAVED_AT, STEPS)
        found.append({"losses": losses, "norms": norms, "end": read_state(engine), "step": engine.optimizer_step})
        engine.close()
    return found


@functools.cache
def origin(precision: str = "fp32") -> list[dict[str, Any]]:
    return run_ranks(_halves, 2, Case(2, precision=precision))


@pytest.mark.parametrize("world", [1, 2, pytest.param(4, marks=FOUR)])
def test_a_state_goes_on_at_any_topology_and_spread_or_not(world: int) -> None:
    degrees = [degree for degree in (1, 2, 4) if world % degree == 0]
    # Where tables are whole: a state does not know how they were spread.
    cases = [Case(d, stage) for d in degrees for stage in (1, 2)] + [Case(spread_above=1000)]
    state = assemble([rank["state"] for rank in origin()])
    ranks = run_ranks(_resume, world, cases, state)
    for i in range(len(cases)):
        end, expected = assemble([rank[i]["end"] for rank in ranks]), assemble([rank["end"] for rank in origin()])
        for rank in ranks:
            np.testing.assert_allclose(rank[i]["losses"], origin()[0]["losses"], rtol=0, atol=2e-6)
            np.testing.assert_allclose(rank[i]["norms"], origin()[0]["norms"], rtol=2e-6)
            assert rank[i]["step"] == STEPS
        for name in TABLES:
            for role in ROLES:
                np.testing.assert_allclose(end[name][role], expected[name][role], rtol=0, atol=2e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_topology_goes_on_with_the_same_bits(precision: str) -> None:
    start = origin(precision)
    ranks = run_ranks(_resume, 2, [Case(2, precision=precision)], assemble([rank["state"] for rank in start]))
    for before, after in zip(start, ranks, strict=True):
        assert (before["losses"], before["norms"]) == (after[0]["losses"], after[0]["norms"])
        for a, b in zip(before["end"], after[0]["end"], strict=True):
            for role in ROLES:
                np.testing.assert_array_equal(a[role], b[role])


def test_bf16_learns_the_same_on_two_ranks_as_on_one_and_keeps_fp32_rows() -> None:
    case = Case(precision="bf16")
    (one,), two = run_ranks(_train, 1, [case]), run_ranks(_train, 2, [case])
    np.testing.assert_allclose(two[0][0]["losses"], one[0]["losses"], rtol=2e-2)
    np.testing.assert_allclose(one[0]["losses"], plain(1, "plain", 0.3, False, 41)["losses"], rtol=5e-2)
    rows = assemble([rank[0]["state"] for rank in two])[TABLES[0]]["master"]
    assert (torch.from_numpy(rows).bfloat16().float().numpy() != rows).any()


def _with_and_without(rank: int, world: int, cases: list[Case]) -> list[Any]:
    """State and what follows, without and with a refused step, and with a read by an evaluation, after the third."""
    init_distributed("cpu", 60)
    found = []
    for case in cases:
        ways = []
        for disturbed in ("", "refused", "evaluation"):
            engine = make_engine(rank, world, case)
            train_steps(engine, case, rank, world, 0, 3)
            ids_O = torch.arange(case.rows)
            if disturbed == "refused":
                for _ in range(case.accumulation):
                    logits, _ = engine(ids_O)
                    engine.backward(logits.float().sum() * (float("nan") if rank == 1 else 1.0))
                assert not engine.step() and engine.grad_norm() == float("inf")
            if disturbed == "evaluation":
                engine.eval()
                with torch.no_grad():
                    engine(ids_O)
                engine.train()
            rest = train_steps(engine, case, rank, world, 3, 6)
            ways.append((rest, engine.optimizer_step, read_state(engine)))
            engine.close()
        found.append(ways)
    return found


@pytest.mark.long
def test_a_refused_step_and_an_evaluation_change_no_bit_of_what_follows() -> None:
    cases = [Case(2, stage, p, a) for stage in (1, 2) for p in ("fp32", "bf16") for a in (1, 2)]
    for rank in run_ranks(_with_and_without, 2, cases):
        for (rest, step, state), *others in rank:
            assert step == 6
            for other in others:
                assert other[:2] == (rest, step)
                for a, b in zip(state, other[2], strict=True):
                    for role in ROLES:
                        np.testing.assert_array_equal(a[role], b[role])


class Lonely(nn.Module):
    """Of a rank without codes, nothing that it returns hangs on the table."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        super().__init__()
        self.table = CodeTable(10, 4, (0, "lonely"), dispatcher, spread_above=0)
        self.head = nn.Linear(4, 1)

    def forward(self, ids_O: torch.Tensor) -> torch.Tensor:
        row_UD = self.table(self.table.lay_out(ids_O))
        logits: torch.Tensor = self.head(row_UD if len(ids_O) else torch.ones(1, 4))
        return logits


def _lonely(rank: int, world: int) -> list[float]:
    init_distributed("cpu", 20)
    mesh = create_mesh(ParallelConfig(workers=world, timeout_s=20), MoEConfig(experts=2, top_k=1))
    model = Lonely(mesh.dispatcher())
    engine = Engine(model, mesh, lr=0.1, weight_decay=0.0)
    before = model.table.weight.detach().clone()
    # Rank 0 looks up rows of both ranks.
    engine.backward(engine(torch.tensor([1, 8]) if rank == 0 else torch.zeros(0, dtype=torch.int64)).sum())
    assert engine.step()
    moved_L = (engine.fragments()[-1].master.view(-1, 4) - before).abs().amax(1)
    return [round(float(value), 5) for value in moved_L]


def test_a_rank_that_looks_nothing_up_walks_backward_through_the_table() -> None:
    """Others wait for it there: it has rows of theirs."""
    first, second = run_ranks(_lonely, 2)
    assert first == [0, 0.1, 0, 0, 0] and second == [0, 0, 0, 0.1, 0]


@pytest.mark.parametrize("passes", [1, 3])
def test_a_gpu_that_does_not_ask_how_many_rows_there_are_updates_them_alike(passes: int) -> None:
    ways = []
    for where in (nullcontext, gpu_branch):
        rows = RowUpdates(RowAdamW(torch.ones(6, 2), (0.9, 0.999), 1e-8, 0.1), 2)
        with where():
            for step in range(3):
                for number in range(passes):
                    # Rows that other ranks ask for, too, and the last one alone.
                    found_SD = rows.read(torch.tensor([1, 4, 1, 0, 4, 4]))
                    (found_SD * torch.arange(12.0).view(6, 2) * (number + step + 1)).sum().backward()
                norm = float(rows.gather())
                rows.update(0.1, 0.5)
        ways.append((norm, rows.optimizer.read(torch.arange(6))))
    assert ways[0][0] == pytest.approx(ways[1][0], rel=1e-6)
    assert torch.equal(ways[0][1], ways[1][1])
    # A mean over two ranks of the sums 4 + 0, 5 + 1, 6, 7, 2 + 8 + 10 and 3 + 9 + 11, three and in the end five times.
    total = torch.tensor([[6.0, 7.0], [4.0, 6.0], [20.0, 23.0]]) * sum(n + 3 for n in range(passes)) / 2
    assert ways[0][0] == pytest.approx(float(total.norm()), rel=1e-6)


def _wrong(rank: int, world: int) -> None:
    init_distributed("cpu", 60)
    mesh = create_mesh(ParallelConfig(workers=world), MoEConfig(experts=4, top_k=2))
    with pytest.raises(ValueError, match=r"Table 'tables.drugs.weight' was built for 1 ranks, but the mesh has 2"):
        Engine(Net(Case(), LocalDispatcher()), mesh, lr=0.1)
    with pytest.raises(ValueError, match="do not go with a table that is spread"):
        Engine(Net(Case(), mesh.dispatcher()), mesh, lr=0.1, betas=(0.9, 0.8))
    with pytest.raises(ValueError, match=r"optim\.ema=0\.9 does not go with tables that are spread over ranks \(table"):
        Engine(Net(Case(), mesh.dispatcher()), mesh, lr=0.1, ema=0.9)
    Engine(Net(Case(spread_above=1000), mesh.dispatcher()), mesh, lr=0.1, ema=0.9).close()
    # A whole table minds neither.
    Engine(Net(Case(spread_above=1000), LocalDispatcher()), mesh, lr=0.1, betas=(0.9, 0.8)).close()


def test_a_table_of_other_ranks_and_betas_that_do_not_go_are_refused() -> None:
    run_ranks(_wrong, 2)


def test_without_an_engine_a_spread_table_is_a_parameter_like_any_other() -> None:
    net, whole = Net(Case()), Net(Case(spread_above=1000))
    for model in (net, whole):
        model(torch.tensor([3, 1, 3]))[0].square().sum().backward()
    for name in TABLES:
        assert torch.equal(net.get_parameter(name).grad, whole.get_parameter(name).grad)  # type: ignore[arg-type]
