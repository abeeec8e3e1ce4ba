"""A CPU kernel for torch's attention over sequences of any lengths: torch has one for GPUs only.

It stands behind torch's own operation, so what it is called with is what the GPU's kernel is called with, and its
rules are checked. Import this module, and the operation runs on a CPU, forward and backward.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.attention.varlen
from torch import Tensor

MOST_SEQUENCES = 65_535


def _cuts(start_S1: Tensor) -> list[slice]:
    # Not by `tolist`: a watch over the program would take it for a wait.
    numbers = [int(number) for number in start_S1.unbind()]
    return [slice(start, stop) for start, stop in itertools.pairwise(numbers)]


def _weights(q: Tensor, k: Tensor) -> Tensor:
    """(H, L, L) of (L, H, E) queries and keys."""
    return torch.einsum("ihe,jhe->hij", q, k).mul(q.shape[2] ** -0.5).softmax(2)


def _check(q: Tensor, start_q: Tensor, start_k: Tensor, max_q: Any, max_k: Any) -> None:
    assert q.ndim == 3 and q.dtype in (torch.bfloat16, torch.float16) and q.shape[2] % 8 == 0 and q.shape[2] <= 256
    assert q.stride(2) == 1, "the kernel reads heads as they lie"
    assert type(max_q) is int and type(max_k) is int, "the host must know the longest sequence"
    for start in (start_q, start_k):
        assert start.dtype == torch.int32 and start.ndim == 1 and start.is_contiguous()
        assert start[0] == 0 and start[-1] == len(q) and 1 <= len(start) - 1 <= MOST_SEQUENCES
        assert start.diff().max() == max_q == max_k and start.diff().min() >= 1


def _forward(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int, *more: Any
) -> tuple[Tensor, Tensor, Tensor]:
    _check(query, cu_seq_q, cu_seq_k, max_q, max_k)
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    for cut in _cuts(cu_seq_q):
        q, k, v = (x[cut].float() for x in (query, key, value))
        out[cut] = torch.einsum("hij,jhe->ihe", _weights(q, k), v).to(out.dtype)
    return out, torch.zeros(query.shape[1], len(query)), torch.zeros(2, dtype=torch.uint64)


def _backward(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, cu_seq_q: Tensor, *more: Any
) -> tuple[Tensor, Tensor, Tensor]:
    found = tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (query, key, value))
    for cut in _cuts(cu_seq_q):
        g, q, k, v = (x[cut].float() for x in (grad_out, query, key, value))
        w = _weights(q, k)
        gw = torch.einsum("ihe,jhe->hij", g, v)
        gs = w * (gw - (w * gw).sum(2, keepdim=True)) * q.shape[2] ** -0.5
        pieces = (("hij,jhe->ihe", gs, k), ("hij,ihe->jhe", gs, q), ("hij,ihe->jhe", w, g))
        for grad, (rule, left, right) in zip(found, pieces, strict=True):
            grad[cut] = torch.einsum(rule, left, right).to(grad.dtype)
    return found  # type: ignore[return-value]


torch.library.register_kernel("torch_attn::_varlen_attn", "cpu", _forward)
torch.library.register_kernel("torch_attn::_varlen_attn_backward", "cpu", _backward)
