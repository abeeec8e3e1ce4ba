"""The product z · w of a router: in fp32, or, in bf16 runs on a GPU, of bf16 operands with fp32 sums.

A GPU's fp32 product without TF32 runs at a fifteenth of its bf16 product, and TF32 is a switch of the whole process. In
a bf16 run w is bf16 already, so only z has to be cut: z = hi + lo, both bf16, and hi · w + lo · w is one product of
twice the depth, [hi | lo] · [w ; w]. It costs what TF32 costs and keeps 16 bits of z where TF32 keeps 11
(`benchmarks/RESULTS.md`, "Precision of the router's product").

With a set of prototypes for each group of rows, the grouped kernel gives bf16 results only, whose rounding is too
coarse for a choice of experts. What the rounding lost is a product again, one that the kernel sums in fp32:

    y1 = bf16(hi · w)        y2 = bf16([hi | lo | -y1] · [w ; w ; 1])        y1 + y2 = z · w up to 2⁻¹⁷

Gradients are those of any product of a bf16 run: bf16 operands, fp32 sums.

Shapes: N rows, D width, E experts, G groups of rows with a matrix each.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from parallel.moe.grouped_matmul import on_gpu

ALIGNED = 8  # bf16 elements in the 16 bytes that the grouped kernel wants rows to be a multiple of


class Groups(NamedTuple):
    """Rows sorted by group: `row_N` the sorted groups, `order_N` the rows in that order, int32 `ends_G` where each
    group ends among them."""

    row_N: Tensor
    order_N: Tensor
    ends_G: Tensor

    def sort(self, x_NX: Tensor) -> Tensor:
        return x_NX.index_select(0, self.order_N)

    def back(self, x_NX: Tensor) -> Tensor:
        """The inverse of `sort`. Every row is written once, so nothing adds up."""
        return torch.empty_like(x_NX).index_copy_(0, self.order_N, x_NX)


def group_rows(row_N: Tensor, groups: int) -> Groups:
    """Sort rows by their group, stably; nothing of it leaves the device. `row_N`: int64 in [0, groups)."""
    row_N, order_N = row_N.sort(stable=True)
    numbers_G = torch.arange(groups, device=row_N.device)
    return Groups(row_N, order_N, torch.searchsorted(row_N, numbers_G, right=True, out_int32=True))


def splits(w_GDE: Tensor) -> bool:
    """Whether products with these prototypes take bf16 operands: those of a bf16 run on a GPU do."""
    return on_gpu(w_GDE) and w_GDE.dtype == torch.bfloat16


def fp32_mm(a: Tensor, b: Tensor) -> Tensor:
    """a @ b of bf16 operands, summed and kept in fp32."""
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()  # the same products; a CPU has no kernel of its own for it


def product(
    z_ND: Tensor, w_GDE: Tensor, groups: Groups | None, bias_NE: Tensor | None = None, alpha: float = 1.0
) -> Tensor:
    """alpha · z · w + bias (N, E) in the dtype of z (fp32 at least). With `groups` rows are sorted by group."""
    if splits(w_GDE) and groups is not None and len(z_ND):
        return _grouped(z_ND, w_GDE, groups, bias_NE, alpha)
    if splits(w_GDE):
        made_NE = fp32_mm(_halves(z_ND, z_ND.shape[1]), torch.cat([w_GDE[0], w_GDE[0]]))
    elif groups is None:
        made_NE = z_ND @ w_GDE[0].to(z_ND.dtype)
    else:
        parts = zip(_cut(z_ND, groups), w_GDE.to(z_ND.dtype).unbind(0), strict=True)
        made_NE = torch.cat([rows @ w_DE for rows, w_DE in parts])
    return made_NE if bias_NE is None else torch.add(bias_NE, made_NE, alpha=alpha)


def rows_gradient(g_NE: Tensor, w_GDE: Tensor, groups: Groups | None) -> Tensor:
    """g · wᵀ (N, D), in fp32 at least. `g_NE` is bf16 where `splits`."""
    if not splits(w_GDE):
        return product(g_NE, w_GDE.transpose(1, 2), groups)
    if groups is None or not len(g_NE):
        return fp32_mm(g_NE, w_GDE[0].t())
    width = w_GDE.shape[1]
    w_GED = _aligned(w_GDE.transpose(1, 2), 1, 2)
    return F.grouped_mm(_aligned(g_NE, 1), w_GED, offs=groups.ends_G)[:, :width].float()


def matrix_gradient(z_ND: Tensor, g_NE: Tensor, groups: Groups | None, split: bool) -> Tensor:
    """zᵀ · g (G, D, E). Both bf16 if `split`; then fp32 without groups, bf16 with them."""
    if groups is None:
        return (fp32_mm(z_ND.t(), g_NE) if split else z_ND.t() @ g_NE)[None]
    if not split:
        parts = zip(_cut(z_ND, groups), _cut(g_NE, groups), strict=True)
        return torch.stack([z.t() @ g for z, g in parts])
    width, experts = z_ND.shape[1], g_NE.shape[1]
    if not len(z_ND):
        return z_ND.new_zeros(len(groups.ends_G), width, experts)
    made = F.grouped_mm(_aligned(z_ND, 1).t(), _aligned(g_NE, 1), offs=groups.ends_G)
    return made[:, :width, :experts]


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z_ND: Tensor, w_GDE: Tensor, groups: Groups | None) -> Tensor:
        ctx.save_for_backward(z_ND, w_GDE)
        ctx.groups = groups
        if groups is None:
            return product(z_ND, w_GDE, None)
        return groups.back(product(groups.sort(z_ND), w_GDE, groups))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        z_ND, w_GDE = ctx.saved_tensors
        groups, split, g_NE = ctx.groups, splits(w_GDE), grads[0]
        if groups is not None:
            z_ND, g_NE = groups.sort(z_ND), groups.sort(g_NE)
        if split:
            z_ND, g_NE = z_ND.bfloat16(), g_NE.bfloat16()
        g_z_ND = rows_gradient(g_NE, w_GDE, groups)
        if groups is not None:
            g_z_ND = groups.back(g_z_ND)
        return g_z_ND, matrix_gradient(z_ND, g_NE, groups, split).to(w_GDE.dtype), None


def router_product(z_ND: Tensor, w_GDE: Tensor, groups: Groups | None) -> Tensor:
    """z · w (N, E) with its gradients, rows in their own order; `groups` picks each row's matrix where G > 1."""
    made: Tensor = _Product.apply(z_ND, w_GDE, groups)
    return made


