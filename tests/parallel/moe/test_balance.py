"""Balance, entropy and z losses against values worked out by hand."""

import math

import pytest
import torch
from torch import Tensor

from parallel import MoEConfig, balance_losses, expert_pools
from parallel.moe.balance import (
    RoutingStats,
    balance_loss,
    entropy_loss,
    measure,
    squared_variation,
    tokens_per_decision,
    z_loss,
)
from parallel.moe.choice import Choice
from parallel.moe.routers import Routing


def stats_of(prob_ME: list[list[float]], tokens: list[float], gate_ME: list[list[float]] | None = None) -> RoutingStats:
    tokens_M = torch.tensor(tokens)
    prob = torch.tensor(prob_ME) * tokens_M[:, None]
    gate = torch.tensor(gate_ME) if gate_ME is not None else prob
    return table_of(torch.zeros(len(tokens)), prob, gate, gate, tokens_M)


def table_of(z_M: Tensor, prob_ME: Tensor, gate_ME: Tensor, load_ME: Tensor, tokens_M: Tensor) -> RoutingStats:
    table_MC = torch.cat([z_M[:, None], prob_ME, gate_ME, load_ME, tokens_M[:, None]], 1)
    return RoutingStats(table_MC, prob_ME.shape[1])


def test_squared_variation_by_hand() -> None:
    # mean 2, variance (1 + 0 + 1) / 3
    assert float(squared_variation(torch.tensor([1.0, 2.0, 3.0]))) == pytest.approx((2 / 3) / 4)
    assert float(squared_variation(torch.tensor([5.0, 5.0]))) == 0
    assert float(squared_variation(torch.tensor([7.0]))) == 0
    assert float(squared_variation(torch.zeros(4))) == 0
    # all on one of four experts: mean 1/4, variance 3/16, CV² = 3
    assert float(squared_variation(torch.tensor([1.0, 0.0, 0.0, 0.0]))) == pytest.approx(3, rel=1e-5)
    # each row is a layer, or a site, of its own
    assert squared_variation(torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]])).tolist() == pytest.approx([1 / 6, 0])


def test_balance_adds_importance_and_load_over_all_modalities() -> None:
    # Each modality uses one expert only, together they are balanced.
    stats = stats_of([[1.0, 0.0], [0.0, 1.0]], [10, 10])
    assert float(balance_losses([stats], MoEConfig(experts=2, top_k=1))["balance"]) == pytest.approx(0, abs=1e-6)
    lopsided = stats_of([[1.0, 0.0], [1.0, 0.0]], [10, 10])
    assert float(balance_losses([lopsided], MoEConfig(experts=2, top_k=1))["balance"]) == pytest.approx(2, rel=1e-5)


def test_disjoint_balance_is_within_pools_that_saw_tokens() -> None:
    config = MoEConfig(experts=4, top_k=1, router="disjoint")
    uneven_sizes = stats_of([[0.5, 0.0, 0.5, 0.0], [0.0, 0.5, 0.0, 0.5]], [90, 10])
    assert float(balance_losses([uneven_sizes], config)["balance"]) == pytest.approx(0, abs=1e-6)
    one_silent = stats_of([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]], [10, 0])
    assert float(balance_losses([one_silent], config)["balance"]) == pytest.approx(2, rel=1e-5)


@pytest.mark.parametrize("modalities", [2, 3, 5])
def test_entropy_loss_bounds(modalities: int) -> None:
    same = stats_of([[0.1, 0.2, 0.3, 0.4, 0.0]] * modalities, [3.0 + m for m in range(modalities)])
    assert float(entropy_loss(same)) == pytest.approx(0, abs=1e-6)
    apart = stats_of([[float(e == m) for e in range(5)] for m in range(modalities)], [4.0] * modalities)
    assert float(entropy_loss(apart)) == pytest.approx(-math.log(modalities), rel=1e-5)
    torch.manual_seed(0)
    for _ in range(20):
        random = stats_of(torch.randn(modalities, 5).mul(3).softmax(1).tolist(), [1.0] * modalities)
        assert -math.log(modalities) - 1e-5 <= float(entropy_loss(random)) <= 1e-6


