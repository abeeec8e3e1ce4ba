"""The few exchanges between ranks that training needs besides the model's own: sums, and rows of uneven number.

Only tensors of fixed types cross ranks, never pickled objects.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


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
    """The sum of `values` over all ranks, on every rank (in place)."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def broadcast_json(value: Any, device: torch.device) -> Any:
    """Rank 0's JSON-serialisable value, on every rank."""
    if world_size() == 1:
        return value
    payload = json.dumps(value).encode() if dist.get_rank() == 0 else b""
    size = torch.tensor([len(payload)], device=device)
    dist.broadcast(size, 0)
    buffer = torch.zeros(int(size), dtype=torch.uint8, device=device)
    if payload:
        buffer.copy_(torch.frombuffer(bytearray(payload), dtype=torch.uint8))
    dist.broadcast(buffer, 0)
    return json.loads(bytes(buffer.cpu().numpy()))


def gather_rows(rows: Tensor) -> Tensor:
    """Rows of all ranks, rank after rank, on every rank; ranks may hold different numbers of rows, also none."""
    if world_size() == 1:
        return rows
    counts = torch.zeros(world_size(), dtype=torch.int64, device=rows.device)
    counts[dist.get_rank()] = len(rows)
    dist.all_reduce(counts)
    most = int(counts.max())
    padded = rows.new_zeros(most, *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(world_size())]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts.tolist(), strict=True)])
