"""The engine against one process in plain torch: losses, gradients, clip norms and weights, whatever the topology.

All trainings of one world size run in one set of processes; the tests read their results.
"""

from __future__ import annotations

import functools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from parallel import Engine, MeshSpec, MoEConfig, ParallelConfig, create_mesh, init_distributed
from tests.parallel.runs import Case, Net, make_engine, train_reference, train_steps
from tests.parallel.state import assemble, read_state
from tests.ranks import run_ranks

pytestmark = pytest.mark.together
WORLDS = (1, 2, 4)
DATA = ("modality_missing", "rank_empty", "starved_expert")
ROUTERS, GATES = ("joint", "per_modality", "disjoint"), ("softmax", "laplace", "gaussian")
BETA1 = 0.9


def cases_of(world: int) -> list[Case]:
    degrees = [(ep, stage) for ep in (1, 2, 4) if world % ep == 0 for stage in (1, 2)]
    cases = [Case(ep, stage) for ep, stage in degrees]
    cases += [Case(world, stage, data=data) for stage in (1, 2) for data in DATA if world > 1]
    if world == 2:
        grid = [(router, gate) for router in ROUTERS for gate in GATES]
        cases += [Case(2, 1 + i % 2, gate=gate, router=router, steps=5) for i, (router, gate) in enumerate(grid)]
        cases += [Case(2, 1, router="per_modality", granularity="sample", steps=5)]
        cases += [Case(2, stage, accumulation=2, steps=5) for stage in (1, 2)]
        cases += [Case(1, 2, accumulation=2, data="modality_missing", steps=5)]
        cases += [Case(2, stage, recompute=True, data="rank_empty", steps=5) for stage in (1, 2)]
        cases += [
            Case(2, stage, accumulation=2, recompute=True, data=data, steps=5) for stage in (1, 2) for data in DATA
        ]
        cases += [Case(2, 1, accumulation=2, staged=False, data="modality_missing", steps=5)]
        cases += [Case(2, 2, staged=False, data="rank_empty", steps=5)]
    if world == 4:
        cases += [Case(2, 2, data=data) for data in DATA]
        cases += [Case(4, 2, router="disjoint", experts=8, accumulation=2, data="rank_empty", steps=5)]
    return list(dict.fromkeys(cases))


def _train_all(rank: int, world: int, cases: list[Case]) -> list[dict[str, object]]:
    init_distributed("cpu", 60)
    results = []
    for case in cases:
        engine = make_engine(rank, world, case)
        losses, norms = train_steps(engine, case, rank, world, 0, 1)
        first = read_state(engine)
        more_losses, more_norms = train_steps(engine, case, rank, world, 1, case.steps)
        results.append(
            {"losses": losses + more_losses, "norms": norms + more_norms, "first": first, "last": read_state(engine)}
        )
        engine.close()
    return results


@functools.cache
def trained(world: int) -> dict[Case, list[dict[str, object]]]:
    """Results by case; for each a list over ranks."""
    cases = cases_of(world)
    ranks = run_ranks(_train_all, world, cases, timeout_s=240)
    return {case: [rank[i] for rank in ranks] for i, case in enumerate(cases)}


@functools.cache
def reference(case: Case) -> dict[str, np.ndarray]:
    return train_reference(case)


