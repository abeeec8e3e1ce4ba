"""Initial weights of experts: the same numbers however they are drawn, and none where a checkpoint fills them."""

import os

import pytest
import torch
from torch import nn

from parallel import MoEConfig, MoELayer
from parallel.moe.experts import Experts
from parallel.moe.initial import check_filled, generator_for, undrawn


def obvious(dim: int, hidden: int, ids: range, key: tuple[object, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """One expert after the other, one matrix after the other."""
    first, second = [], []
    for expert in ids:
        generator = generator_for(*key, "expert", expert)
        first.append(torch.empty(dim, hidden).uniform_(-(dim**-0.5), dim**-0.5, generator=generator))
        second.append(torch.empty(hidden, dim).uniform_(-(hidden**-0.5), hidden**-0.5, generator=generator))
    return torch.stack(first), torch.stack(second)


@pytest.mark.parametrize("cores", [1, 3, 64])
def test_any_number_of_threads_draws_the_same_numbers(cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    experts = Experts(6, 10, range(3, 11), (1, 0))
    w1, w2 = obvious(6, 10, range(3, 11), (1, 0))
    assert torch.equal(experts.w1, w1) and torch.equal(experts.w2, w2) and not experts.w3.any()


def test_numbers_of_a_seed_stay_what_they_were() -> None:
    """Recorded runs start from these."""
    experts = Experts(1024, 4096, range(3, 4), (0, 0))
    assert experts.w1[0, 5, :3].tolist() == [0.02634800225496292, 0.02258317917585373, 0.023488260805606842]


def test_undrawn_experts_hold_nothing_until_they_are_filled() -> None:
    drawn = MoELayer(6, MoEConfig(experts=4, top_k=2, hidden=10, shared_expert_hidden=5))
    with undrawn():
        layer = MoELayer(6, MoEConfig(experts=4, top_k=2, hidden=10, shared_expert_hidden=5))
    for module in (layer.experts, layer.shared):
        assert module is not None and all(parameter.isnan().all() for parameter in module.parameters())
    assert torch.equal(layer.router.gate.prototypes, drawn.router.gate.prototypes)
    layer.load_state_dict(drawn.state_dict())
    check_filled(layer)
    x_ND, modality_N = torch.randn(5, 6), torch.zeros(5, dtype=torch.int64)
    assert torch.equal(layer(x_ND, modality_N)[0], drawn(x_ND, modality_N)[0])
    # What is made afterwards is drawn.
    assert torch.equal(Experts(6, 10, range(4), (0, 0)).w1, drawn.experts.w1)


@pytest.mark.parametrize("parameter", ["w1", "w2", "w3"])
def test_a_single_number_that_nothing_has_set_is_found(parameter: str) -> None:
    with undrawn():
        model = nn.ModuleDict({"block": Experts(6, 10, range(4))})
    for value in model.parameters():
        nn.init.zeros_(value)
    with torch.no_grad():
        getattr(model["block"], parameter)[2, 0, 3] = torch.nan
    with pytest.raises(RuntimeError, match=rf"^1 of \d+ numbers of block\.{parameter} are not set after"):
        check_filled(model)


def test_frozen_experts_are_in_no_checkpoint_and_are_drawn_later() -> None:
    with undrawn():
        model = nn.ModuleDict({"block": Experts(6, 10, range(2, 4), (7,)).bfloat16().requires_grad_(False)})
    check_filled(model)
    assert torch.equal(model["block"].w1, Experts(6, 10, range(2, 4), (7,)).w1.bfloat16())
    assert not model["block"].waiting


def test_an_error_inside_does_not_leave_later_experts_undrawn() -> None:
    with pytest.raises(ValueError, match="stop"), undrawn():
        raise ValueError("stop")
    assert Experts(6, 10, range(2)).w1.isfinite().all()
