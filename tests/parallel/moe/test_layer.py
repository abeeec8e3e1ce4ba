"""The layer as its callers see it: independence of tokens, decision units, equality with a token-by-token loop."""

import itertools

import pytest
import torch
from torch import Tensor

from parallel import MoEConfig, MoELayer, decision_units
from parallel.moe.rows.places import RowGroups

ROUTERS, GATES, GRAINS = (
    ("joint", "per_modality", "disjoint"),
    ("softmax", "laplace", "gaussian"),
    ("token", "bin", "sample"),
)
DIM, MODALITIES, SAMPLES, BINS = 8, 3, 4, 2


def layer_of(**settings: object) -> MoELayer:
    config = MoEConfig.model_validate({"experts": 8, "top_k": 2, "hidden": 12, **settings})
    return MoELayer(DIM, config, MODALITIES, layer_id=1, seed=5)


def tokens(n: int = 48, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x_ND, modality_N, sample_N, bin_N in no particular order."""
    generator = torch.Generator().manual_seed(seed)
    integers = [torch.randint(0, high, (n,), generator=generator) for high in (MODALITIES, SAMPLES, BINS)]
    return torch.randn(n, DIM, generator=generator), *integers


@pytest.mark.parametrize(("router", "gate"), itertools.product(ROUTERS, GATES))
def test_layer_equals_token_by_token_loop(router: str, gate: str) -> None:
    layer = layer_of(router=router, gate=gate, shared_expert_hidden=6)
    x_ND, modality_N, *_ = tokens()
    y_ND, _ = layer(x_ND, modality_N)
    routing = layer.router(x_ND, modality_N)
    experts, shared = layer.experts, layer.shared
    assert shared is not None

    def mlp(x_D: Tensor, module: torch.nn.Module, e: int) -> Tensor:
        hidden_D = torch.nn.functional.gelu(x_D @ module.w1[e] + module.w3[e, 0, : module.hidden])
        return hidden_D @ module.w2[e] + module.w3[e, 0, module.hidden :]

    for n, x_D in enumerate(x_ND):
        expected = mlp(x_D, shared, 0)
        for e, weight in zip(routing.experts_UK[n].tolist(), routing.weights_UK[n], strict=True):
            expected = expected + weight * mlp(x_D, experts, e)
        torch.testing.assert_close(y_ND[n], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("router", "gate", "grain"), itertools.product(ROUTERS, GATES, GRAINS))
def test_a_sample_never_sees_another(router: str, gate: str, grain: str) -> None:
    """Perturb one sample: the others' outputs keep their bits; with token routing, so do its other tokens."""
    layer = layer_of(router=router, gate=gate, granularity=grain).eval()
    x_ND, modality_N, sample_N, bin_N = tokens()
    unit_N, units = decision_units(layer.config, sample_N, bin_N, SAMPLES, BINS)
    before, _ = layer(x_ND, modality_N, unit_N, units)
    moved = torch.nonzero(sample_N == 2)[0]
    changed = x_ND.clone()
    changed[moved] += 3.0
    after, _ = layer(changed, modality_N, unit_N, units)
    others = sample_N != 2
    if grain == "token":
        others = torch.arange(len(x_ND)) != moved
    # Rows of one expert share a matrix product, whose blocking may differ by rounding when another row arrives.
    torch.testing.assert_close(after[others], before[others], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(after[moved], before[moved], atol=1e-2)


@pytest.mark.parametrize(("router", "grain"), itertools.product(ROUTERS, ("bin", "sample")))
def test_tokens_of_a_unit_share_their_experts(router: str, grain: str) -> None:
    layer = layer_of(router=router, granularity=grain)
    x_ND, modality_N, sample_N, bin_N = tokens()
    unit_N, units = decision_units(layer.config, sample_N, bin_N, SAMPLES, BINS)
    assert unit_N is not None
    y_ND, stats = layer(x_ND, modality_N, unit_N, units)
    for n in range(len(x_ND)):
        mates = unit_N == unit_N[n]
        if router != "joint":
            mates &= modality_N == modality_N[n]
        routing = layer.router(x_ND[mates].mean(0, keepdim=True), modality_N[n : n + 1])
        rows = torch.full((layer.config.top_k, DIM), 0.0) + x_ND[n]
        counts = torch.bincount(routing.experts_UK[0], minlength=8)
        order = routing.experts_UK[0].argsort()
        expected = routing.weights_UK[0, order] @ layer.experts(rows, RowGroups.of(counts, len(rows)))
        torch.testing.assert_close(y_ND[n], expected, rtol=1e-4, atol=1e-5)
    assert stats.tokens_M.tolist() == torch.bincount(modality_N, minlength=MODALITIES).tolist()
    assert float(stats.count_ME.sum()) == len(x_ND) * layer.config.top_k


@pytest.mark.parametrize("router", ["joint", "per_modality"])
def test_experts_that_choose_equal_a_loop_and_keep_to_the_sample(router: str) -> None:
    """Every expert takes its best ceil(K n / E) of a sample's n tokens; other samples do not matter."""
    layer = layer_of(router=router, selection="expert", top_k=3).eval()
    x_ND, modality_N, sample_N, bin_N = tokens(50)
    unit_N, units = decision_units(layer.config, sample_N, bin_N, SAMPLES, BINS)
    y_ND, stats = layer(x_ND, modality_N, unit_N, units)
    prob_NE = layer.router(x_ND, modality_N).logits_UE.softmax(1)
    expected_ND = torch.zeros_like(x_ND)
    for sample in range(SAMPLES):
        of_sample = torch.nonzero(sample_N == sample)[:, 0]
        take = -(-3 * len(of_sample) // 8)
        for e in range(8):
            best = of_sample[prob_NE[of_sample, e].topk(take).indices]
            counts = torch.tensor([take * (i == e) for i in range(8)])
            rows = layer.experts(x_ND[best], RowGroups.of(counts, take))
            expected_ND = expected_ND.index_add(0, best, rows * prob_NE[best, e][:, None])
    torch.testing.assert_close(y_ND, expected_ND, rtol=1e-4, atol=1e-5)
    loads = stats.count_ME.sum(0)
    assert float(loads.max()) == float(loads.min()) > 0
    for sample in range(SAMPLES):
        own = sample_N == sample
        alone, _ = layer(x_ND[own], modality_N[own], torch.zeros_like(sample_N[own]), 1)
        torch.testing.assert_close(y_ND[own], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n", [0, 1, 17])
def test_experts_that_choose_leave_no_parameter_out(n: int) -> None:
    layer = layer_of(selection="expert")
    x_ND, modality_N, sample_N, bin_N = tokens(n)
    y_ND, stats = layer(x_ND, modality_N, *decision_units(layer.config, sample_N, bin_N, SAMPLES, BINS))
    (y_ND.sum() + stats.z_M.sum()).backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(("router", "gate", "grain"), itertools.product(ROUTERS, GATES, GRAINS))
@pytest.mark.parametrize("n", [0, 1, 17])
def test_every_parameter_takes_part_whatever_the_tokens(router: str, gate: str, grain: str, n: int) -> None:
    layer = layer_of(router=router, gate=gate, granularity=grain, noise=0.5, shared_expert_hidden=4)
    x_ND, modality_N, sample_N, bin_N = tokens(n)
    x_ND.requires_grad_()
    unit_N, units = decision_units(layer.config, sample_N, bin_N, SAMPLES, BINS)
    y_ND, stats = layer(x_ND, modality_N, unit_N, units)
    assert y_ND.shape == x_ND.shape
    (y_ND.sum() + stats.load_ME.sum()).backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_bf16_layer_keeps_dtype_and_routes_in_fp32() -> None:
    layer = layer_of(gate="gaussian").to(torch.bfloat16)
    x_ND, modality_N, *_ = tokens()
    y_ND, stats = layer(x_ND.bfloat16(), modality_N)
    assert y_ND.dtype == torch.bfloat16 and stats.prob_ME.dtype == torch.float32
    exact, _ = layer.float()(x_ND.bfloat16().float(), modality_N)
    y_ND, exact = y_ND.detach(), exact.detach()
    assert float((y_ND.float() - exact).norm() / exact.norm()) < 2e-2


def test_evaluation_is_deterministic_with_noise_and_dropout_configured() -> None:
    layer = layer_of(noise=1.0, dropout=0.5).eval()
    x_ND, modality_N, *_ = tokens()
    assert torch.equal(layer(x_ND, modality_N)[0], layer(x_ND, modality_N)[0])
    layer.train()
    assert not torch.equal(layer(x_ND, modality_N)[0], layer(x_ND, modality_N)[0])


def test_construction_leaves_the_global_random_state_alone_and_follows_the_seed() -> None:
    before = torch.get_rng_state()
    first, again = layer_of(), layer_of()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    other = MoELayer(DIM, first.config, MODALITIES, layer_id=2, seed=5)
    assert not torch.equal(first.experts.w1, other.experts.w1)
    assert not torch.equal(first.router.gate.prototypes, other.router.gate.prototypes)


def test_experts_that_do_not_divide_are_refused() -> None:
    class ThreeRanks:
        size, rank = 3, 0

        def __call__(self, *arguments: object) -> tuple[Tensor, None]:
            raise NotImplementedError

    with pytest.raises(ValueError, match=r"moe.experts=8 cannot be spread evenly over 3 expert-parallel ranks"):
        MoELayer(DIM, MoEConfig(experts=8, top_k=2), dispatcher=ThreeRanks())
