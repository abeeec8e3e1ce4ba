"""Gradients cross ranks while the backward pass goes on: stage by stage, in fp32, to the rank that owns the result.

When the gradients of a stage's inputs arrive, those of its parameters are complete (`parallel.engine.stages`). They are
moved into a flat fp32 buffer, with zeros for what this rank did not touch, and sent: one reduce-scatter over all ranks
for dense parameters, one over the copies of this rank's experts beside it. What arrives is this rank's part of the
mean. The order is that of the list of stages, from the last to the first, on every rank and whatever it was given to
compute: a stage never overtakes one behind it, and what no input told of is sent after the pass. So all ranks send the
same, and sums have the same bits, whoever is late.

Memory: the gradients of the stage that is being computed, buffers of `IN_FLIGHT` stages, and this rank's parts. With
`once`, micro-batches are added up in the buffers of all stages, and only the last one sends.

Everything runs on the stream of the backward pass, the collectives on streams of their own: a buffer is given back when
that stream has waited for its collective, so no memory is used before it is free, and the host waits for nothing (with
gloo, whose collectives have no stream, it is the host that waits).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from parallel.engine.flat_layout import FlatLayout
from parallel.engine.stages import Stage

IN_FLIGHT = 2


@dataclass(frozen=True)
class Reduction:
    """One collective of a stage: what it carries, and between whom (None: nobody else has these parameters)."""

    layout: FlatLayout
    group: dist.ProcessGroup | None


@dataclass
class _Sent:
    layout: FlatLayout
    buffer_RW: Tensor
    row_W: Tensor
    work: dist.Work | None


class GradientReducer:
    """Reduces the gradients of a model's stages over backward passes, and keeps this rank's part of the mean.

    Args:
        stages: from `stages_of`; reductions: what each of them sends.
        world: ranks over which gradients are averaged; experts too, whose sums come from all tokens.
        once: send in the last micro-batch of a step only (ZeRO-1), instead of in each (ZeRO-2).
    """

    def __init__(
        self, stages: list[Stage], reductions: list[list[Reduction]], world: int, once: bool, device: torch.device
    ) -> None:
        self._stages, self._reductions = stages, reductions
        self._scale, self._once, self._device = 1.0 / world, once, device
        self._sent: deque[list[_Sent]] = deque()
        self._held: dict[int, Sequence[Tensor | None]] = {}
        self._parts: dict[int, Tensor] = {}
        self._in_pass, self._last, self._next = False, True, -1
        self._expect_nothing()
        for number, stage in enumerate(stages):
            for module in stage.modules:
                module.register_forward_pre_hook(partial(self._watch, number), with_kwargs=True)

    @contextmanager
    def backward_pass(self, last: bool) -> Iterator[None]:
        """Around the backward pass of a micro-batch; `last` of its step or not."""
        self._in_pass, self._last, self._next = True, last, len(self._stages) - 1
        try:
            yield
            self._refuse_late_gradients()
            self._send_from(0)
        finally:
            self._in_pass = False
            self._expect_nothing()

    def finish(self) -> dict[int, Tensor]:
        """This rank's part of the mean gradient by number of its optimizer group, fp32; and a fresh start.

        Where collectives have streams, the current one waits for them, and the host does not.
        """
        while self._sent:
            self._collect()
        parts, self._parts = self._parts, {}
        return parts

    # --- when a stage is complete -------------------------------------------------------------------------------------

    def _expect_nothing(self) -> None:
        self._pass = object()  # hooks of graphs that were never walked through belong to an earlier one
        self._pending = [0] * len(self._stages)
        # Also fed by what needs no gradient: nothing tells when that is complete.
        self._open = [False] * len(self._stages)

    def _watch(self, number: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a stage's module computes: its inputs will tell when its gradients are complete."""
        # What is computed again in the backward pass is a graph of its own.
        if self._in_pass or not torch.is_grad_enabled():
            return
        inputs = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.requires_grad]
        self._open[number] |= not inputs
        self._pending[number] += len(inputs)
        for x in inputs:
            x.register_hook(partial(self._arrived, number, self._pass))

    def _arrived(self, number: int, of_pass: object, gradient: Tensor | None) -> None:
        if of_pass is not self._pass or not self._in_pass:
            return
        self._pending[number] -= 1
        if self._pending[number] == 0 and not self._open[number]:
            self._send_from(number)

    def _refuse_late_gradients(self) -> None:
        for stage in self._stages[self._next + 1 :]:
            for name, parameter in stage.parameters:
                if parameter.grad is not None:
                    raise RuntimeError(
                        f"Parameter '{name}' got a gradient after its stage was complete, so it is used outside of it, "
                        "too: leave its module out of the model's stages()."
                    )

    # --- sending and receiving ----------------------------------------------------------------------------------------

    def _send_from(self, number: int) -> None:
        """Send this stage, after those behind it."""
        while self._next >= number:
            self._send(self._next)
            self._next -= 1

    def _send(self, number: int) -> None:
        reductions = self._reductions[number]
        held: Sequence[Tensor | None] = self._held.pop(number, [None] * len(reductions))
        if self._once and not self._last:
            taken = zip(reductions, held, strict=True)
            self._held[number] = [reduction.layout.take(buffer, self._device) for reduction, buffer in taken]
            return
        while len(self._sent) >= IN_FLIGHT:
            self._collect()
        # Both are under way before either is waited for.
        self._sent.append([self._start(r, buffer) for r, buffer in zip(reductions, held, strict=True)])

    def _start(self, reduction: Reduction, held_RW: Tensor | None) -> _Sent:
        layout = reduction.layout
        buffer_RW = layout.take(held_RW, self._device)
        if reduction.group is None:
            return _Sent(layout, buffer_RW, buffer_RW.view(-1), None)
        row_W = torch.empty(layout.width, dtype=torch.float32, device=self._device)
        work = dist.reduce_scatter_tensor(row_W, buffer_RW.view(-1), group=reduction.group, async_op=True)
        return _Sent(layout, buffer_RW, row_W, work)

    def _collect(self) -> None:
        """Wait for the oldest stage, and add what arrived to this rank's parts, always in the order of sending."""
        for sent in self._sent.popleft():
            if sent.work is not None:
                sent.work.wait()
            for number, part in sent.layout.split(sent.row_W.mul_(self._scale)).items():
                if number in self._parts:
                    self._parts[number] += part
                else:
                    self._parts[number] = part
