"""Initial weights of experts: a function of (seed, layer, global expert id) and of nothing else. (Rows of tables:
`parallel.tables.initial`.)

Each expert has a generator of its own, so threads draw experts side by side and the numbers are the same on any number
of threads, ranks and devices: they are drawn by the CPU's generator, also for a GPU, whose own gives others. Drawing is
the start of a rank and nothing else runs then, so it takes every core that the process may use.

What a checkpoint is going to fill need not be drawn:

    with undrawn():
        model = build()
    load(model)
    check_filled(model)

Until they are filled such experts hold NaN, so nothing that is computed with them looks like a result.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

# Read where experts are made, which is far below where it is known that a checkpoint will fill them; a type of job that
# somebody else has written builds its model without knowing of it.
_UNDRAWN: ContextVar[bool] = ContextVar("undrawn", default=False)


def generator_for(*key: object) -> torch.Generator:
    """A CPU generator seeded by a key, so that weights depend on names and not on who is initialised first or where."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


@contextmanager
def undrawn() -> Iterator[None]:
    """Experts that this thread makes inside are left without values, for a checkpoint to fill."""
    token = _UNDRAWN.set(True)
    try:
        yield
    finally:
        _UNDRAWN.reset(token)


class Drawn(nn.Module):
    """A module whose parameters are drawn when it is made, unless that is `undrawn`.

    Attributes:
        waiting: whether it was left undrawn and nothing has been said to fill it yet.
    """

    waiting = False

    def draw(self) -> None:
        """Give every parameter its initial values."""
        raise NotImplementedError

    def start(self) -> None:
        """For the end of `__init__`: draw, or wait for a checkpoint. On the meta device there is nothing to draw."""
        parameters = list(self.parameters())
        if any(parameter.is_meta for parameter in parameters):  # the plan of a run needs shapes only
            return
        self.waiting = _UNDRAWN.get()
        if not self.waiting:
            self.draw()
            return
        with torch.no_grad():
            for parameter in parameters:
                parameter.fill_(torch.nan)


def draw_uniform(stacks: Sequence[tuple[Tensor, int]], keys: Sequence[tuple[object, ...]]) -> None:
    """Fill row i of every stack with uniform numbers in ±1/√fan_in, drawn by the generator of key i.

    Args:
        stacks: (parameter, fan_in); one row a key, drawn in the order of the stacks.
    """

    def draw(row: int) -> None:
        generator = generator_for(*keys[row])
        for stack, fan_in in stacks:
            # The generator's numbers are fp32 on a CPU, wherever and in which format they are kept.
            block = torch.empty(stack.shape[1:]).uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=generator)
            # A thread begins with gradients on, whatever the caller has set.
            stack[row].detach().copy_(block)

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(min(cores, len(keys)) or 1) as threads:
        list(threads.map(draw, range(len(keys))))


def check_filled(model: nn.Module) -> None:
    """Every number of every expert that was left undrawn has been set.

    Frozen experts are in no checkpoint: those that nothing has filled are drawn now.

    Raises:
        RuntimeError: trained experts still hold numbers that nothing has set; names the parameter.
    """
    for prefix, module in model.named_modules():
        if not isinstance(module, Drawn) or not module.waiting:
            continue
        unset = {
            name: int(p.isnan().sum()) for name, p in module.named_parameters() if p.numel() and bool(p.amax().isnan())
        }
        if unset and not any(parameter.requires_grad for parameter in module.parameters()):
            module.draw()
        elif unset:
            name, number = next(iter(unset.items()))
            raise RuntimeError(
                f"{number} of {module.get_parameter(name).numel()} numbers of {prefix}.{name} are not set after the "
                "checkpoint was read: it is incomplete, or holds numbers that are not finite; use an earlier one"
            )
        module.waiting = False
