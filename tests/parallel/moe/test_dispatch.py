"""Row movement against indexing, and the all-to-all dispatcher against its local twin."""

import numpy as np
import pytest
import torch
from torch import Tensor

from parallel.config import MoEConfig
from parallel.moe.balance import RoutingStats, reduce_stats
from parallel.moe.choice import Choice, top_k_choice
from parallel.moe.dispatch import AllToAllDispatcher, LocalDispatcher
from parallel.moe.initial import generator_for
from parallel.moe.layer import MoELayer, decision_units
from parallel.moe.permute import combine_rows, expand_rows, inverse_permutation, permute_rows
from tests.ranks import RankError, run_ranks


@pytest.mark.parametrize("n", [0, 7])
def test_rows_move_as_indexing_does(n: int) -> None:
    torch.manual_seed(0)
    k, d = 3, 4
    order = torch.randperm(n * k)
    inverse = inverse_permutation(order)
    x = torch.randn(n, d, dtype=torch.float64, requires_grad=True)
    y = torch.randn(n * k, d, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(n, k, dtype=torch.float64, requires_grad=True)

    def choose(w: Tensor) -> Choice:
        return top_k_choice(torch.zeros(n, k, dtype=torch.int64), w)

    assert torch.equal(permute_rows(y, order, inverse), y[order])
    assert torch.equal(expand_rows(x, choose(weight), order, inverse), x.repeat_interleave(k, 0)[order])
    spread = torch.zeros(n * k, d, dtype=torch.float64).index_copy(0, order, y).view(n, k, d)
    expected = (spread * weight[:, :, None]).sum(1)
    torch.testing.assert_close(combine_rows(y, choose(weight), order, inverse), expected)
    if n:
        assert torch.autograd.gradcheck(lambda t: permute_rows(t, order, inverse), y)
        assert torch.autograd.gradcheck(lambda t: expand_rows(t, choose(weight), order, inverse), x)
        assert torch.autograd.gradcheck(lambda t, w: combine_rows(t, choose(w), order, inverse), (y, weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_of_tokens_with_unequal_numbers_of_experts(dtype: torch.dtype) -> None:
    """Tokens with 0, 2, 0, 1 and 3 entries, on both ways to add them up."""
    torch.manual_seed(0)
    token = torch.tensor([1, 1, 3, 4, 4, 4])
    order = torch.randperm(6)
    inverse = inverse_permutation(order)
    x, y = torch.randn(5, 3, dtype=dtype, requires_grad=True), torch.randn(6, 3, dtype=dtype, requires_grad=True)
    weight = torch.randn(6, dtype=dtype, requires_grad=True)
    choice = Choice(5, token, torch.zeros_like(token), weight)
    assert torch.equal(expand_rows(x, choice, order, inverse), x[token][order])
    for weighted in (True, False):
        combined = combine_rows(y, choice, order, inverse, weighted)
        factor = weight if weighted else torch.ones_like(weight)
        expected = torch.zeros(5, 3, dtype=dtype).index_add(0, token, y[inverse] * factor[:, None])
        torch.testing.assert_close(combined, expected)
        own = torch.autograd.grad(combined.square().sum(), y, retain_graph=True)[0]
        torch.testing.assert_close(own, torch.autograd.grad(expected.square().sum(), y, retain_graph=True)[0])
    gathered = torch.autograd.grad(expand_rows(x, choice, order, inverse).square().sum(), x)[0]
    torch.testing.assert_close(gathered, torch.autograd.grad(x[token].square().sum(), x)[0])


def _layer_and_tokens(rank: int, case: str) -> tuple[MoEConfig, Tensor, Tensor]:
    extra = {"experts_choose": {"selection": "expert"}, "groups": {"expert_groups": 4, "groups_per_token": 2}}
    config = MoEConfig(
        experts=8, top_k=3, hidden=10, router="per_modality", shared_expert_hidden=5, **extra.get(case, {})
    )
    n = {"even": 12, "uneven": 5 + 9 * rank, "empty": 0 if rank == 1 else 6}.get(case, 7 + 3 * rank)
    generator = generator_for("tokens", rank, case)
    return config, torch.randn(n, 6, generator=generator), torch.randint(0, 2, (n,), generator=generator)


def _serve(rank: int, world: int, case: str) -> dict[str, np.ndarray]:
    """The same tokens through a layer spread over all ranks and through one that is all here."""
    config, x_ND, modality_N = _layer_and_tokens(rank, case)
    result = {}
    for name, dispatcher in (
        ("spread", AllToAllDispatcher(torch.distributed.group.WORLD)),
        ("local", LocalDispatcher()),
    ):
        layer = MoELayer(6, config, 2, layer_id=0, seed=1, dispatcher=dispatcher)
        x = x_ND.clone().requires_grad_()
        sample_N = torch.arange(len(x)) % 3
        unit_N, units = decision_units(config, sample_N, sample_N, 3, 1)
        y, stats = layer(x, modality_N, unit_N, units)
        (y.square().sum() + reduce_stats([stats])[0].z_M.sum()).backward()
        result |= {f"{name}/y": y.detach().numpy(), f"{name}/x": x.grad.numpy()}
        for parameter_name, parameter in layer.named_parameters():
            gradient = parameter.grad.clone()
            if name == "spread" and parameter_name.startswith("experts."):
                parts = [torch.empty_like(gradient) for _ in range(world)]
                torch.distributed.all_gather(parts, gradient)
                gradient = torch.cat(parts)
            else:
                torch.distributed.all_reduce(gradient)
            result[f"{name}/{parameter_name}"] = gradient.numpy()
    return result


def _serve_all(rank: int, world: int) -> list[dict[str, np.ndarray]]:
    return [_serve(rank, world, case) for case in ("even", "uneven", "empty", "experts_choose", "groups")]


@pytest.mark.parametrize("world", [2, 4])
def test_all_to_all_equals_its_local_twin(world: int) -> None:
    for rank, cases in enumerate(run_ranks(_serve_all, world)):
        for case in cases:
            for key in [key.removeprefix("spread/") for key in case if key.startswith("spread/")]:
                np.testing.assert_allclose(
                    case[f"spread/{key}"], case[f"local/{key}"], rtol=1e-5, atol=1e-5, err_msg=f"rank {rank}, {key}"
                )


def _reduce(rank: int, world: int) -> tuple[list[float], list[float]]:
    value = torch.full((2, 3), float(rank + 1), requires_grad=True)
    layers = [RoutingStats(torch.cat([value[:, :1], value * i, value, value, torch.ones(2, 1)], 1), 3) for i in (1, 2)]
    reduced = reduce_stats(layers)
    reduced[1].prob_ME.sum().backward()
    assert value.grad is not None
    assert not reduced[0].tokens_M.requires_grad
    return [float(reduced[i].prob_ME[0, 0].detach()) for i in (0, 1)], [float(value.grad.sum())]


def test_statistics_are_summed_forward_and_passed_through_backward() -> None:
    for sums, gradient in run_ranks(_reduce, 3):
        assert sums == [6.0, 12.0]
        assert gradient == [12.0]  # d(2 * value).sum() of this rank only


def _fail_on_one(rank: int, world: int) -> None:
    if rank == 1:
        raise ValueError("rank one is unhappy")
    torch.distributed.barrier()


def test_run_ranks_reports_the_first_error_with_its_rank() -> None:
    with pytest.raises(RankError, match=r"(?s)rank 1 of 2 failed.*rank one is unhappy"):
        run_ranks(_fail_on_one, 2)
