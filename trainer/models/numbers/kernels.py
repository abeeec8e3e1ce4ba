"""A whole signal by how it answers fixed kernels: what shapes it is made of, how often, and at which scale.

Few recordings do not teach a network which shapes to look for; many fixed ones, of which a linear layer takes what it
needs, do well on them (MiniRocket, arXiv 2012.08791, whose kernels these are: nine samples, three of weight 2 and six
of weight -1, so that a constant is answered by 0). Dilations are octaves. Of several channels a kernel reads one to
three, mixed with equal weights, drawn once for all models.

Each signal is taken about its own means, and answers are in units of their own root mean square over the signal, so
shares depend neither on a level nor on a size, and need no constants of the training part. Of every kernel and dilation
there are, by `Detail`, the shares of time in which the answer is above or below some levels, and how large answers are
beside the signal. Shares are counted by steps with slopes, so that rounding cannot move them.

Answers are looked at at every sample of a signal of up to `Detail.moments`, and of a longer one at so many times, one
in each of as many equal stretches, at a place that moves by the golden ratio, so that no period is met at one phase
alone: the cost of a signal is bounded. Beyond its ends a signal is its mean. One without samples, or that never moves,
has answers of 0.

Shapes: O samples of all signals, P signals, R moments of a signal, C channels, K kernels, J samples of a kernel, X
features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trainer.models.layers.standardise import Constant

LENGTH, PICKED = 9, 3
DILATIONS = (1, 2, 4, 8, 16, 32, 64, 128)
KERNELS = math.comb(LENGTH, PICKED)
MIXED = 3  # most channels of a kernel
GOLDEN = (math.sqrt(5) - 1) / 2
LEAST, RATIO_SCALE = 1e-4, 3.0
READ = LENGTH * len(DILATIONS) * KERNELS  # products for a moment and channel


class Detail(NamedTuple):
    """How finely answers are counted.

    Attributes:
        moments: of a signal, that are looked at, at most.
        levels: in units of an answer's root mean square: the share above one of 0 or more, below one under 0.
        steep: slope of a step, in shares of one a unit.
    """

    moments: int
    levels: tuple[float, ...]
    steep: float

    @property
    def features(self) -> int:
        """X: the levels, and a size, of each kernel and dilation."""
        return len(DILATIONS) * KERNELS * (len(self.levels) + 1)


DETAILS = {
    "kernels": Detail(256, (0.0, 0.7, -0.7), 5.0),
    "fine_kernels": Detail(1024, (0.0, 0.1, 0.3, 0.7, 1.5, -0.1, -0.3, -0.7, -1.5), 20.0),
}
"""By the name that a recipe has for them."""


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

    def __init__(self, channels: int, detail: Detail) -> None:
        super().__init__()
        self.detail = detail
        with torch.device("cpu"):  # drawn one by one, which a model without memory, as `plan` builds it, cannot
            weight = kernels()[None, :, None, :] * mixes(channels)[:, None]
        self.weight = Constant(weight.flatten(1, 2).to(torch.get_default_device()))  # (dilations, J * C, K)

    @torch.no_grad()
    def forward(self, value_OC: Tensor, by_signal: Any, offsets_P1: Tensor, moments: int) -> Tensor:
        """`by_signal`: `Segments` of samples, ascending; `offsets_P1`: where each signal begins; `moments`: R, at least
        `most_moments`."""
        length_P1 = offsets_P1.diff()[:, None]
        at_PR, there_PR = moments_of(length_P1, moments, self.detail.moments)
        moved_OC = value_OC - by_signal.spread(by_signal.mean(value_OC))
        size_P1 = by_signal.mean(moved_OC.square()).mean(1, keepdim=True).sqrt()
        # Behind the last sample one more, the mean: what is read beyond the ends.
        moved_OC = torch.cat([moved_OC, moved_OC.new_zeros(1, value_OC.shape[1])])
        found = []
        for dilation, weight_XK in zip(DILATIONS, self.weight(), strict=True):
            read = []
            for place in range(LENGTH):
                near_PR = at_PR + (place - LENGTH // 2) * dilation
                inside_PR = (near_PR >= 0) & (near_PR < length_P1)
                read.append(moved_OC[torch.where(inside_PR, near_PR + offsets_P1[:-1, None], value_OC.shape[0])])
            answer_PRK = (torch.cat(read, 2) @ weight_XK) * there_PR[..., None]
            found += _features(answer_PRK, there_PR[..., None], size_P1, self.detail)
        return torch.cat(found, 1)


def moments_of(length_P1: Tensor, moments: int, most: int) -> tuple[Tensor, Tensor]:
    """(P, R) int64, the samples that are looked at, and float32, 1 where there is one: the first of each row."""
    number_P1, at_R = length_P1.clamp_max(most), torch.arange(moments, device=length_P1.device)
    stretch_P1 = length_P1.double() / number_P1.clamp_min(1)
    within_PR = (at_R.double() * GOLDEN).frac() * stretch_P1
    at_PR = at_R * length_P1 // number_P1.clamp_min(1) + within_PR.long()
    return at_PR.clamp_max((length_P1 - 1).clamp_min(0)), (at_R < number_P1).float()


def most_moments(offsets_P1: Tensor, detail: Detail) -> int:
    """R of these signals. The host waits if they are on a device."""
    return min(detail.moments, int(offsets_P1.diff().max())) if offsets_P1.shape[0] > 1 else 0


def _features(answer_PRK: Tensor, there_PR1: Tensor, size_P1: Tensor, detail: Detail) -> list[Tensor]:
    """(P, K) each."""
    number_P1 = there_PR1.sum(1).clamp_min(1)
    rms_PK = (answer_PRK.square().sum(1) / number_P1).sqrt()
    # What is smaller than rounding leaves of the signal is no answer.
    far_PK = rms_PK > LEAST * size_P1
    steep_PRK = answer_PRK * torch.where(far_PK, detail.steep / rms_PK.clamp_min(1e-30), 0.0)[:, None]

    def share(level: float) -> Tensor:
        """Of time above it, or below, of one under 0; about 0."""
        sign, centre = (1, 0.5) if level > 0 else (-1, 0.5) if level else (1, 1.0)
        step_PRK = steep_PRK.mul(sign).add_(0.5 - detail.steep * abs(level)).clamp_(0, 1).mul_(there_PR1)
        return 2 * (step_PRK.sum(1) / number_P1) - centre

    shares = [share(level) for level in detail.levels]
    ratio_PK = (rms_PK / size_P1.clamp_min(1e-30)).clamp(LEAST, 1 / LEAST).log() / RATIO_SCALE
    return [*shares, torch.where(far_PK, ratio_PK, math.log(LEAST) / RATIO_SCALE)]


def shares_reference(value_LC: Sequence[Sequence[float]], detail: Detail) -> list[float]:
    """The obvious loops over one signal, in double precision."""
    channels = len(value_LC[0]) if len(value_LC) else 1
    length, mix = len(value_LC), mixes(channels).tolist()
    mean_C = [sum(row[c] for row in value_LC) / length for c in range(channels)] if length else [0.0]
    moved = [[row[c] - mean_C[c] for c in range(channels)] for row in value_LC]
    size = math.sqrt(sum(x * x for row in moved for x in row) / length / channels) if length else 0.0
    looked = min(length, detail.moments)
    stretch = length / looked if looked else 0.0
    times = [min(i * length // looked + int((i * GOLDEN % 1) * stretch), length - 1) for i in range(looked)]
    found: list[float] = []
    for number, dilation in enumerate(DILATIONS):
        columns: list[list[float]] = [[] for _ in range(len(detail.levels) + 1)]
        for kernel, own in enumerate(combinations(range(LENGTH), PICKED)):
            answers = []
            for t in times:
                answer = 0.0
                for place in range(LENGTH):
                    there = t + (place - LENGTH // 2) * dilation
                    if 0 <= there < length:
                        x = sum(mix[number][c][kernel] * moved[there][c] for c in range(channels))
                        answer += (2 if place in own else -1) * x
                answers.append(answer)
            rms = math.sqrt(sum(x * x for x in answers) / looked) if length else 0.0
            far = rms > LEAST * size
            scaled = [x / rms if far else 0.0 for x in answers]

            def share(values: list[float], steep: float = detail.steep) -> float:
                return sum(min(max(steep * x + 0.5, 0.0), 1.0) for x in values) / max(len(values), 1)

            for level, column in zip(detail.levels, columns, strict=False):
                beyond = [x - level if level >= 0 else level - x for x in scaled]
                column.append(2 * share(beyond) - (0.5 if level else 1))
            columns[-1].append(math.log(min(max(rms / size, LEAST), 1 / LEAST) if far else LEAST) / RATIO_SCALE)
        found += [value for column in columns for value in column]
    return found
