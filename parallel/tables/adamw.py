"""AdamW of a table that touches the rows of a step, and gives what updating all rows in every step gives.

A row without a gradient is not left alone by AdamW: its moments fade, its momentum carries it on, and decay shrinks it.
After m steps without gradient, with s = √v of its last step, step j of them (t in all) has moved it by

    lr_t · β1ʲ m / c1_t / (s √β2ʲ / √c2_t + ε)  =  [lr_t · (β1/√β2)ʲ √c2_t / c1_t] · m / (s + ε √c2_t / √β2ʲ)

with c1, c2 the bias corrections. The bracket is a number of the step, not of the row, so its sum over the missed steps
(each shrunk by the decay of the later ones) is one number for each step that a row may have been touched in last. These
numbers are kept (`_Missed`), and a row is brought up to date when it is read, by a handful of operations on that row.
Only ε has a factor that differs from step to step. It is replaced by a mean with the weights of the sum: the arithmetic
one is exact where s >> ε, the harmonic one where s << ε, and in between lies a mean of the two.

So a table that is spread learns what a table that every rank holds learns, up to rounding; `torch.optim.AdamW` over all
rows is the oracle of the tests. Reading writes nothing: what is looked up in a step that is refused stays as it was.

Shapes: L rows here, D width, X rows of a step, T steps since all rows were up to date.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

ENOUGH = 1e-12
"""Momentum that has faded below this share of itself no longer moves a row: 264 steps at β = (0.9, 0.999)."""
AT_ONCE = 1 << 16
"""Rows that are brought up to date together, when all are."""


class _Missed:
    """What rows have missed, by the step in which they were touched last; place 0 is when all were up to date.

    Four numbers each: the product of 1 - lr · weight decay; the sums of the brackets, of these times what stands for ε,
    and of these divided by it.
    """

    def __init__(self, betas: tuple[float, float], eps: float, device: torch.device) -> None:
        beta1, beta2 = betas
        ratio = beta1 / math.sqrt(beta2)
        window = 1 if ratio == 0 else math.ceil(math.log(ENOUGH) / math.log(ratio))
        age = torch.arange(window, 0, -1, dtype=torch.float64)
        # As they lie, so the oldest step first. ε is never 0 here: nothing else keeps an untouched row from 0 / 0.
        eps = max(eps, torch.finfo(torch.float32).tiny)
        fades = [ratio**age, (beta1 / beta2) ** age * eps, beta1**age / eps]
        self._fade_3W = torch.stack(fades).to(device)
        self._device = device
        self.start()

    def start(self) -> None:
        """All rows are up to date."""
        self.steps = 0
        self._sums_4T = self._fresh(1024)

    def _fresh(self, places: int) -> Tensor:
        sums_4T = torch.zeros(4, places, dtype=torch.float64, device=self._device)
        sums_4T[0] = 1.0
        return sums_4T

    def add(self, shrink: float, rate: float, correction: float) -> None:
        """One more step: rows shrink by `shrink`, a bracket is rate · (β1/√β2)ʲ, and for ε stands ε · correction /
        √β2ʲ."""
        self.steps += 1
        before_4T = self._sums_4T[:, : self.steps].mul_(shrink)
        seen = min(self.steps, self._fade_3W.shape[1])
        for sums_T, fade_W, factor in zip(before_4T[1:], self._fade_3W, (1, correction, 1 / correction), strict=True):
            sums_T[-seen:].add_(fade_W[-seen:], alpha=rate * factor)
        if self.steps == self._sums_4T.shape[1]:
            self._sums_4T = torch.cat([self._sums_4T, self._fresh(self.steps)], 1)

    def of(self, place_X: Tensor) -> Tensor:
        """(4, X) float32: decay, sum of brackets, arithmetic and harmonic mean of ε, of rows touched last at these
        places."""
        decay_X, coast_X, times_X, over_X = self._sums_4T.index_select(1, place_X)
        moved_X = coast_X > 0
        mean_X, harmonic_X = (torch.where(moved_X, a / b, 1.0) for a, b in ((times_X, coast_X), (coast_X, over_X)))
        return torch.stack([decay_X, coast_X, mean_X, harmonic_X]).float()


class RowAdamW:
    """Weights, moments and steps of the rows of a table on one rank.

    Args:
        weight_LD: fp32 rows, changed in place. betas, eps, weight_decay: as of `torch.optim.AdamW`.

    Raises:
        ValueError: betas of which momentum outlives the mean square that it is divided by.
    """

    def __init__(self, weight_LD: Tensor, betas: tuple[float, float], eps: float, weight_decay: float) -> None:
        if betas[0] ** 2 >= betas[1]:
            raise ValueError(
                f"optim.betas={list(betas)} do not go with a table that is spread over ranks: the square of the first "
                "must be less than the second, or what a row misses between two uses cannot be summed up"
            )
        self.weight_LD, self.betas, self.eps, self.weight_decay = weight_LD, betas, eps, weight_decay
        self.exp_avg_LD, self.exp_avg_sq_LD = torch.zeros_like(weight_LD), torch.zeros_like(weight_LD)
        self.step = 0
        self._missed = _Missed(betas, eps, weight_LD.device)
        self._place_L = torch.zeros(len(weight_LD), dtype=torch.int32, device=weight_LD.device)

    def read(self, row_X: Tensor) -> Tensor:
        """(X, D) fp32: rows as they are now; nothing is written."""
        return self._now(row_X)[0]

    def update(self, row_X: Tensor, grad_XD: Tensor, lr: float) -> None:
        """One step of the whole table. Rows may be there several times if they have the same gradient each time."""
        beta1, beta2 = self.betas
        self.step += 1
        first, second = 1 - beta1**self.step, 1 - beta2**self.step
        value_XD, avg_XD, sq_XD = self._now(row_X)
        value_XD.mul_(1 - lr * self.weight_decay)
        avg_XD.lerp_(grad_XD, 1 - beta1)
        sq_XD.mul_(beta2).addcmul_(grad_XD, grad_XD, value=1 - beta2)
        value_XD.addcdiv_(avg_XD, sq_XD.sqrt().div_(math.sqrt(second)).add_(self.eps), value=-lr / first)
        self._missed.add(1 - lr * self.weight_decay, lr * math.sqrt(second) / first, math.sqrt(second))
        self._put(row_X, value_XD, avg_XD, sq_XD)

    def catch_up(self) -> None:
        """Bring all rows up to date, so that weights and moments are what AdamW would have made of them."""
        if not self._missed.steps:
            return
        for rows in torch.arange(len(self.weight_LD), device=self.weight_LD.device).split(AT_ONCE):
            self._put(rows, *self._now(rows))
        self.start_at(self.step)

    def start_at(self, step: int) -> None:
        """Weights and moments are those after `step` steps."""
        self.step = step
        self._missed.start()
        self._place_L.zero_()

    def _now(self, row_X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Weights and moments of rows as AdamW would have them by now, new tensors."""
        place_X = self._place_L.index_select(0, row_X)
        decay_X1, coast_X1, mean_X1, harmonic_X1 = self._missed.of(place_X)[:, :, None]
        missed_X1 = (self._missed.steps - place_X)[:, None].float()
        avg_XD = self.exp_avg_LD.index_select(0, row_X)
        sq_XD = self.exp_avg_sq_LD.index_select(0, row_X)
        root_XD = sq_XD.sqrt()
        eps_XD = torch.addcdiv(mean_X1, mean_X1 * (harmonic_X1 - mean_X1), root_XD + mean_X1)
        step_XD = avg_XD / root_XD.add_(eps_XD)
        value_XD = self.weight_LD.index_select(0, row_X).mul_(decay_X1).sub_(step_XD.mul_(coast_X1))
        beta1, beta2 = self.betas
        return value_XD, avg_XD.mul_(beta1**missed_X1), sq_XD.mul_(beta2**missed_X1)

    def _put(self, row_X: Tensor, value_XD: Tensor, avg_XD: Tensor, sq_XD: Tensor) -> None:
        self.weight_LD.index_copy_(0, row_X, value_XD)
        self.exp_avg_LD.index_copy_(0, row_X, avg_XD)
        self.exp_avg_sq_LD.index_copy_(0, row_X, sq_XD)
        self._place_L.index_fill_(0, row_X, self._missed.steps)
