"""The few exchanges between ranks that training needs besides the model's own: sums, and rows of uneven number.

They go through the CPU, on a group of their own (`parallel.control`).

Only tensors of fixed types cross ranks, never pickled objects.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.control import LONGEST_WAIT_S, control_group
from trainer.worker.heartbeat import current

logger = logging.getLogger(__name__)

ROUND_BYTES = 64 * 2**20
"""That one exchange of rows brings to a rank at most, whatever the number of ranks."""


class PeerError(RuntimeError):
    """An exchange between ranks failed: another one did not join it in time, or is gone. The text is for the user."""


@contextmanager
def named_failures(timeout_s: float) -> Iterator[None]:
    """Failures of exchanges between ranks say which rank met them, doing what, which rank is gone, and what to do.

    Raises:
        PeerError: from the error of the communication library.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if isinstance(error, PeerError) or not (isinstance(error, dist.DistError) or "gloo" in text or "NCCL" in text):
            raise
        raise _lost(error, timeout_s) from error


def _lost(error: RuntimeError, timeout_s: float) -> PeerError:
    """An exchange failed with this error: what that means."""
    watch = current()
    gone = watch.find_gone() if watch is not None else None
    where = f"at {watch.doing}" if watch is not None else "before the job"
    rank = dist.get_rank()
    if gone is not None:
        return PeerError(_gone_words(gone))
    if "timed out" in str(error).lower() or "timeout" in str(error).lower():
        return PeerError(
            f"rank {rank} waited more than {timeout_s:g} s {where} for a rank that lives and did not join: look at "
            "what the other ranks do (py-spy dump), or raise parallel.timeout_s if an exchange inside a step may take "
            "that long"
        )
    return PeerError(f"rank {rank} lost its connection to another rank {where}: look why that one ended")


def _gone_words(gone: str) -> str:
    watch = current()
    assert watch is not None
    return f"rank {watch.rank} cannot go on at {watch.doing}: {gone}; look at that rank's log and its host's memory"


def world_size() -> int:
    """Ranks of the job; 1 when there is no process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def own_rank() -> int:
    """Of this process; 0 when there is no process group."""
    return dist.get_rank() if dist.is_initialized() else 0


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
    found: Any = json.loads(broadcast_bytes(json.dumps(value).encode() if dist.get_rank() == 0 else b""))
    return found


def broadcast_bytes(payload: bytes) -> bytes:
    """Rank 0's bytes, on every rank. Collective."""
    if world_size() == 1:
        return payload
    own = payload if dist.get_rank() == 0 else b""
    size = torch.tensor([len(own)])
    _broadcast(size, 0)
    buffer = torch.zeros(int(size), dtype=torch.uint8)
    if own:
        buffer.copy_(torch.frombuffer(bytearray(own), dtype=torch.uint8))
    _broadcast(buffer, 0)
    return buffer.numpy().tobytes()


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


def exchange_rows(pieces: list[Tensor]) -> Tensor:
    """What every rank has for this one, rank after rank, on the CPU; `pieces`: this rank's rows for each. Collective.

    They travel in rounds that bring to a rank at most `ROUND_BYTES`; nothing is padded.
    """
    pieces = [piece.detach().cpu().contiguous() for piece in pieces]
    if world_size() == 1:
        return pieces[0]
    rank, ranks = dist.get_rank(), world_size()
    counts_RR = torch.zeros(ranks, ranks, dtype=torch.int64)
    counts_RR[rank] = torch.tensor([len(piece) for piece in pieces])
    sum_over_ranks(counts_RR)
    arriving = counts_RR[:, rank].tolist()
    starts = [0, *itertools.accumulate(arriving)]
    found = pieces[0].new_empty(starts[-1], *pieces[0].shape[1:])
    most = max(1, ROUND_BYTES // (ranks * max(1, _row_bytes(pieces[0]))))
    for begin in range(0, int(counts_RR.max()), most):
        mine = [piece[begin : begin + most] for piece in pieces]
        sizes = [min(most, max(0, count - begin)) for count in arriving]
        part = found.new_empty(sum(sizes), *found.shape[1:])
        send = [len(piece) for piece in mine]
        _finish(dist.all_to_all_single(part, torch.cat(mine), sizes, send, group=control_group(), async_op=True))
        for start, rows in zip(starts, part.split(sizes), strict=False):
            found[start + begin : start + begin + len(rows)] = rows
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
    """Wait as long as every rank lives, however late one is.

    Raises PeerError: a rank is gone.
    """
    assert work is not None
    watch = current()
    if watch is None:
        work.wait()
        return
    watch.exchanges += 1
    start, said_s = time.monotonic(), watch.timeout_s
    while True:
        try:
            # Once it has ended, for its result; before, a wait that was too short looks like an exchange that failed.
            ended = work.is_completed()
            work.wait(timedelta(seconds=watch.interval_s))
            return
        except RuntimeError as error:
            if ended:
                raise _lost(error, LONGEST_WAIT_S) from error
        if watch.verdict is not None:
            raise PeerError(_gone_words(watch.verdict))
        waited_s = time.monotonic() - start
        if watch.rank == 0 and waited_s > said_s:
            said_s *= 2
            logger.warning("waiting for %.0f s at %s for %s", waited_s, watch.doing, watch.awaited() or "a late rank")
