"""The all-to-all dispatcher against its local twin."""

from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from parallel.config import MoEConfig
from parallel.moe.balance import RoutingStats, reduce_stats
from parallel.moe.dispatch import AllToAllDispatcher, LocalDispatcher
from parallel.moe.initial import generator_for
from parallel.moe.layer import MoELayer, decision_units
from parallel.moe.rows.exchange import Journey
from tests.ranks import RankError, run_ranks


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


def _order(rank: int, world: int) -> list[str]:
    """What a layer with a shared expert sends and waits for, in the order in which it does."""
    log: list[str] = []
    send, end = dist.all_to_all_single, Journey.end

    def sent(into: Tensor, out: Tensor, *sizes: object, **options: object) -> object:
        log.append(f"{'start' if options.get('async_op') else 'exchange'} {str(out.dtype)[6:]} x {out.shape[1]}")
        return send(into, out, *sizes, **options)

    def ended(self: Journey) -> None:
        log.append(f"end {len(self._under_way)}")
        end(self)

    config = MoEConfig(experts=8, top_k=3, hidden=10, shared_expert_hidden=5)
    layer = MoELayer(6, config, dispatcher=AllToAllDispatcher(dist.group.WORLD))
    assert layer.shared is not None
    layer.shared.register_full_backward_hook(lambda *_: log.append("shared backward"))
    layer.shared.register_forward_pre_hook(lambda *_: log.append("shared"))
    with mock.patch.object(dist, "all_to_all_single", sent), mock.patch.object(Journey, "end", ended):
        y, _ = layer(torch.randn(9, 6, requires_grad=True), torch.zeros(9, dtype=torch.int64))
        log.append("backward")
        y.square().sum().backward()
    return log


def test_small_things_go_first_and_the_shared_expert_overlaps_both_ways() -> None:
    """One channel carries all exchanges of a group in turn: what is waited for behind the rows waits for them."""
    forward = ["exchange int64 x 2", "start int64 x 3", "start float32 x 3", "start float32 x 6", "shared", "end 3"]
    results = ["start float32 x 6", "end 1"]
    backward = ["start float32 x 3", "start float32 x 6", "shared backward", "end 2"]
    for log in run_ranks(_order, 2):
        assert log == [*forward, *results, "backward", *results, *backward]


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
