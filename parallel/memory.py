"""Large CPU buffers on huge pages.

A fresh buffer of many megabytes is handed over by the kernel page by page, on first touch. With pages of 4 KiB that
costs about as much as a matrix product writing to it; with pages of 2 MiB a quarter of it or less. The gradient of a
stack of experts is such a buffer, in every step.
"""

from __future__ import annotations

import ctypes
import sys

import torch
from torch import Tensor

HUGE_PAGE = 2 << 20
MADV_HUGEPAGE = 14
_madvise = ctypes.CDLL(None).madvise if sys.platform == "linux" else None


def empty_like(x: Tensor) -> Tensor:
    """`torch.empty_like`, contiguous; on a Linux CPU the kernel is asked for huge pages where a buffer spans several.

    It is advice: a kernel that has none, or that was told never to use them, ignores it.
    """
    buffer = torch.empty_like(x, memory_format=torch.contiguous_format)
    size = buffer.numel() * buffer.element_size()
    if _madvise is not None and buffer.device.type == "cpu" and size >= 4 * HUGE_PAGE:
        first = -(-buffer.data_ptr() // HUGE_PAGE) * HUGE_PAGE
        length = (buffer.data_ptr() + size - first) // HUGE_PAGE * HUGE_PAGE
        _madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), MADV_HUGEPAGE)
    return buffer
