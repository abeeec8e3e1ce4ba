"""The layer as a GPU runs it, on a CPU: its branches forced, its operations watched, its numbers against fp32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from parallel.config import MoEConfig
from parallel.moe.dispatch import AllToAllDispatcher, LocalDispatcher
from parallel.moe.experts import Experts, reference_experts
from parallel.moe.layer import MoELayer, decision_units
from parallel.moe.rows.places import RowGroups
from tests.gpu_branch import Watch, gpu_branch
from tests.ranks import run_ranks

MODALITIES, SAMPLES, BINS, DIM = 4, 6, 3, 32
CASES = [
    *[
        (router, grain, "token")
        for router in ("joint", "per_modality", "disjoint")
        for grain in ("token", "bin", "sample")
    ],
    ("joint", "token", "expert"),
]


def error(mine: Tensor, exact: Tensor) -> float:
    return float((mine.float() - exact).norm() / exact.norm())


@pytest.mark.parametrize("rows", [16384, 16])
@pytest.mark.parametrize("shift", [0.0, 0.2])
@pytest.mark.parametrize("bias", [True, False])
def test_experts_in_bf16_are_within_a_hundredth_of_fp32(rows: int, shift: float, bias: bool) -> None:
    """Outputs and every gradient, those of biases among them: a sum of 16,384 rows rounded at every addition would be
    off by a sixth to six sevenths, and a mean gradient of `shift` makes that worse."""
    torch.manual_seed(0)
    counts = torch.tensor([rows, 0, rows // 2])
    groups = RowGroups.of(counts, int(counts.sum()) + 3)  # three rows of nobody
    experts = Experts(DIM, 2 * DIM, range(3), bias=bias).bfloat16()
    if experts.w3 is not None:
        torch.nn.init.normal_(experts.w3)
    x = torch.randn(len(groups.group_R), DIM).bfloat16().requires_grad_()
    up = torch.randn(len(x), DIM).add(shift).bfloat16()
    up[-3:] = 0
    with gpu_branch(), Watch() as watch:
        y = experts(x, groups)
        y.backward(up)
    assert watch.scatters == [] and watch.waits[""] == 0
    assert watch.by_name[""]["aten._grouped_mm"] == 6, "the branch for GPUs was not taken"
    exact = Experts(DIM, 2 * DIM, range(3), bias=bias)
    exact.load_state_dict({name: value.float() for name, value in experts.state_dict().items()})
    own = RowGroups.of(counts, int(counts.sum()))
    x32 = x.detach().float()[:-3].requires_grad_()
    y32 = reference_experts(x32, own, exact.w1, exact.w2, exact.w3)
    y32.backward(up.float()[:-3])
    assert x.grad is not None and x32.grad is not None
    assert error(y[:-3].detach(), y32.detach()) < 0.01 and error(x.grad[:-3], x32.grad) < 0.01
    for (name, mine), theirs in zip(experts.named_parameters(), exact.parameters(), strict=True):
        assert mine.grad is not None and theirs.grad is not None
        assert error(mine.grad, theirs.grad) < 0.01, name
        assert not mine.grad[1].any(), "an expert without rows has a gradient of zeros"


def walk(rank: int, world: int, router: str, grain: str, selection: str) -> dict[str, object]:
    """A pass forward and one backward of a layer in bf16, watched; and the same layer in fp32."""
    config = MoEConfig.model_validate(
        {"experts": 16, "top_k": 2, "hidden": 64, "shared_expert_hidden": 32, "router": router, "granularity": grain}
        | {"selection": selection}
    )
    dispatcher = AllToAllDispatcher(torch.distributed.group.WORLD) if world > 1 else LocalDispatcher()
    layer = MoELayer(DIM, config, MODALITIES, dispatcher=dispatcher).bfloat16()
    torch.manual_seed(rank)
    x = torch.randn(96, DIM).bfloat16().requires_grad_()
    modality_N, sample_N, bin_N = (torch.randint(0, most, (96,)) for most in (MODALITIES, SAMPLES, BINS))
    units = decision_units(config, sample_N, bin_N, SAMPLES, BINS)
    with gpu_branch(), Watch() as watch:
        with watch.phase("forward"):
            y, stats = layer(x, modality_N, *units)
        loss = y.float().square().sum() + stats.prob_ME.square().sum() + stats.gate_ME.square().sum() + stats.z_M.sum()
        with watch.phase("backward"):
            loss.backward()
    exact = MoELayer(DIM, config, MODALITIES, dispatcher=dispatcher)
    exact.load_state_dict({name: value.float() for name, value in layer.state_dict().items()})
    with torch.no_grad():
        expected, _ = exact(x.detach().float(), modality_N, *units)
    return {
        "kernels": dict(watch.kernels),
        "waits": [found.where for found in watch.found_waits],
        "low": [str(found) for found in watch.low_precision_scatters()],
        "grouped": watch.by_name["forward"]["aten._grouped_mm"],
        "error": error(y.detach(), expected),
    }


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize(("router", "grain", "selection"), CASES)
def test_a_layer_keeps_its_bounds(router: str, grain: str, selection: str, world: int) -> None:
    (got, *_) = run_ranks(walk, world, router, grain, selection)
    assert got["grouped"] >= 2, "the branch for GPUs was not taken"
    assert got["low"] == []
    # One wait with expert parallelism (how many rows go where), none without, none backward.
    assert len(got["waits"]) <= world - 1, got["waits"]
    assert got["kernels"]["forward"] <= 70 and got["kernels"]["backward"] <= 120, got["kernels"]
    assert got["error"] < 0.02
