"""From hidden states to the tokens that are read out, by weights that are worked out on the CPU.

Shapes: P objects, N tokens that are read, L hidden states, h x w cells of a picture.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def stretches(length: int, tokens: int) -> Tensor:
    """(N, L) weights of the means of N even stretches of L states; where there are fewer, of the nearest one.

    State i belongs to stretch floor(i N / L); if L < N, stretch n is state floor(n L / N).
    """
    weight_NL = torch.zeros(tokens, length, device="cpu")
    if length == 0:
        return weight_NL
    if length < tokens:
        token_N = torch.arange(tokens, device="cpu")
        weight_NL[token_N, token_N * length // tokens] = 1.0
        return weight_NL
    state_L = torch.arange(length, device="cpu")
    weight_NL[state_L * tokens // length, state_L] = 1.0
    return weight_NL / weight_NL.sum(1, keepdim=True)


def stretches_of_all(lengths: Sequence[int], tokens: int, width: int, first: int = 0) -> Tensor:
    """(P, N, width) weights of objects with these numbers of states, which begin behind `first`."""
    weight_PNL = torch.zeros(len(lengths), tokens, width, device="cpu")
    for row, length in enumerate(lengths):
        weight_PNL[row, :, first : first + length] = stretches(length, tokens)
    return weight_PNL


def grid(height: int, width: int, tokens: int) -> Tensor:
    """(N, h * w) weights of the means of N rectangles, in rows and columns as even as N allows (more columns)."""
    rows = max(side for side in range(1, int(tokens**0.5) + 1) if tokens % side == 0)
    down_RH, across_CW = stretches(height, rows), stretches(width, tokens // rows)
    return torch.einsum("rh,cw->rchw", down_RH, across_CW).reshape(tokens, height * width)
