"""What one case takes: seconds on the device's own clock, peak memory, and where the host waited for the device."""

from __future__ import annotations

import gc
import statistics
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

WARM_UP = 2
# How torch begins its warning about an operation that waits.
WAITS = "called a synchronizing"
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Taken:
    """A case's seconds (median), the most memory allocated for it (bytes; None on a CPU), and its waits by line."""

    seconds: float
    peak: int | None
    waits: Counter[str] = field(default_factory=Counter)


def timed(device: torch.device, call: Callable[[], object], rounds: int, base: int = 0) -> Taken:
    """Median of `rounds` calls after two that warm up; then one more, in which waits are counted.

    Args:
        base: bytes that were allocated before the case began (`held`) and are not its own.
    """
    gpu = device.type == "cuda"
    for _ in range(WARM_UP):
        call()
    if gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    times = [_once(device, call) for _ in range(rounds)]
    peak = torch.cuda.max_memory_allocated(device) - base if gpu else None
    return Taken(statistics.median(times), peak, count_waits(call) if gpu else Counter())


def _once(device: torch.device, call: Callable[[], object]) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def count_waits(call: Callable[[], object]) -> Counter[str]:
    """How often the host waited for the device in one call, by line of the program; of a backward pass all are put
    down to the line that started it.

    Torch's own warnings say it: of `.item()`, `nonzero`, copies from pageable memory and the like. Waiting for an event
    or for all of a device is not among them.
    """
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return Counter(_place(w.filename, w.lineno) for w in said if WAITS in str(w.message))


def _place(file: str, line: int) -> str:
    path = Path(file)
    return f"{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path.name}:{line}"


def best_dense(device: torch.device, sizes: list[int], rounds: int) -> float:
    """FLOP/s of the fastest square bf16 product among these sizes."""
    found = []
    for size in sizes:
        a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
        found.append(2 * size**3 / timed(device, lambda a=a: a @ a, rounds).seconds)  # type: ignore[misc]
    return max(found)


def held(device: torch.device) -> int:
    """Bytes that tensors occupy on the device now; 0 on a CPU, where nobody counts them."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def free(device: torch.device) -> None:
    """What the last case held is given back, so that the next one's peak is its own."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
