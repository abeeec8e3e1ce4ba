"""What accelerators can do at most: the yardstick of `perf/mfu` and the input of the cost model.

Figures are the makers' for dense matrix products (no sparsity) and for memory and links in one direction. A processor
that is not in the table, every CPU among them, is measured once with a short matrix product instead.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import torch

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """One accelerator.

    Attributes:
        marks: words that the driver's name of the device must all contain.
        bf16, fp32: FLOP/s of matrix products. memory: bytes that a process can use. memory_rate: bytes/s.
        link: bytes/s to the other devices of its host. network: bytes/s to other hosts, its share of the host's.
        per_host: devices of a usual host. efficiency: share of the peak that large dense products reach.
    """

    name: str
    marks: tuple[str, ...]
    bf16: float
    fp32: float
    memory: float
    memory_rate: float
    link: float
    network: float
    per_host: int = 8
    efficiency: float = 0.65

    def peak(self, precision: str) -> float:
        """FLOP/s in this precision (fp32 or bf16)."""
        return self.bf16 if precision == "bf16" else self.fp32


DEVICES = (
    Device("b200", ("B200",), 2250e12, 75e12, 178 * GIB, 8.0e12, 900e9, 50e9),
    Device("h200", ("H200",), 989e12, 67e12, 139 * GIB, 4.8e12, 450e9, 50e9),
    Device("h100", ("H100",), 989e12, 67e12, 79 * GIB, 3.35e12, 450e9, 50e9),
    Device("a100", ("A100", "80GB"), 312e12, 19.5e12, 79 * GIB, 2.0e12, 300e9, 25e9),
    Device("a100-40", ("A100",), 312e12, 19.5e12, 39 * GIB, 1.55e12, 300e9, 25e9),
    Device("l40s", ("L40S",), 362e12, 91.6e12, 44 * GIB, 0.86e12, 32e9, 25e9),
    Device("l4", ("L4",), 121e12, 30.3e12, 22 * GIB, 0.3e12, 32e9, 12.5e9),
)


def find_device(name: str) -> Device:
    """The device of that name in the table. Raises ValueError with the known names."""
    for device in DEVICES:
        if device.name == name.lower():
            return device
    raise ValueError(f"unknown accelerator {name!r}; known are {', '.join(device.name for device in DEVICES)}")


def measured_device(threads: int) -> Device:
    """This machine's processor with so many threads, measured; its memory is what the operating system says."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    cpu = torch.device("cpu")
    peaks = [measured_peak(cpu, dtype) for dtype in (torch.bfloat16, torch.float32)]
    block = torch.empty(1 << 24)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        block.mul_(1.0)
        times.append(time.perf_counter() - start)
    torch.set_num_threads(before)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    rate = 2 * block.nbytes / min(times)
    # Workers of one machine exchange tensors through its memory, at best as fast as it can be copied.
    return Device("cpu", (), peaks[0], peaks[1], memory, rate, rate / 8, 1.25e9, os.cpu_count() or 1, efficiency=1.0)


def peak_flops(device: torch.device, precision: str) -> tuple[float, str]:
    """FLOP/s that this device can reach at most, and where the figure is from (a name of the table, or `measured`)."""
    if device.type == "cuda":
        words = torch.cuda.get_device_name(device)
        for known in DEVICES:
            if all(mark in words for mark in known.marks):
                return known.peak(precision), known.name
    return measured_peak(device, torch.bfloat16 if precision == "bf16" else torch.float32), "measured"


def measured_peak(device: torch.device, dtype: torch.dtype, size: int = 768, rounds: int = 5) -> float:
    """FLOP/s of the fastest of a few square matrix products with the threads that this process has now.

    On a CPU the clock is the processor's own time, so that a busy machine does not make the yardstick short.
    """
    a = torch.randn(size, size, device=device).to(dtype)
    best = float("inf")
    for _ in range(rounds):
        start = _clock(device)
        torch.mm(a, a)
        best = min(best, _clock(device) - start)
    return 2 * size**3 / best


def _clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time() / torch.get_num_threads()