@pytest.mark.parametrize(
    ("world", "case"),
    [pytest.param(world, case, marks=[pytest.mark.long] * (world > 2)) for world in WORLDS for case in cases_of(world)],
    ids=str,
)
def test_training_equals_one_process(world: int, case: Case) -> None:
    expected = reference(replace(case, expert_parallel=1, zero_stage=1))
    ranks = trained(world)[case]
    for rank in ranks:
        np.testing.assert_allclose(rank["losses"], expected["losses"], rtol=1e-5)
        np.testing.assert_allclose(rank["norms"], expected["norms"], rtol=1e-5)
    # Adam's first moment after one step is (1 - beta1) times the reduced, clipped gradient.
    clip = min(1.0, case.clip / (expected["norms"][0] + 1e-6))
    first, last = (assemble([rank[when] for rank in ranks]) for when in ("first", "last"))
    for name, moments in first.items():
        gradient = moments["exp_avg"] / (1 - BETA1)
        scale = np.abs(expected[f"gradient/{name}"]).max()
        np.testing.assert_allclose(
            gradient, clip * expected[f"gradient/{name}"], rtol=1e-4, atol=1e-5 * scale, err_msg=name
        )
    for name, state in last.items():
        np.testing.assert_allclose(state["master"], expected[f"weight/{name}"], rtol=1e-3, atol=2e-4, err_msg=name)


def test_a_starved_expert_really_gets_no_token_and_an_empty_rank_really_is_empty() -> None:
    """The premises of the cases above."""
    from tests.parallel.runs import batch_of

    torch.manual_seed(0)
    case = Case(data="starved_expert")
    net, batch = Net(case), batch_of(case, 0, 0, 0, 1)
    assert all(int(layer.count_ME[:, 1].sum()) == 0 for layer in net(batch)[1])
    assert (
        len(batch_of(Case(data="rank_empty"), 0, 0, 1, 2).x_ND)
        == 0
        < len(batch_of(Case(data="rank_empty"), 0, 0, 0, 2).x_ND)
    )
    first = batch_of(Case(data="modality_missing"), 0, 0, 0, 2)
    assert not (first.modality_N == 1).any()


def bf16_cases(world: int) -> list[Case]:
    degrees = [(ep, stage) for ep in (1, 2, 4) if world % ep == 0 for stage in (1, 2)]
    cases = [Case(ep, stage, precision="bf16", accumulation=2, steps=20) for ep, stage in degrees]
    if world == 2:
        cases += [Case(2, stage, precision="bf16", recompute=True, accumulation=2, steps=20) for stage in (1, 2)]
    return cases


def _train_bf16(rank: int, world: int, cases: list[Case]) -> list[tuple[list[float], list[float]]]:
    init_distributed("cpu", 60)
    results = []
    for case in cases:
        engine = make_engine(rank, world, case)
        assert all(p.dtype == torch.bfloat16 for p in engine.module.parameters())
        assert all(f.master.dtype == f.exp_avg.dtype == f.exp_avg_sq.dtype == torch.float32 for f in engine.fragments())
        results.append(train_steps(engine, case, rank, world, 0, case.steps))
        engine.close()
    return results


@pytest.mark.parametrize("world", [1, *(pytest.param(world, marks=pytest.mark.long) for world in (2, 4))])
def test_bf16_follows_fp32(world: int) -> None:
    expected = reference(Case(accumulation=2, steps=20))
    for losses, norms in run_ranks(_train_bf16, world, bf16_cases(world))[0]:
        np.testing.assert_allclose(losses, expected["losses"], rtol=2e-2)
        np.testing.assert_allclose(norms, expected["norms"], rtol=8e-2)