def test_entropy_loss_by_hand_and_without_absent_modalities() -> None:
    # (H(.5, .5) + H(1, 0)) / 2 - H(.75, .25)
    expected = math.log(2) / 2 - (-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert float(entropy_loss(stats_of([[0.5, 0.5], [1.0, 0.0]], [2, 8]))) == pytest.approx(expected, rel=1e-5)
    with_absent = stats_of([[0.5, 0.5], [0.0, 0.0], [1.0, 0.0]], [2, 0, 8])
    assert float(entropy_loss(with_absent)) == pytest.approx(expected, rel=1e-5)


def test_z_loss_by_hand() -> None:
    logits_UE = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    choice, weight, modality = torch.tensor([[0], [1]]), torch.ones(2, 1), torch.tensor([0, 0])
    tokens_MU = tokens_per_decision(modality, None, 1, 2)
    stats = measure(Routing(choice, weight, logits_UE, None), tokens_MU, Choice(choice, weight, 2))
    expected = (math.log(2) ** 2 + (1 + math.log(2)) ** 2) / 2
    assert float(z_loss(stats)) == pytest.approx(expected, rel=1e-6)


def test_statistics_are_sums_over_tokens_also_with_shared_decisions() -> None:
    """Counting decisions times their tokens equals listing the tokens one by one."""
    torch.manual_seed(0)
    logits_UE, unit_N, modality_N = (
        torch.randn(4, 5),
        torch.tensor([0, 0, 2, 3, 3, 3]),
        torch.tensor([0, 1, 1, 0, 0, 1]),
    )
    values, experts = logits_UE.topk(2, dim=1)
    weights = values.softmax(1)
    tokens = Choice(experts[unit_N], weights[unit_N], 5)
    shared = measure(Routing(experts, weights, logits_UE, None), tokens_per_decision(modality_N, unit_N, 2, 4), tokens)
    spread = Routing(experts[unit_N], weights[unit_N], logits_UE[unit_N], None)
    single = measure(spread, tokens_per_decision(modality_N, None, 2, 6), tokens)
    for name in ("prob_ME", "gate_ME", "load_ME", "count_ME", "z_M", "tokens_M"):
        torch.testing.assert_close(getattr(shared, name), getattr(single, name))
    assert float(single.gate_ME.sum()) == pytest.approx(6)
    assert float(single.count_ME.sum()) == 12
    assert single.tokens_M.tolist() == [3, 3]


def test_no_tokens_and_no_layers_give_zero_losses_with_gradients() -> None:
    config = MoEConfig(experts=4, top_k=2)
    logits = torch.zeros(0, 4, requires_grad=True)
    nothing = torch.zeros(0, dtype=torch.int64)
    choice, weight = torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0, 2)
    tokens_MU = tokens_per_decision(nothing, None, 3, 0)
    stats = measure(Routing(choice, weight, logits, None), tokens_MU, Choice(choice, weight, 4))
    losses = balance_losses([stats], config)
    assert {name: float(value.detach()) for name, value in losses.items()} == {"balance": 0, "entropy": 0, "z": 0}
    torch.stack(list(losses.values())).sum().backward()
    assert logits.grad is not None and logits.grad.isfinite().all()
    assert all(float(value) == 0 for value in balance_losses([], config).values())


def obvious_tables(routing: Routing, modality_N: Tensor, experts: int, modalities: int) -> dict[str, Tensor]:
    """Token by token, expert by expert; every token is its own decision."""
    zeros = {name: routing.logits_UE.new_zeros(modalities, experts) for name in ("prob", "gate", "count")}
    rows = {name: [list(row) for row in table.unbind()] for name, table in zeros.items()}
    z = [routing.logits_UE.new_zeros(()) for _ in range(modalities)]
    for n, m in enumerate(modality_N.tolist()):
        logits_E = routing.logits_UE[n]
        z[m] = z[m] + logits_E.exp().sum().log().square()
        for e in range(experts):
            rows["prob"][m][e] = rows["prob"][m][e] + logits_E[e].exp() / logits_E.exp().sum()
        for e, weight in zip(routing.experts_UK[n].tolist(), routing.weights_UK[n], strict=True):
            rows["gate"][m][e] = rows["gate"][m][e] + weight
            rows["count"][m][e] = rows["count"][m][e] + 1
    made = {name: torch.stack([torch.stack(row) for row in table]) for name, table in rows.items()}
    return {**made, "z": torch.stack(z)}


