"""Initial rows of a table: a function of (key, global id, width) and of nothing else.

Rows are drawn in portions of neighbouring ids, each by a generator of its own, so a rank draws what it holds and at
most two portions more, whatever the number of ranks.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from parallel.moe.initial import generator_for

PORTION = 1024
"""Rows of a portion. Another number gives other initial rows."""


def draw_rows(into_LD: Tensor, first: int, key: tuple[object, ...], std: float) -> None:
    """Fill rows of global ids [first, first + L) with normal numbers of this standard deviation."""
    rows, dim = into_LD.shape

    def draw(portion: int) -> None:
        generator = generator_for(*key, "rows", portion)
        # The CPU's generator in fp32, wherever and in which format the table is kept.
        block = torch.empty(PORTION, dim).normal_(0.0, std, generator=generator)
        begin, end = max(first, portion * PORTION), min(first + rows, (portion + 1) * PORTION)
        own = block[begin - portion * PORTION : end - portion * PORTION]
        # A thread begins with gradients on, whatever the caller has set.
        into_LD[begin - first : end - first].detach().copy_(own)

    portions = range(first // PORTION, -(-(first + rows) // PORTION)) if rows else range(0)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(min(cores, len(portions)) or 1) as threads:
        list(threads.map(draw, portions))
