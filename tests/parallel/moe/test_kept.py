"""A recomputed pass serves the same tokens by the same experts, whatever its scores are."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointError, checkpoint

from parallel.config import MoEConfig
from parallel.moe.choice import Choice
from parallel.moe.dispatch import AllToAllDispatcher, LocalDispatcher
from parallel.moe.kept import Kept, narrowest, recomputed
from parallel.moe.layer import MoELayer, decision_units
from tests.gpu_branch import Watch, gpu_branch
from tests.ranks import run_ranks

SAMPLES, BINS, MODALITIES, DIM, TOKENS = 8, 3, 2, 16, 64


class Block(nn.Module):
    """A layer whose router sees something else every time it is asked."""

    def __init__(self, settings: dict[str, object], world: int, shift: float) -> None:
        super().__init__()
        config = MoEConfig.model_validate({"experts": 8, "top_k": 2, "hidden": 16, **settings})
        dispatcher = AllToAllDispatcher(torch.distributed.group.WORLD) if world > 1 else LocalDispatcher()
        self.layer = MoELayer(DIM, config, MODALITIES, dispatcher=dispatcher)
        self.choices: list[Choice] = []
        self.layer.observer = self.choices.append
        self.calls, self.shift = 0, shift
        self.layer.router.register_forward_pre_hook(self._disturb)

    def _disturb(self, module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        self.calls += 1
        noise = torch.randn(DIM, generator=torch.Generator().manual_seed(self.calls))
        return (arguments[0] + self.shift * (self.calls - 1) * noise, *arguments[1:])

    def forward(self, x_ND: Tensor, kept: Kept | None = None) -> Tensor:
        index = torch.arange(len(x_ND))
        sample_N, bin_N = index % SAMPLES, index // SAMPLES % BINS
        units = decision_units(self.layer.config, sample_N, bin_N, SAMPLES, BINS)
        y_ND, _ = self.layer(x_ND, index % MODALITIES, *units, kept)
        return y_ND  # type: ignore[no-any-return]


CASES: list[dict[str, object]] = [
    {"router": "joint"},
    {"router": "per_modality", "granularity": "bin"},
    {"router": "disjoint", "granularity": "sample"},
    {"selection": "expert"},
    {"expert_groups": 4, "groups_per_token": 2},
]


def tokens(rank: int) -> Tensor:
    return torch.randn(TOKENS, DIM, generator=torch.Generator().manual_seed(rank)).requires_grad_()


def disturbed(rank: int, world: int) -> list[tuple[int, int, list[str]]]:
    """For each case: choices made, entries by which they differ, and the exchanges of the backward pass."""
    result = []
    for case in CASES:
        block, x = Block(case, world, shift=3.0).bfloat16(), tokens(rank).bfloat16().detach().requires_grad_()
        with gpu_branch():
            y = recomputed(block, x)
            with Watch() as watch:
                y.square().sum().backward()
        first, second = block.choices
        assert x.grad is not None and x.grad.isfinite().all()
        assert watch.waits[""] == 0, watch.found_waits
        differ = int((first.expert_NK != second.expert_NK).sum())
        result.append((len(block.choices), differ, [f"{c.name} {c.dtype}" for c in watch.collectives]))
    return result


JOURNEY = ("int64", "float32", "bfloat16", "bfloat16", "bfloat16", "float32", "bfloat16")


@pytest.mark.parametrize("world", [1, 2])
def test_experts_and_sizes_are_those_of_the_first_pass(world: int) -> None:
    """The router's input moves by three standard deviations in between, and nobody's experts change. The sizes are not
    exchanged again: what is sent backward is the recomputed journey (ids, weights, rows; results), then gradients
    (of results; of weights and rows)."""
    journey = [] if world == 1 else [f"alltoall_base_ torch.{t}" for t in JOURNEY]
    for rank in run_ranks(disturbed, world):
        for choices, differ, exchanges in rank:
            assert (choices, differ) == (2, 0)
            assert exchanges == journey


def test_without_what_is_kept_they_would_change() -> None:
    """What the test above is worth: an ordinary recomputation takes other experts."""
    for case in CASES:
        block, x = Block(case, 1, shift=3.0), tokens(0)
        y = checkpoint(block, x, use_reentrant=False)
        with contextlib.suppress(CheckpointError):  # what comes back does not fit what was kept
            y.square().sum().backward()
        first, second = block.choices
        assert int((first.expert_NK != second.expert_NK).sum()) > 10, case


@pytest.mark.parametrize("case", [{**case, "dropout": 0.3} for case in CASES] + [{"noise": 1.0, "dropout": 0.3}])
def test_recomputation_has_the_bits_of_a_pass_without(case: dict[str, object]) -> None:
    results = []
    for recompute in (False, True):
        block, x = Block(case, 1, shift=0.0), tokens(0)
        torch.manual_seed(3)
        y = recomputed(block, x) if recompute else block(x)
        y.square().sum().backward()
        after = torch.randn(3)
        results.append([y.detach(), x.grad, after, *[p.grad for p in block.parameters() if p.grad is not None]])
    assert len(results[0]) == len(results[1]) > 5
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_only_small_whole_numbers_are_kept() -> None:
    assert [narrowest(n) for n in (127, 128, 32767, 32768)] == [torch.int8, torch.int16, torch.int16, torch.int32]
    kept = Kept()
    ids = torch.tensor([[0, 200], [7, 3]])
    assert kept.ids_once("experts", lambda: ids, 200) is ids
    again = kept.ids_once("experts", lambda: ids + 1, 200)
    assert again.dtype == torch.int64 and torch.equal(again, ids)
    assert kept._values["experts"].dtype == torch.int16
    assert kept.once("sizes", lambda: [1]) == kept.once("sizes", lambda: [2]) == [1]
    nothing = Kept(hold=False)
    assert (nothing.once("sizes", lambda: 1), nothing.once("sizes", lambda: 2)) == (1, 2)
    block = Block({"granularity": "sample"}, 1, shift=0.0)
    kept = Kept()
    block(tokens(0), kept)
    assert {name: value.dtype for name, value in kept._values.items()} == {"experts": torch.int8}