@pytest.mark.parametrize("outside", [False, True])
def test_the_table_and_its_derivative_equal_a_loop(outside: bool) -> None:
    """In float64, also with experts out of reach (logit -inf), and with a chance of being chosen as the load."""
    torch.manual_seed(0)
    logits_UE = 3 * torch.randn(9, 6, dtype=torch.float64)
    if outside:
        logits_UE[:, ::3] = -torch.inf
    logits_UE.requires_grad_()
    modality_N = torch.tensor([0, 2, 2, 0, 0, 3, 2, 0, 3])
    values_UK, experts_UK = logits_UE.topk(2, dim=1)
    routing = Routing(experts_UK, values_UK.softmax(1), logits_UE, logits_UE.sigmoid())
    tokens_MU = tokens_per_decision(modality_N, None, 4, 9).double()
    stats = measure(routing, tokens_MU, Choice(experts_UK, routing.weights_UK, 6))
    plain = measure(routing._replace(load_UE=None), tokens_MU, Choice(experts_UK, routing.weights_UK, 6))
    expected = obvious_tables(routing, modality_N, 6, 4)
    assert stats.tokens_M.tolist() == [4, 0, 3, 2]
    torch.testing.assert_close(stats.load_ME, tokens_MU @ logits_UE.sigmoid())
    assert torch.equal(plain.load_ME, plain.count_ME)
    for found in (stats, plain):
        pairs = {"prob": found.prob_ME, "gate": found.gate_ME, "count": found.count_ME, "z": found.z_M}
        for name, mine in pairs.items():
            torch.testing.assert_close(mine, expected[name])
        for name in ("prob", "gate", "z"):
            up = torch.randn(expected[name].shape, dtype=torch.float64)
            (mine,) = torch.autograd.grad(pairs[name], logits_UE, up, retain_graph=True)
            (theirs,) = torch.autograd.grad(expected[name], logits_UE, up, retain_graph=True)
            torch.testing.assert_close(mine, theirs)
    assert not stats.count_ME.requires_grad and not stats.tokens_M.requires_grad


@pytest.mark.parametrize(("experts", "modalities"), [(9, 3), (11, 4)])
def test_pools_are_balanced_one_by_one_also_where_their_sizes_differ(experts: int, modalities: int) -> None:
    torch.manual_seed(0)
    config = MoEConfig(experts=experts, top_k=1, router="disjoint")
    inside_ME = torch.arange(experts)[None] % modalities == torch.arange(modalities)[:, None]
    gate_ME, load_ME = torch.rand(modalities, experts) * inside_ME, torch.rand(modalities, experts) * inside_ME
    tokens_M = torch.ones(modalities)
    tokens_M[1] = 0
    stats = table_of(torch.zeros(modalities), gate_ME, gate_ME, load_ME, tokens_M)
    expected = [
        sum(float(table[m, pool].var(correction=0) / table[m, pool].mean() ** 2) for table in (gate_ME, load_ME))
        for m, pool in enumerate([torch.tensor(list(pool)) for pool in expert_pools(experts, modalities, 1)])
        if m != 1
    ]
    assert float(balance_loss(stats, config)) == pytest.approx(sum(expected) / len(expected), rel=1e-5)


@pytest.mark.parametrize("router", ["joint", "disjoint"])
def test_losses_of_several_layers_are_the_mean_of_each(router: str) -> None:
    torch.manual_seed(0)
    config = MoEConfig.model_validate({"experts": 6, "top_k": 2, "router": router})
    layers = [
        table_of(torch.rand(3), torch.rand(3, 6), torch.rand(3, 6), torch.rand(3, 6), torch.tensor([5.0, 0.0, 7.0]))
        for _ in range(4)
    ]
    together = balance_losses(layers, config)
    alone = [balance_losses([layer], config) for layer in layers]
    for name, value in together.items():
        assert float(value) == pytest.approx(sum(float(one[name]) for one in alone) / 4, rel=1e-5), name


def test_many_tokens_are_counted_one_by_one() -> None:
    """A sum in bf16 would stop at 256."""
    modality_N, unit_N = torch.arange(6000) % 3, (torch.arange(6000) % 2 == 0).long()
    assert tokens_per_decision(modality_N, unit_N, 3, 3).tolist() == [[1000, 1000, 0]] * 3
    assert tokens_per_decision(modality_N[:4], None, 3, 4).tolist() == [[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0]]
