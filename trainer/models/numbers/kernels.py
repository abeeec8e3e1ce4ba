"""A whole signal by how it answers fixed kernels: what shapes it is made of, how often, and at which scale.

Few recordings do not teach a network which shapes to look for; many fixed ones, of which a linear layer takes what it
needs, do well on them (MiniRocket, arXiv 2012.08791, whose kernels these are: nine samples, three of weight 2 and six
of weight -1, so that a constant is answered by 0). Dilations are octaves. Of several channels a kernel reads one to
three, mixed with equal weights, drawn once for all models.

Each signal is taken about its own means, and answers are in units of their own root mean square over the signal, so
shares depend neither on a level nor on a size, and need no constants of the training part. Of every kernel and dilation
there are four features: the shares of time in which the answer is above 0, above `FAR` and below -`FAR`, and how large
answers are beside the signal. Shares are counted by steps with slopes (`STEEP`), so that rounding cannot move them.

Beyond its ends a signal is its mean. One without samples, or that never moves, has answers of 0.

Shapes: O samples of all signals, P signals, C channels, K kernels, J samples of a kernel, X features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from trainer.models.layers.standardise import Constant

LENGTH, PICKED = 9, 3
DILATIONS = (1, 2, 4, 8, 16, 32, 64, 128)
KERNELS = math.comb(LENGTH, PICKED)
MIXED = 3  # most channels of a kernel
FAR, STEEP = 0.7, 5.0
LEAST, RATIO_SCALE = 1e-4, 3.0
FEATURES = len(DILATIONS) * KERNELS * 4
READ = LENGTH * len(DILATIONS) * KERNELS  # products for a sample and channel


def kernels() -> Tensor:
    """(J, K), float32."""
    rows = [[2.0 if place in own else -1.0 for place in range(LENGTH)] for own in combinations(range(LENGTH), PICKED)]
    return torch.tensor(rows).T.contiguous()


def mixes(channels: int) -> Tensor:
    """(dilations, C, K): the weight of each channel in each kernel, the same for every model and seed."""
    draw = torch.Generator().manual_seed(channels)
    mix = torch.zeros(len(DILATIONS), channels, KERNELS)
    for dilation in range(len(DILATIONS)):
        for kernel in range(KERNELS):
            number = min(channels, 1 + int(torch.randint(MIXED, (), generator=draw)))
            mix[dilation, torch.randperm(channels, generator=draw)[:number], kernel] = number**-0.5
    return mix


class KernelShares(nn.Module):
    """Signals -> (P, X), each feature about between -1 and 1. Nothing is learned, and nothing is learned through it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        weight = kernels()[None, :, None, :] * mixes(channels)[:, None]
        self.weight = Constant(weight.flatten(1, 2))  # (dilations, J * C, K)

    @torch.no_grad()
    def forward(self, value_OC: Tensor, by_signal: Any, offsets_P1: Tensor) -> Tensor:
        """`by_signal`: `Segments` of samples, ascending; `offsets_P1`: where each signal begins."""
        samples = value_OC.shape[0]
        at_O = torch.arange(samples, device=value_OC.device)
        first_O, end_O = by_signal.spread(offsets_P1[:-1]), by_signal.spread(offsets_P1[1:])
        moved_OC = value_OC - by_signal.spread(by_signal.mean(value_OC))
        size_P1 = by_signal.mean(moved_OC.square()).mean(1, keepdim=True).sqrt()
        found = []
        for dilation, weight_XK in zip(DILATIONS, self.weight(), strict=True):
            read = []
            for place in range(LENGTH):
                there_O = at_O + (place - LENGTH // 2) * dilation
                inside_O = (there_O >= first_O) & (there_O < end_O)
                read.append(moved_OC[there_O.clamp(0, max(samples - 1, 0))] * inside_O[:, None])
            answer_OK = torch.cat(read, 1) @ weight_XK
            found += _features(answer_OK, size_P1, by_signal)
        return torch.cat(found, 1)


def _features(answer_OK: Tensor, size_P1: Tensor, by_signal: Any) -> list[Tensor]:
    """(P, K) each."""
    rms_PK = by_signal.mean(answer_OK.square()).sqrt()
    # What is smaller than rounding leaves of the signal is no answer.
    far_PK = rms_PK > LEAST * size_P1
    scaled_OK = answer_OK * by_signal.spread(torch.where(far_PK, 1 / rms_PK.clamp_min(1e-30), 0.0))
    above_OK, high_OK, low_OK = (
        (STEEP * scaled + 0.5).clamp(0, 1) for scaled in (scaled_OK, scaled_OK - FAR, -FAR - scaled_OK)
    )
    ratio_PK = (rms_PK / size_P1.clamp_min(1e-30)).clamp(LEAST, 1 / LEAST).log() / RATIO_SCALE
    shares = [2 * by_signal.mean(above_OK) - 1, *(2 * by_signal.mean(own_OK) - 0.5 for own_OK in (high_OK, low_OK))]
    return [*shares, torch.where(far_PK, ratio_PK, math.log(LEAST) / RATIO_SCALE)]


def shares_reference(value_LC: Sequence[Sequence[float]]) -> list[float]:
    """The obvious loops over one signal, in double precision."""
    channels = len(value_LC[0]) if len(value_LC) else 1
    length, mix = len(value_LC), mixes(channels).tolist()
    mean_C = [sum(row[c] for row in value_LC) / length for c in range(channels)] if length else [0.0]
    moved = [[row[c] - mean_C[c] for c in range(channels)] for row in value_LC]
    size = math.sqrt(sum(x * x for row in moved for x in row) / length / channels) if length else 0.0
    found: list[float] = []
    for number, dilation in enumerate(DILATIONS):
        columns: list[list[float]] = [[], [], [], []]
        for kernel, own in enumerate(combinations(range(LENGTH), PICKED)):
            answers = []
            for t in range(length):
                answer = 0.0
                for place in range(LENGTH):
                    there = t + (place - LENGTH // 2) * dilation
                    if 0 <= there < length:
                        x = sum(mix[number][c][kernel] * moved[there][c] for c in range(channels))
                        answer += (2 if place in own else -1) * x
                answers.append(answer)
            rms = math.sqrt(sum(x * x for x in answers) / length) if length else 0.0
            far = rms > LEAST * size
            scaled = [x / rms if far else 0.0 for x in answers]

            def share(values: list[float]) -> float:
                return sum(min(max(STEEP * x + 0.5, 0.0), 1.0) for x in values) / max(len(values), 1)

            columns[0].append(2 * share(scaled) - 1)
            columns[1].append(2 * share([x - FAR for x in scaled]) - 0.5)
            columns[2].append(2 * share([-FAR - x for x in scaled]) - 0.5)
            columns[3].append(math.log(min(max(rms / size, LEAST), 1 / LEAST) if far else LEAST) / RATIO_SCALE)
        found += [value for column in columns for value in column]
    return found