def _odd_requests(rank: int, world: int) -> dict[str, object]:
    """What an engine refuses, skips and survives."""
    init_distributed("cpu", 60)
    found: dict[str, object] = {}
    case = Case(2, 2, accumulation=2)
    engine = make_engine(rank, world, case)
    engine.backward(torch.zeros(()))
    try:
        engine.step()
    except RuntimeError as error:
        found["early step"] = str(error)
    # A loss that is a constant on every rank: zero gradients, weights move by nothing but decay.
    engine.set_lr_factor(0.0)
    before = {f.name: f.master.clone() for f in engine.fragments()}
    engine.backward(torch.zeros(()))
    found["constant loss"] = engine.step(), engine.grad_norm(), engine.optimizer_step
    # A gradient that is not finite on one rank is refused on all, and changes nothing.
    engine.set_lr_factor(1.0)
    for _ in range(2):
        loss = sum(p.float().sum() for p in engine.module.parameters()) * (float("nan") if rank == 0 else 1.0)
        engine.backward(loss)
    found["not finite"] = engine.step(), engine.grad_norm(), engine.optimizer_step
    found["unchanged"] = all(torch.equal(before[f.name], f.master) for f in engine.fragments())
    engine.close()
    # Frozen experts under expert parallelism: they are neither optimised nor overwritten by another rank's.
    mesh = create_mesh(ParallelConfig(expert_parallel=2), case.moe)
    net = Net(case, mesh.dispatcher())
    for layer in net.layers:
        layer.experts.requires_grad_(False)
    expected = [layer.experts.w1.clone() for layer in net.layers]
    engine = Engine(net, mesh, lr=1e-2)
    train_steps(engine, replace(case, accumulation=1), rank, world, 0, 2)
    found["frozen kept"] = all(torch.equal(a, layer.experts.w1) for a, layer in zip(expected, net.layers, strict=True))
    found["frozen names"] = [name for name in engine.logical_parameters() if ".experts." in name]
    engine.close()
    found["scalar"] = _error(lambda: Engine(_Scalar(), mesh, lr=1.0))
    found["other mesh"] = _error(lambda: Engine(Net(case), mesh, lr=1.0))
    found["mesh"] = _error(lambda: create_mesh(ParallelConfig(expert_parallel=2), MoEConfig(experts=3, top_k=1)))
    return found


class _Scalar(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(1.0))


def _error(call: functools.partial[object]) -> str:
    try:
        call()
    except ValueError as error:
        return str(error)
    return ""


def test_odd_requests() -> None:
    for found in run_ranks(_odd_requests, 2):
        assert "after 1 of 2 micro-batches: call backward() 2 times" in str(found["early step"])
        assert found["constant loss"] == (True, 0.0, 1)
        applied, norm, steps = found["not finite"]  # type: ignore[misc]
        assert not applied and not np.isfinite(norm) and steps == 1
        assert found["unchanged"] and found["frozen kept"] and found["frozen names"] == []
        assert "Parameter 'gain' has no dimension" in str(found["scalar"])
        assert "built for 1 expert-parallel ranks, but the mesh has 2" in str(found["other mesh"])
        assert "moe.experts=3 cannot be spread evenly" in str(found["mesh"])


ALONE = """
import sys
import parallel, trainer
assert not any(name in sys.modules for name in ("deepspeed", "torch")), "importing the package is to be cheap"
import torch
import parallel.engine
assert "deepspeed" not in sys.modules
import logging
handler = logging.NullHandler()
logging.getLogger("DeepSpeed").addHandler(handler)
from parallel import *
init_distributed("cpu")
mesh = create_mesh(ParallelConfig(), MoEConfig(experts=4, top_k=2))
layer = MoELayer(8, MoEConfig(experts=4, top_k=2), 1, dispatcher=mesh.dispatcher())
engine = Engine(layer, mesh, lr=1e-3)
y, stats = engine(torch.randn(5, 8), torch.zeros(5, dtype=torch.int64))
engine.backward(y.square().mean())
assert engine.step() and engine.grad_norm() > 0
assert handler.level == logging.NOTSET, "the handlers of others are turned down"
"""


def test_one_process_without_a_launcher_is_quiet_and_compiles_nothing(tmp_path: Path) -> None:
    """No RANK, no MASTER_ADDR, nothing on stdout or stderr, no extension directory."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions")}
    script = ALONE.replace("import parallel, trainer", "import parallel")
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "" and done.stderr == ""
    assert not (tmp_path / "extensions").exists()


def test_cases_cover_every_legal_combination() -> None:
    for world in WORLDS:
        for expert_parallel in (1, 2, 4):
            if world % expert_parallel == 0:
                MeshSpec(world, expert_parallel, Case().experts, Case().top_k).validate()
                assert {c.zero_stage for c in cases_of(world) if c.expert_parallel == expert_parallel} == {1, 2}
