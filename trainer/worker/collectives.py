"""The few exchanges between ranks that training needs besides the model's own: sums, and rows of uneven number.

They go through the CPU, on a group of their own (`parallel.control`).

Only tensors of fixed types cross ranks, never pickled objects.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.control import control_group

ROUND_BYTES = 64 * 2**20
"""That one exchange of rows brings to a rank at most, whatever the number of ranks."""


class PeerError(RuntimeError):
    """An exchange between ranks failed: another one did not join it in time, or is gone. The text is for the user."""


@contextmanager
def named_failures(rank: int, step: Callable[[], int], timeout_s: float) -> Iterator[None]:
    """Failures of exchanges between ranks say which rank met them, at which step, and what to do.

    Raises:
        PeerError: from the error of the communication library.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not (isinstance(error, dist.DistError) or "gloo" in text or "NCCL" in text):
            raise
        if "timed out" in text.lower() or "timeout" in text.lower():
            problem = (
                f"rank {rank} waited more than {timeout_s:g} s at step {step()} for a rank that did not join: look at "
                "what the other ranks do (py-spy dump), or raise parallel.timeout_s if a step may take that long"
            )
        else:
            problem = f"rank {rank} lost its connection to another rank at step {step()}: look why that one ended"
        raise PeerError(problem) from error


def world_size() -> int:
    """Ranks of the job; 1 when there is no process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum of `values` over all ranks, on every rank (in place). Collective.

    Numbers on the CPU travel through the group for control, where a rank may be late; those of a GPU through the
    payload's, where it may not.
    """
    if world_size() > 1:
        if values.device.type == "cpu":
            _finish(dist.all_reduce(values, group=control_group(), async_op=True))
        else:
            dist.all_reduce(values)
    return values


def meet() -> None:
    """Return when every rank is here: a rank may be late to it, which is not so in the payload's exchanges."""
    sum_over_ranks(torch.zeros(1))


def broadcast_json(value: Any) -> Any:
    """Rank 0's JSON-serialisable value, on every rank. Collective."""
    if world_size() == 1:
        return value
    payload = json.dumps(value).encode() if dist.get_rank() == 0 else b""
    size = torch.tensor([len(payload)])
    _broadcast(size, 0)
    buffer = torch.zeros(int(size), dtype=torch.uint8)
    if payload:
        buffer.copy_(torch.frombuffer(bytearray(payload), dtype=torch.uint8))
    _broadcast(buffer, 0)
    return json.loads(bytes(buffer.numpy()))


def rows_to_first(rows: Tensor) -> Tensor | None:
    """Rows of all ranks, rank after rank, on rank 0's CPU; None elsewhere. Collective.

    Ranks may hold different numbers of rows, also none. They travel in rounds of at most `ROUND_BYTES` over all ranks,
    as many as there are: nothing is padded, and no rank but the first holds any of another's.
    """
    rows = rows.detach().cpu().contiguous()
    if world_size() == 1:
        return rows
    counts = _counts(len(rows))
    first = dist.get_rank() == 0
    starts = [0, *itertools.accumulate(counts)]
    found = rows.new_empty(starts[-1] if first else 0, *rows.shape[1:])
    most = max(1, ROUND_BYTES // (len(counts) * max(1, _row_bytes(rows))))
    for begin in range(0, max(counts), most):
        sizes = [min(most, max(0, count - begin)) for count in counts]
        mine = rows[begin : begin + most]
        arriving = rows.new_empty(sum(sizes) if first else 0, *rows.shape[1:])
        send = [len(mine), *[0] * (len(counts) - 1)]
        receive = sizes if first else [0] * len(counts)
        _finish(dist.all_to_all_single(arriving, mine, receive, send, group=control_group(), async_op=True))
        if first:
            for start, part in zip(starts, arriving.split(sizes), strict=False):
                found[start + begin : start + begin + len(part)] = part
    return found if first else None


def rows_everywhere(rows: Tensor) -> Tensor:
    """Rows of all ranks, rank after rank, on every rank and where `rows` are. Collective.

    For what every rank needs as a whole. They travel in parts of at most `ROUND_BYTES`; nothing is padded.
    """
    if world_size() == 1:
        return rows
    counts = _counts(len(rows))
    found = rows.new_empty(sum(counts), *rows.shape[1:])
    most = max(1, ROUND_BYTES // max(1, _row_bytes(rows)))
    place = 0
    for rank, count in enumerate(counts):
        for begin in range(0, count, most):
            size = min(most, count - begin)
            mine = rank == dist.get_rank()
            part = (
                rows[begin : begin + size].cpu().contiguous()
                if mine
                else rows.new_empty(size, *rows.shape[1:], device="cpu")
            )
            _broadcast(part, rank)
            found[place : place + size] = part
            place += size
    return found


def _counts(own: int) -> list[int]:
    """What each rank has. Collective."""
    counts = torch.zeros(world_size(), dtype=torch.int64)
    counts[dist.get_rank()] = own
    found: list[int] = sum_over_ranks(counts).tolist()
    return found


def _row_bytes(rows: Tensor) -> int:
    return math.prod(rows.shape[1:]) * rows.element_size()


def _broadcast(values: Tensor, rank: int) -> None:
    _finish(dist.broadcast(values, rank, group=control_group(), async_op=True))


def _finish(work: dist.Work | None) -> None:
    assert work is not None
    work.wait()
