"""Where the gradients of one collective lie in its buffer.

ZeRO gives each rank of a group of R ranks one R-th of every flat optimizer group. A reduce-scatter hands rank r the
r-th row of a buffer, so a row is what one rank owns: its part of each of the optimizer groups that travel together, one
beside the other. A parameter that several ranks share lies over several rows.

Shapes: R ranks, W elements of a row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class FlatGroup:
    """One optimizer group, flat: its number in the optimizer, elements that a rank owns, and each parameter's start."""

    number: int
    owned: int
    starts: list[tuple[nn.Parameter, int]]


@dataclass(frozen=True)
class _Place:
    """`rows` x `width` elements of the buffer from (`row`, `column`); they are elements `start`.. of a parameter."""

    start: int
    row: int
    rows: int
    column: int
    width: int

    def of(self, buffer_RW: Tensor) -> Tensor:
        return buffer_RW[self.row : self.row + self.rows, self.column : self.column + self.width]


class FlatLayout:
    """The buffer of optimizer groups that are reduced by one collective over `ranks` ranks."""

    def __init__(self, groups: list[FlatGroup], ranks: int) -> None:
        self.owned = {group.number: group.owned for group in groups}
        self.width, self.ranks = sum(self.owned.values()), ranks
        # A group that is alone is contiguous, whoever owns which part: one long row.
        alone = len(groups) == 1
        self._shape = (1, ranks * self.width) if alone else (ranks, self.width)
        self._parameters: list[tuple[nn.Parameter, list[_Place]]] = []
        self._padding: list[_Place] = []
        column = 0
        for group in groups:
            size = group.owned * (ranks if alone else 1)
            end = 0
            for parameter, start in group.starts:
                self._parameters.append((parameter, list(_places(start, parameter.numel(), size, column))))
                end = start + parameter.numel()
            self._padding += _places(end, group.owned * ranks - end, size, column)
            column += size

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter, _ in self._parameters]

    def take(self, buffer_RW: Tensor | None, device: torch.device) -> Tensor:
        """Move the parameters' gradients into a new fp32 buffer, or add them to one; they are freed.

        What has no gradient counts as zeros.
        """
        fresh = buffer_RW is None
        if buffer_RW is None:
            buffer_RW = torch.empty(self._shape, dtype=torch.float32, device=device)
        targets, values = [], []
        for parameter, places in self._parameters:
            if parameter.grad is not None:
                flat = parameter.grad.reshape(-1)
                targets += [place.of(buffer_RW) for place in places]
                values += [flat[p.start : p.start + p.rows * p.width].view(p.rows, p.width) for p in places]
            elif fresh:
                for place in places:
                    place.of(buffer_RW).zero_()
            parameter.grad = None
        if fresh:
            for place in self._padding:
                place.of(buffer_RW).zero_()
        if targets:
            (torch._foreach_copy_ if fresh else torch._foreach_add_)(targets, values)
        return buffer_RW

    def split(self, row_W: Tensor) -> dict[int, Tensor]:
        """This rank's row, cut into its parts of the optimizer groups, by their number."""
        return dict(zip(self.owned, row_W.split(list(self.owned.values())), strict=True))


def _places(start: int, numel: int, size: int, column: int) -> Iterator[_Place]:
    """Where elements [start, start + numel) of a flat group lie whose rows have `size` elements from `column` on."""
    done = 0
    while done < numel:
        row, inside = divmod(start + done, size)
        left = numel - done
        # The rest of a row that has begun, then all whole rows at once, then the beginning of the last one.
        rows = left // size if inside == 0 and left >= size else 1
        width = size if rows > 1 else min(size - inside, left)
        yield _Place(done, row, rows, column + inside, width)
        done += rows * width
