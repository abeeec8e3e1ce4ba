"""Routers: everything registered and trained, deterministic in evaluation, pools respected, top-k weights right."""

import itertools

import pytest
import torch

from parallel import MoEConfig, expert_pools
from parallel.moe.routers import Router

ROUTERS, GATES = ("joint", "per_modality", "disjoint"), ("softmax", "laplace", "gaussian")


def router_of(seed: int = 0, modalities: int = 3, dim: int = 8, **settings: object) -> Router:
    config = MoEConfig.model_validate({"experts": 8, "top_k": 2, **settings})
    return Router(dim, config, modalities, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("router", "gate"), itertools.product(ROUTERS, GATES))
def test_every_parameter_is_registered_gets_a_gradient_and_is_saved(router: str, gate: str) -> None:
    torch.manual_seed(0)
    module = router_of(router=router, gate=gate, noise=1.0, gate_bias=True)
    assert set(module.state_dict()) == {"gate.prototypes", "gate.bias", "gate.log_temperature", "noise_weight"}
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
    pools = expert_pools(8, 3, 2)
    assert [len(pool) for pool in pools] == [3, 3, 2]
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


def test_pools_are_spread_over_ranks() -> None:
    """Neighbouring experts share a rank; with four modalities on two ranks each rank holds some of every pool."""
    pools = expert_pools(16, 4, 2)
    assert sorted(e for pool in pools for e in pool) == list(range(16))
    assert all({e // 8 for e in pool} == {0, 1} for pool in pools)


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_a_decision_keeps_to_its_best_groups(noise: float) -> None:
    torch.manual_seed(0)
    module = router_of(experts=12, top_k=4, expert_groups=4, groups_per_token=2, noise=noise)
    x_UD, modality_U = torch.randn(200, 8), torch.zeros(200, dtype=torch.int64)
    routing = module.eval()(x_UD, modality_U)
    for experts_K, logits_E in zip(routing.experts_UK, routing.logits_UE, strict=True):
        worth = logits_E.view(4, 3).topk(2, dim=1).values.sum(1)  # top_k over groups
        allowed = {int(3 * g + i) for g in worth.topk(2).indices for i in range(3)}
        expected = sorted(allowed, key=lambda e: -logits_E[e].item())[:4]
        assert set(experts_K.tolist()) == set(expected)
    routing = module.train()(x_UD, modality_U)
    assert max(len({e // 3 for e in row}) for row in routing.experts_UK.tolist()) <= 2
    if noise:
        assert routing.load_UE is not None and routing.load_UE.isfinite().all()
    free = router_of(experts=12, top_k=4)
    assert max(len({e // 3 for e in row}) for row in free(x_UD, modality_U).experts_UK.tolist()) > 2


@pytest.mark.parametrize("router", ["joint", "disjoint"])
def test_the_bias_evens_the_load_and_leaves_the_weights_alone(router: str) -> None:
    """Tokens that all prefer the same experts: steps of the bias spread them, weights stay a function of the scores."""
    torch.manual_seed(0)
    module = router_of(router=router, experts=9, top_k=2, bias_rate=0.02)
    x_UD, modality_U = torch.randn(600, 8) * 0.1 + torch.randn(8), torch.arange(600) % 3

    def loads() -> torch.Tensor:
        return torch.bincount(module(x_UD, modality_U).experts_UK.flatten(), minlength=9).float()

    before = loads()
    for _ in range(300):
        module.nudge(loads())
    after = loads()
    assert float(before.max() / before.mean()) > 1.45  # in a pool of three, 1.5 is all there is
    assert float(after.max() / after.mean()) < 1.25
    routing = module(x_UD, modality_U)
    scores = routing.logits_UE.gather(1, routing.experts_UK)
    torch.testing.assert_close(routing.weights_UK, scores.softmax(1))
    cast = module.to(torch.bfloat16)
    assert torch.equal(cast.state_dict()["nudges_E"], module.nudges_E) and cast.nudges_E.dtype == torch.int64


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"selection": "expert", "router": "disjoint"}, "moe.selection=expert does not go with moe.router=disjoint"),
        ({"selection": "expert", "granularity": "bin"}, "does not go with moe.granularity=bin"),
        ({"selection": "expert", "bias_rate": 0.1}, "does not go with moe.bias_rate"),
        ({"expert_groups": 3, "groups_per_token": 1}, "moe.experts=8, moe.expert_groups=3"),
        ({"expert_groups": 8, "groups_per_token": 1}, "moe.groups_per_token=1 groups of 1 experts"),
    ],
)
def test_choices_that_cannot_be_are_refused(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        MoEConfig.model_validate({"experts": 8, "top_k": 2, **settings})
