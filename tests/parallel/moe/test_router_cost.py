"""What routing and its statistics cost a GPU: operations, waits of the host, sums whose order is not fixed."""

import itertools

import pytest
import torch
from torch import Tensor

from parallel import MoEConfig, balance_losses, reduce_stats
from parallel.moe.balance import RoutingStats, measure, tokens_per_decision
from parallel.moe.choice import Choice
from parallel.moe.routers import Router, Routing
from tests.gpu_branch import Watch, gpu_branch

LAYERS, MODALITIES, UNITS, TOKENS, DIM = 12, 64, 6, 400, 32
# Operations a layer of a model of twelve, all losses of balance among them, as a CPU shows them: it has no product of
# bf16 operands with a result in fp32, and makes fp32 operands first, which is two operations more each time.
FORWARD = {"joint": 40, "disjoint": 44, "per_modality": 49}
BACKWARD = 60


def decisions(router: str, grain: str) -> tuple[Tensor, Tensor, Tensor | None]:
    """(modality of each decision, modality of each token, decision of each token)."""
    modality_N = torch.randint(0, MODALITIES, (TOKENS,))
    if grain == "token":
        return modality_N, modality_N, None
    unit_N = torch.randint(0, UNITS, (TOKENS,))
    if router == "joint":
        return torch.zeros(UNITS, dtype=torch.int64), modality_N, unit_N
    return torch.arange(MODALITIES).repeat(UNITS), modality_N, unit_N * MODALITIES + modality_N


def choice_of(routing: Routing) -> Choice:
    """Of decisions; what tokens get of it is the layer's business."""
    return Choice(routing.experts_UK, routing.weights_UK, routing.logits_UE.shape[1])


def watched(config: MoEConfig) -> Watch:
    torch.manual_seed(0)
    modality_U, modality_N, unit_N = decisions(config.router, config.granularity)
    routers = [Router(DIM, config, MODALITIES).bfloat16() for _ in range(LAYERS)]
    x_UD = torch.randn(len(modality_U), DIM).bfloat16().requires_grad_()
    with gpu_branch(), Watch() as watch:
        run(watch, config, routers, x_UD, modality_U, modality_N, unit_N)
    return watch


def run(
    watch: Watch,
    config: MoEConfig,
    routers: list[Router],
    x_UD: Tensor,
    modality_U: Tensor,
    modality_N: Tensor,
    unit_N: Tensor | None,
) -> None:
    stats: list[RoutingStats] = []
    weights: list[Tensor] = []
    for router in routers:
        with watch.phase("forward"):
            routing = router(x_UD, modality_U)
        choice = choice_of(routing)
        with watch.phase("forward"):
            tokens_MU = tokens_per_decision(modality_N, unit_N, MODALITIES, len(modality_U))
            stats.append(measure(routing, tokens_MU, choice))
        weights.append(routing.weights_UK)
    ups = [torch.randn_like(w_UK) for w_UK in weights]
    with watch.phase("forward"):
        losses = balance_losses(reduce_stats(stats), config)
        total = losses["balance"] + losses["entropy"] + losses["z"]
    with watch.phase("backward"):
        torch.autograd.backward([total, *weights], [torch.ones(()), *ups])


@pytest.mark.parametrize("grain", ["token", "bin", "sample"])
@pytest.mark.parametrize(
    ("router", "gate"),
    itertools.product(("joint", "per_modality", "disjoint"), ("softmax", "laplace", "gaussian")),
)
def test_operations_are_few_and_nothing_waits(router: str, gate: str, grain: str) -> None:
    config = MoEConfig.model_validate(
        {"experts": 128, "top_k": 2, "router": router, "gate": gate, "granularity": grain}
    )
    watch = watched(config)
    assert not watch.found_waits
    # Counting whole numbers in fp32 is exact in any order; nothing else may be added where it falls.
    assert {found.name for found in watch.scatters} <= {"index_add_"} and not watch.low_precision_scatters()
    assert all(found.where.startswith("parallel/moe/balance.py") for found in watch.scatters)
    assert watch.kernels["forward"] / LAYERS <= FORWARD[router]
    assert watch.kernels["backward"] / LAYERS <= BACKWARD


@pytest.mark.parametrize(
    "settings",
    [
        {"noise": 1.0, "router": "per_modality"},
        {"bias_rate": 0.1, "router": "disjoint"},
        {"forced_balance": True, "router": "disjoint"},
        {"expert_groups": 8, "groups_per_token": 2},
    ],
    ids=str,
)
def test_no_setting_makes_the_host_wait(settings: dict[str, object]) -> None:
    watch = watched(MoEConfig.model_validate({"experts": 128, "top_k": 2, **settings}))
    assert not watch.found_waits
    assert not watch.low_precision_scatters()
