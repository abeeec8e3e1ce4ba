"""Routers: everything registered and trained, deterministic in evaluation, pools respected, top-k weights right."""

import itertools

import pytest
import torch

from parallel import MoEConfig, pool_bounds
from parallel.routers import Router

ROUTERS, GATES = ("joint", "per_modality", "disjoint"), ("softmax", "laplace", "gaussian")


def router_of(seed: int = 0, modalities: int = 3, dim: int = 8, **settings: object) -> Router:
    config = MoEConfig.model_validate({"experts": 8, "top_k": 2, **settings})
    return Router(dim, config, modalities, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("router", "gate"), itertools.product(ROUTERS, GATES))
def test_every_parameter_is_registered_gets_a_gradient_and_is_saved(router: str, gate: str) -> None:
    torch.manual_seed(0)
    module = router_of(router=router, gate=gate, noise=1.0)
    assert set(module.state_dict()) == {"gate.prototypes", "gate.log_temperature", "noise_weight"}
    assert {name for name, _ in module.named_parameters()} == set(module.state_dict())
    x_UD, modality_U = torch.randn(60, 8), torch.arange(60) % 3
    routing = module(x_UD, modality_U)
    assert routing.load_UE is not None
    (routing.weights_UK.square().sum() + routing.load_UE.square().sum()).backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        per_row = parameter.grad.flatten(1).abs().sum(1) if parameter.ndim > 1 else parameter.grad.abs()
        assert (per_row > 0).all(), f"{name}: a modality's router got no gradient"


@pytest.mark.parametrize("router", ROUTERS)
def test_noise_acts_in_training_only(router: str) -> None:
    module = router_of(router=router, noise=2.0)
    x_UD, modality_U = torch.randn(50, 8), torch.arange(50) % 3
    module.train()
    assert not torch.equal(module(x_UD, modality_U).weights_UK, module(x_UD, modality_U).weights_UK)
    module.eval()
    first, second = module(x_UD, modality_U), module(x_UD, modality_U)
    assert first.load_UE is None
    assert torch.equal(first.experts_UK, second.experts_UK)
    assert torch.equal(first.weights_UK, second.weights_UK)
    # The logits that statistics and losses see never carry noise.
    module.train()
    assert torch.equal(module(x_UD, modality_U).logits_UE, first.logits_UE)


@pytest.mark.parametrize("top_k", [1, 2, 5, 8])
def test_weights_are_the_softmax_of_the_largest_logits(top_k: int) -> None:
    routing = router_of(top_k=top_k)(torch.randn(30, 8), torch.zeros(30, dtype=torch.int64))
    for logits_E, experts_K, weights_K in zip(routing.logits_UE, routing.experts_UK, routing.weights_UK, strict=True):
        chosen = sorted(range(8), key=lambda e: -logits_E[e].item())[:top_k]
        assert set(experts_K.tolist()) == set(chosen)
        expected = logits_E[experts_K].exp() / logits_E[chosen].exp().sum()
        torch.testing.assert_close(weights_K, expected)


def test_disjoint_pools_are_respected_and_cover_all_experts() -> None:
    torch.manual_seed(0)
    module = router_of(router="disjoint", experts=8, noise=3.0)
    modality_U = torch.arange(300) % 3
    experts_UK = module(torch.randn(300, 8), modality_U).experts_UK
    pools = pool_bounds(8, 3, 2)
    assert [len(pool) for pool in pools] == [2, 3, 3]
    for m, pool in enumerate(pools):
        assert set(experts_UK[modality_U == m].flatten().tolist()) == set(pool)


def test_load_is_the_probability_of_being_chosen() -> None:
    torch.manual_seed(0)
    module = router_of(noise=1.0, experts=6, top_k=2)
    x_UD, modality_U = torch.randn(1, 8).expand(20_000, 8), torch.zeros(20_000, dtype=torch.int64)
    routing = module(x_UD, modality_U)
    assert routing.load_UE is not None
    frequency_E = torch.bincount(routing.experts_UK.flatten(), minlength=6) / 20_000
    torch.testing.assert_close(routing.load_UE.mean(0), frequency_E, atol=0.01, rtol=0)


@pytest.mark.parametrize("router", ROUTERS)
def test_forced_balance_deals_decisions_in_turn(router: str) -> None:
    module = router_of(router=router, experts=9, top_k=3, forced_balance=True)
    modality_U = torch.zeros(60, dtype=torch.int64) if router == "joint" else torch.arange(60) // 20
    routing = module(torch.randn(60, 8), modality_U)
    assert all(len(set(row)) == 3 for row in routing.experts_UK.tolist())
    counts_E = torch.bincount(routing.experts_UK.flatten(), minlength=9)
    assert counts_E.max() - counts_E.min() <= 1


def test_pools_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match=r"moe.experts=2 is less than the 3 modalities: use at least 6 experts"):
        router_of(router="disjoint", experts=2)
    with pytest.raises(ValueError, match=r"pools as small as 1, less than moe.top_k=2: use at least 6 experts"):
        router_of(router="disjoint", experts=5)
    with pytest.raises(ValueError, match=r"moe.top_k=9 asks for more experts than moe.experts=8"):
        router_of(top_k=9)
