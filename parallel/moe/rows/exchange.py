"""Rows on their way between the ranks of a group, and back again in the backward pass.

`depart` starts a journey and `land` ends it; in between there is time for other work. In the backward pass gradients
make the same journey home: the derivative of landing starts it, that of departure ends it, so what was computed in
between forward has its derivative in between, too.

Shapes: P pairs of token and rank that leave, S that arrive, K places a token, D width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Journey:
    """Exchanges among the ranks of `group`, all of the same rows: send[r] rows go to rank r, receive[r] come from it.

    Several tensors travel one after the other, in the order in which they depart.
    """

    def __init__(self, group: dist.ProcessGroup, send: list[int], receive: list[int]) -> None:
        self.group, self.send, self.receive = group, send, receive
        self._under_way: list[tuple[Any, Tensor]] = []
        self.home: list[Tensor] = []  # gradients on their way back

    def start(self, *tensors: Tensor, home: bool = False) -> list[Tensor]:
        """What each will have brought when the journey ends; until then there is nothing in it."""
        send, receive = (self.receive, self.send) if home else (self.send, self.receive)
        arriving = [tensor.new_empty(sum(receive), *tensor.shape[1:]) for tensor in tensors]
        for tensor, into in zip(tensors, arriving, strict=True):
            leaving = tensor.contiguous()
            work = dist.all_to_all_single(into, leaving, receive, send, group=self.group, async_op=True)
            # What leaves is kept until it has landed: the exchange still reads it when this function has returned.
            self._under_way.append((work, leaving))
        return arriving

    def end(self) -> None:
        for work, _ in self._under_way:
            work.wait()  # of gloo the host waits here, of NCCL only the device's stream
        self._under_way.clear()


class _Depart(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, journey: Journey, labels_PX: Tensor | None, *rows: Tensor) -> Any:
        ctx.journey = journey
        labels = [] if labels_PX is None else [labels_PX]
        arriving = journey.start(*labels, *rows)
        ctx.mark_non_differentiable(*arriving[: len(labels)])
        return tuple(arriving)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        # Autograd has run `_Land.backward` before, which sent the gradients off; here they arrive.
        ctx.journey.end()
        home, ctx.journey.home = ctx.journey.home, []
        return None, None, *home


class _Land(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, journey: Journey, *rows: Tensor) -> Any:
        ctx.journey = journey
        journey.end()
        # The same rows, not copied: `_Depart` has returned the buffers that were filled meanwhile.
        return tuple(row.view_as(row) for row in rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        ctx.journey.home = ctx.journey.start(*grads, home=True)
        # Nobody reads these: they have the shape that autograd asks for, and `_Depart.backward` passes on what arrives.
        return None, *grads


def depart(journey: Journey, labels_PX: Tensor | None, *rows: Tensor) -> list[Tensor]:
    """Send labels (whole numbers, no gradient; they go first) and rows off.

    Returns:
        [labels,] rows: buffers that are filled by `land` at the latest. Rows go through it; labels may be read after.
    """
    return list(_Depart.apply(journey, labels_PX, *rows))


def land(journey: Journey, *rows: Tensor) -> tuple[Tensor, ...]:
    """What arrived, in place of the buffers of `depart`."""
    return _Land.apply(journey, *rows)


def exchange_rows(x_RD: Tensor, group: dist.ProcessGroup, send: list[int], receive: list[int]) -> Tensor:
    """Send the first send[0] rows to rank 0 of the group, the next send[1] to rank 1, ...; receive likewise, in rank
    order. Differentiable."""
    journey = Journey(group, send, receive)
    return land(journey, *depart(journey, None, x_RD))[0]
