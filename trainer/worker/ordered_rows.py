"""Rows in order over all ranks: each holds a stretch of them, about as long as the others', and nobody holds all.

Shapes: B rows of a rank, W 32-bit words of a row, R ranks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.worker.collectives import exchange_rows, rows_everywhere, world_size

_SAMPLES = 1024  # keys of a rank, by which the stretches are cut


def in_order_over_ranks(rows_BW: Tensor, key_B: Tensor) -> tuple[Tensor, Tensor]:
    """This rank's stretch, and its keys, rising; rows of one key are on one rank, in the order of ranks. Collective.

    Args:
        rows_BW: int32. key_B: int64.
    """
    order_B = key_B.argsort(stable=True)
    rows_BW, key_B = rows_BW[order_B], key_B[order_B]
    cut = torch.searchsorted(key_B, _bounds(key_B)).tolist()
    words_BW = torch.cat([rows_BW, key_B[:, None].contiguous().view(torch.int32)], dim=1)
    found = exchange_rows(list(words_BW.tensor_split(cut)))
    # A copy, as a slice without rows keeps the stride of the whole, whatever it is asked.
    key_B = found[:, -2:].clone(memory_format=torch.contiguous_format).view(torch.int64)[:, 0]
    order_B = key_B.argsort(stable=True)
    return found[order_B, :-2], key_B[order_B]


def _bounds(key_B: Tensor) -> Tensor:
    """[R - 1]: the first key of each rank's stretch but the first one's. Collective."""
    count = min(_SAMPLES, len(key_B))
    sample_X = key_B[torch.arange(count) * len(key_B) // max(count, 1)]
    share_X = torch.full((count,), len(key_B) // max(count, 1))
    found = rows_everywhere(torch.stack([sample_X, share_X], dim=1))
    found = found[found[:, 0].argsort(stable=True)]
    weight_X, ranks = found[:, 1].cumsum(0), world_size()
    if not len(found):
        return torch.zeros(ranks - 1, dtype=torch.int64)
    wanted_R = torch.arange(1, ranks) * weight_X[-1] // ranks
    return found[torch.searchsorted(weight_X, wanted_R, right=True).clamp(max=len(found) - 1), 0]


def rising_key(value_B: Tensor) -> Tensor:
    """int64 keys in the order of float64 values, equal where those are equal."""
    bits_B = (value_B + 0.0).view(torch.int64)  # + 0.0: one zero only
    return torch.where(bits_B < 0, bits_B ^ 0x7FFF_FFFF_FFFF_FFFF, bits_B)