def _grouped(z_ND: Tensor, w_GDE: Tensor, groups: Groups, bias_NE: Tensor | None, alpha: float) -> Tensor:
    """The two grouped products of the head of this file. The kernel's rows are padded to multiples of 16 bytes."""
    experts = w_GDE.shape[2]
    w_GDE = _aligned(w_GDE, 1, 2)
    number, wide, cols = w_GDE.shape
    eye_GEE = torch.eye(cols, dtype=w_GDE.dtype, device=w_GDE.device).expand(number, -1, -1)
    b_GKE = torch.cat([w_GDE, w_GDE, eye_GEE], 1)
    a_NK = _halves(z_ND, wide, cols)
    first_NE = F.grouped_mm(a_NK[:, :wide], w_GDE, offs=groups.ends_G)
    torch.neg(first_NE, out=a_NK[:, 2 * wide :])
    rest_NE = F.grouped_mm(a_NK, b_GKE, offs=groups.ends_G)[:, :experts]
    first_NE = first_NE[:, :experts]
    if bias_NE is None:
        return first_NE.float().add_(rest_NE)
    return torch.add(bias_NE, first_NE, alpha=alpha).add_(rest_NE, alpha=alpha)


def _halves(z_ND: Tensor, wide: int, behind: int = 0) -> Tensor:
    """[hi | lo | room] (N, 2 wide + behind) in bf16, with z = hi + lo up to 2⁻¹⁷; padding is zero."""
    rows, width = z_ND.shape
    a_NK = torch.empty(rows, 2 * wide + behind, dtype=torch.bfloat16, device=z_ND.device)
    if wide != width:
        a_NK.zero_()
    hi_ND = a_NK[:, :width].copy_(z_ND)
    # Subtracted in fp32, where it is exact, and rounded on the way out.
    torch.sub(z_ND, hi_ND, out=a_NK[:, wide : wide + width])
    return a_NK


def _up(n: int) -> int:
    return -(-n // ALIGNED) * ALIGNED


def _aligned(x: Tensor, *dims: int) -> Tensor:
    """Zeros behind the ends of these dimensions, up to a multiple of 16 bytes."""
    short = [_up(x.shape[dim]) - x.shape[dim] if dim in dims else 0 for dim in range(x.ndim)]
    if not any(short):
        return x
    return F.pad(x, [n for missing in reversed(short) for n in (0, missing)])


def _cut(x_NX: Tensor, groups: Groups) -> tuple[Tensor, ...]:
    """The rows of each group. The host waits for the sizes, which costs nothing on a CPU."""
    ends = groups.ends_G.tolist()
    return x_NX.split([end - start for start, end in zip([0, *ends], ends, strict=False)])
