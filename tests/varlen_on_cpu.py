"""A CPU kernel for torch's attention over sequences of any lengths: torch has one for GPUs only.

It stands behind torch's own operation, so what it is called with is what the GPU's kernel is called with, and its
rules are checked. Import this module, and the operation runs on a CPU, forward and backward.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.attention.varlen
from torch import Tensor
from torch.nn import functional

MOST_SEQUENCES = 65_535


def _each(q: Tensor, k: Tensor, v: Tensor, start_S1: Tensor) -> Tensor:
    parts = []
    for start, stop in zip(start_S1[:-1].tolist(), start_S1[1:].tolist(), strict=True):
        own = (x[start:stop].transpose(0, 1).float() for x in (q, k, v))
        parts.append(functional.scaled_dot_product_attention(*own).transpose(0, 1).to(q.dtype))
    return torch.cat(parts) if parts else torch.empty_like(q)


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
    out = _each(query, key, value, cu_seq_q)
    return out, torch.zeros(query.shape[1], len(query)), torch.zeros(2, dtype=torch.uint64)


def _backward(
    grad_out: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, cu_seq_q: Tensor, *more: Any
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.enable_grad():
        leaves = [x.detach().float().requires_grad_() for x in (query, key, value)]
        again = _each(*leaves, cu_seq_q)
        dq, dk, dv = torch.autograd.grad(again, leaves, grad_out.float())
    return dq.to(query.dtype), dk.to(query.dtype), dv.to(query.dtype)


torch.library.register_kernel("torch_attn::_varlen_attn", "cpu", _forward)
torch.library.register_kernel("torch_attn::_varlen_attn_backward", "cpu", _backward)
