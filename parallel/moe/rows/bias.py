"""Biases of grouped products: row r belongs to group[r] and gets that group's bias, which is never written out by row.

The gradient of a bias is a sum over the rows of its group: in fp32, in one order, with one rounding.

Shapes: R rows, G groups, F width. `group_R` is G (no group) for rows behind the last group's.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from parallel.moe.rows.operators import operator


def _rows_of(bias_GF: Tensor | None, like_RF: Tensor, group_R: Tensor) -> Tensor:
    """like + bias in fp32."""
    exact_RF = like_RF.to(torch.promote_types(like_RF.dtype, torch.float32))
    if bias_GF is None:
        return exact_RF
    return exact_RF + bias_GF.to(exact_RF.dtype).index_select(0, group_R.clamp_max(len(bias_GF) - 1))


def bias_gelu_plain(h_RF: Tensor, bias_GF: Tensor | None, group_R: Tensor) -> Tensor:
    return F.gelu(_rows_of(bias_GF, h_RF, group_R)).to(h_RF.dtype)


def bias_gelu_backward_plain(g_RF: Tensor, h_RF: Tensor, bias_GF: Tensor | None, group_R: Tensor) -> Tensor:
    u_RF = _rows_of(bias_GF, h_RF, group_R)
    g_RF.copy_(torch.ops.aten.gelu_backward(g_RF.to(u_RF.dtype), u_RF))
    return F.gelu(u_RF).to(h_RF.dtype)


def add_bias_plain(y_RF: Tensor, bias_GF: Tensor, group_R: Tensor) -> None:
    y_RF.copy_(_rows_of(bias_GF, y_RF, group_R))


def sum_groups_plain(x_RF: Tensor, ends_G: Tensor) -> Tensor:
    if not len(x_RF):
        return x_RF.new_zeros(len(ends_G), x_RF.shape[1])
    exact_RF = x_RF.to(torch.promote_types(x_RF.dtype, torch.float32))
    offsets = F.pad(ends_G.to(torch.int64), (1, 0))
    # Without looking at the offsets, which would make the host wait.
    return torch.segment_reduce(exact_RF, "sum", offsets=offsets, axis=0, unsafe=True).to(x_RF.dtype)


_gelu = operator("bias_gelu(Tensor h, Tensor? bias, Tensor group) -> Tensor", bias_gelu_plain, triton="bias_triton")
_gelu_backward = operator(
    "bias_gelu_backward(Tensor(a!) g, Tensor h, Tensor? bias, Tensor group) -> Tensor",
    bias_gelu_backward_plain,
    triton="bias_triton",
)
_add = operator("add_bias(Tensor(a!) y, Tensor bias, Tensor group) -> ()", add_bias_plain, triton="bias_triton")
_sum = operator("sum_groups(Tensor x, Tensor ends) -> Tensor", sum_groups_plain, triton="bias_triton")


def bias_gelu(h_RF: Tensor, bias_GF: Tensor | None, group_R: Tensor) -> Tensor:
    """GELU(h + bias of the row's group), rounded once."""
    out_RF: Tensor = _gelu(h_RF, bias_GF, group_R)
    return out_RF


def bias_gelu_backward(g_RF: Tensor, h_RF: Tensor, bias_GF: Tensor | None, group_R: Tensor) -> Tensor:
    """GELU(h + bias) once more; in place, `g_RF` turns from the gradient of that into the gradient of h."""
    out_RF: Tensor = _gelu_backward(g_RF, h_RF, bias_GF, group_R)
    return out_RF


def add_bias(y_RF: Tensor, bias_GF: Tensor, group_R: Tensor) -> None:
    """y += bias of the row's group, in place."""
    _add(y_RF, bias_GF, group_R)


def sum_groups(x_RF: Tensor, ends_G: Tensor) -> Tensor:
    """(G, F): the sum of the rows of each group, summed in fp32; `ends_G` int32, where each group's rows end."""
    out_GF: Tensor = _sum(x_RF, ends_G)
    return out_GF
