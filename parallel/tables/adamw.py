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
from collections.abc import Iterator

import torch
from torch import Tensor

from parallel.moe.grouped_matmul import on_gpu

ENOUGH = 1e-12
"""Momentum that has faded below this share of itself no longer moves a row: 264 steps at β = (0.9, 0.999)."""
AT_ONCE = 1 << 23
"""Elements that are brought up to date together, when all are."""
IN_CACHE = 1 << 15
"""Elements that a CPU works on at once: what is made on the way to a row's new value stays in a core's cache."""


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
        # As they lie, so the oldest step first. ε is never 0 here, nor is its square in fp32: nothing else keeps an
        # untouched row from 0 / 0.
        eps = max(eps, 1e-18)
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

    def of(self, place_X: Tensor) -> list[Tensor]:
        """Decay, sum of brackets, arithmetic and harmonic mean of ε, each [X], of rows touched last at these places."""
        decay_X, coast_X, times_X, over_X = self._sums_4T.index_select(1, place_X)
        moved_X = coast_X > 0
        mean_X, harmonic_X = (torch.where(moved_X, a / b, 1.0) for a, b in ((times_X, coast_X), (coast_X, over_X)))
        return [decay_X, coast_X, mean_X, harmonic_X]


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
        self.place_L = torch.zeros(len(weight_LD), dtype=torch.int32, device=weight_LD.device)

    def read(self, row_X: Tensor) -> Tensor:
        """(X, D) fp32: rows as they are now; nothing is written."""
        value_XD = self.weight_LD.new_empty(len(row_X), self.weight_LD.shape[1])
        for rows, numbers, values in self._portions(row_X, self._numbers(row_X), value_XD):
            moments = (moment.index_select(0, rows) for moment in (self.exp_avg_LD, self.exp_avg_sq_LD))
            values.copy_(self._value(rows, numbers, *moments))
        return value_XD

    def update(self, row_X: Tensor, grad_XD: Tensor, lr: float, scale: float = 1.0) -> None:
        """One step of the whole table, by gradients times `scale`.

        On a GPU a row may be there several times, with the same gradient each time; on a CPU it may not.
        """
        beta1, beta2 = self.betas
        self.step += 1
        step = torch.full((), float(self.step), device=row_X.device)
        for rows, numbers, grads in self._portions(row_X, self._numbers(row_X), grad_XD):
            value_XD, avg_XD, sq_XD = self._now(rows, numbers)
            # What `torch.optim.AdamW(fused=True)` calls, on these rows.
            torch._fused_adamw_(
                [value_XD],
                [grads * scale],
                [avg_XD],
                [sq_XD],
                [],
                [step],
                lr=lr,
                beta1=beta1,
                beta2=beta2,
                weight_decay=self.weight_decay,
                eps=self.eps,
                amsgrad=False,
                maximize=False,
            )
            self._put(rows, self._missed.steps + 1, value_XD, avg_XD, sq_XD)
        second = math.sqrt(1 - beta2**self.step)
        self._missed.add(1 - lr * self.weight_decay, lr * second / (1 - beta1**self.step), second)

    def catch_up(self) -> None:
        """Bring all rows up to date, so that weights and moments are what AdamW would have made of them."""
        if not self._missed.steps:
            return
        for rows in torch.arange(len(self.weight_LD), device=self.weight_LD.device).split(self._rows(AT_ONCE)):
            for some, numbers in self._portions(rows, self._numbers(rows)):
                self._put(some, 0, *self._now(some, numbers))
        self.start_at(self.step)

    def start_at(self, step: int) -> None:
        """Weights and moments are those after `step` steps."""
        self.step = step
        self._missed.start()
        self.place_L.zero_()

    def _numbers(self, row_X: Tensor) -> Tensor:
        """(X, 6) fp32, of each row: decay, coast, two means of ε, and what is left of the moments."""
        place_X = self.place_L.index_select(0, row_X)
        missed_X = (self._missed.steps - place_X).double()
        fades = [beta**missed_X for beta in self.betas]
        return torch.stack([*self._missed.of(place_X), *fades], 1).float()

    def _now(self, row_X: Tensor, numbers_X6: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Weights and moments of rows as AdamW would have them by now, new tensors."""
        avg_XD = self.exp_avg_LD.index_select(0, row_X)
        sq_XD = self.exp_avg_sq_LD.index_select(0, row_X)
        value_XD = self._value(row_X, numbers_X6, avg_XD, sq_XD)
        return value_XD, avg_XD.mul_(numbers_X6[:, 4:5]), sq_XD.mul_(numbers_X6[:, 5:6])

    def _value(self, row_X: Tensor, numbers_X6: Tensor, avg_XD: Tensor, sq_XD: Tensor) -> Tensor:
        """Rows by now, of these moments."""
        decay_X1, coast_X1, mean_X1, harmonic_X1, _, _ = numbers_X6.split(1, 1)
        # With s and the means a, h of ε: 1 / (s + ε') where ε' = a + a (h - a) / (s + a), which is a or h at the ends.
        root_XD = sq_XD.sqrt().add_(mean_X1)
        coast_XD = (avg_XD * coast_X1).mul_(root_XD)
        value_XD = self.weight_LD.index_select(0, row_X).mul_(decay_X1)
        return value_XD.addcdiv_(coast_XD, root_XD.square_().add_(mean_X1 * (harmonic_X1 - mean_X1)), value=-1.0)

    def _put(self, row_X: Tensor, place: int, value_XD: Tensor, avg_XD: Tensor, sq_XD: Tensor) -> None:
        self.weight_LD.index_copy_(0, row_X, value_XD)
        self.exp_avg_LD.index_copy_(0, row_X, avg_XD)
        self.exp_avg_sq_LD.index_copy_(0, row_X, sq_XD)
        self.place_L.index_fill_(0, row_X, place)

    def _portions(self, *parts: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Parts of the same number of rows, a portion of each at a time; on a GPU whole, where each costs a launch."""
        step = max(1, len(parts[0])) if on_gpu(self.weight_LD) else self._rows(IN_CACHE)
        return zip(*(part.split(step) for part in parts), strict=True)

    def _rows(self, elements: int) -> int:
        return max(1, elements // self.weight_LD.shape[1])
