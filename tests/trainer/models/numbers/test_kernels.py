"""Shares of a signal that fixed kernels answer: against loops, and what must not move them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from parallel.moe.segments import Segments
from trainer.models.numbers.kernels import (
    DETAILS,
    KERNELS,
    Detail,
    KernelShares,
    kernels,
    mixes,
    moments_of,
    most_moments,
    shares_reference,
)

COARSE, FINE = DETAILS["kernels"], DETAILS["fine_kernels"]
BOTH = pytest.mark.parametrize("detail", [COARSE, FINE])


def shares(*signals: Tensor, detail: Detail = COARSE) -> Tensor:
    """(P, X) of signals that lie back to back."""
    lengths = torch.tensor([len(signal) for signal in signals])
    signal_O = torch.repeat_interleave(torch.arange(len(signals)), lengths)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    own = KernelShares(signals[0].shape[1], detail)
    by_signal, moments = Segments.of(signal_O, len(signals), ascending=True), most_moments(offsets, detail)
    return own(torch.cat(signals), by_signal, offsets, moments)  # type: ignore[no-any-return]


def walk(length: int, channels: int, seed: int = 0) -> Tensor:
    return torch.randn(length, channels, generator=torch.Generator().manual_seed(seed)).cumsum(0)


@BOTH
@pytest.mark.parametrize("channels", [1, 5])
def test_shares_are_what_loops_over_one_signal_give(channels: int, detail: Detail) -> None:
    signals = [walk(length, channels, length) for length in (23, 1, 9, 0, 12)]
    signals.append(torch.full((7, channels), 3.25))
    if channels == 1:
        signals.append(walk(COARSE.moments + 75, 1))
    found_PX = shares(*signals, detail=detail)
    assert found_PX.shape == (len(signals), detail.features) and found_PX.abs().max() < 3.1
    for signal, found_X in zip(signals, found_PX, strict=True):
        expected_X = torch.tensor(shares_reference(signal.tolist(), detail))
        torch.testing.assert_close(found_X, expected_X, rtol=0, atol=5e-6 * detail.steep)


def test_kernels_answer_shapes_and_no_constant_and_are_the_same_for_everyone() -> None:
    assert kernels().shape == (9, KERNELS) and not kernels().sum(0).any()
    assert len({tuple(column) for column in kernels().T.tolist()}) == KERNELS == 84
    assert torch.equal(mixes(4), mixes(4)) and set((mixes(4) > 0).sum(1).unique().tolist()) == {1, 2, 3}
    torch.testing.assert_close(mixes(4).square().sum(1), torch.ones(8, KERNELS))


def test_of_a_long_signal_so_many_moments_are_looked_at_at_every_phase() -> None:
    most = COARSE.moments
    at_PR, there_PR = moments_of(torch.tensor([[4 * most], [10]]), most, most)
    assert bool(there_PR[0].all()) and int(there_PR[1].sum()) == 10
    assert at_PR[1, :10].tolist() == list(range(10))
    assert torch.equal(at_PR[0] // 4, torch.arange(most))  # one in each stretch
    share = torch.bincount(at_PR[0] % 4) / most
    assert (share - 0.25).abs().max() < 0.01
    # So shares are those of all samples, also of a signal whose period is a stretch; ends are a small part of them.
    beat = torch.tensor([3.0, 0.0, 1.0, 0.0]).repeat(most)[:, None]
    near = slice(0, COARSE.features // 4)  # the first two dilations
    assert (shares(beat)[0, near] - shares(beat[:most])[0, near]).abs().max() < 0.1


@BOTH
def test_level_and_size_move_nothing(detail: Detail) -> None:
    """Also of a signal that rests for most of its time, where an answer of 0 is only rounding away from either side."""
    signal = torch.cat([torch.zeros(200, 2), walk(60, 2), torch.zeros(200, 2)])
    plain, moved = shares(signal, detail=detail), shares(signal * 37.1 + 4.7, detail=detail)
    assert (plain - moved).abs().max() < 2e-4 * detail.steep
    assert (plain - shares(signal.flip(1), detail=detail)).abs().max() > 0.1  # channels are told apart


def test_a_signal_does_not_depend_on_its_neighbours() -> None:
    one, other = walk(40, 3, 1), walk(700, 3, 2)
    torch.testing.assert_close(shares(other, one, other)[1], shares(one)[0], rtol=0, atol=1e-6)


def test_signals_that_differ_in_shape_alone_are_told_apart() -> None:
    """Two sawtooths, one the other backwards: equal values, equal spectrum."""
    up = (torch.arange(120) % 12).float()[:, None]
    assert (shares(up) - shares(up.flip(0))).abs().max() > 0.3
