"""The router's product with its branch for GPUs forced: as good as fp32, gradients as of any bf16 product."""

import pytest
import torch
from torch import Tensor

from parallel.moe.gates import Gate
from parallel.moe.router_product import Groups, group_rows, product, router_product, splits
from tests.gpu_branch import gpu_branch

COUNTS = [[5, 3, 4], [0, 7, 0], [1, 0, 30]]
SIZES = [(64, 16), (21, 11)]  # the second is no multiple of 8 in either direction


def operands(counts: list[int], width: int, experts: int) -> tuple[Tensor, Tensor, Groups]:
    torch.manual_seed(0)
    row_N = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    w_GDE = (torch.randn(len(counts), width, experts) * width**-0.5).bfloat16()
    return torch.randn(sum(counts), width), w_GDE, group_rows(row_N, len(counts))


def exact(z_ND: Tensor, w_GDE: Tensor, row_N: Tensor) -> Tensor:
    return torch.einsum("nd,nde->ne", z_ND.double(), w_GDE.double()[row_N])


def test_groups_are_sorted_stably_and_undone() -> None:
    row_N, x_ND = torch.tensor([2, 0, 2, 4, 0]), torch.arange(10.0).view(5, 2)
    groups = group_rows(row_N, 5)
    assert groups.order_N.tolist() == [1, 4, 0, 2, 3]
    assert groups.ends_G.tolist() == [2, 2, 4, 4, 5] and groups.ends_G.dtype == torch.int32
    assert groups.sort(x_ND)[:, 0].tolist() == [2, 8, 0, 4, 6]
    assert torch.equal(groups.back(groups.sort(x_ND)), x_ND)


@pytest.mark.parametrize(("width", "experts"), SIZES)
def test_two_halves_give_the_product_of_one_matrix(width: int, experts: int) -> None:
    z_ND, w_GDE, groups = operands([40], width, experts)
    with gpu_branch():
        found = product(z_ND, w_GDE, None)
        shifted = product(z_ND, w_GDE, None, torch.full((1, experts), 3.0), -2.0)
    expected = exact(z_ND, w_GDE, groups.row_N)
    assert found.dtype == torch.float32
    # One bf16 half alone is off by about 2e-3, TF32 by 3e-4.
    assert float((found - expected).abs().max()) < 3e-5
    assert float((shifted - (3 - 2 * expected)).abs().max()) < 6e-5


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize(("width", "experts"), SIZES)
def test_what_the_grouped_kernel_rounds_away_is_brought_back(counts: list[int], width: int, experts: int) -> None:
    z_ND, w_GDE, groups = operands(counts, width, experts)
    expected = exact(z_ND, w_GDE, groups.row_N)
    bias_NE = torch.randn(len(z_ND), experts)
    with gpu_branch():
        found = product(z_ND, w_GDE, groups)
        shifted = product(z_ND, w_GDE, groups, bias_NE, -2.0)
    assert found.dtype == torch.float32
    # A result in bf16 is off by up to 1.5e-2, and without the low half by 4e-3.
    assert float((found - expected).abs().max()) < 1e-4
    assert float((shifted - (bias_NE - 2 * expected)).abs().max()) < 2e-4


@pytest.mark.parametrize("grouped", [False, True])
def test_gradients_are_those_of_a_bf16_product(grouped: bool) -> None:
    z_ND, w_GDE, groups = operands([0, 9, 21, 10] if grouped else [40], 24, 12)
    shuffled = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    z_ND, row_N = z_ND[shuffled].requires_grad_(), groups.row_N[shuffled]
    w_GDE.requires_grad_()
    up_NE = torch.randn(40, 12)
    with gpu_branch():
        made = router_product(z_ND, w_GDE, group_rows(row_N, len(w_GDE)) if grouped else None)
        got = torch.autograd.grad(made, (z_ND, w_GDE), up_NE)
    z64, w64 = z_ND.detach().double().requires_grad_(), w_GDE.detach().double().requires_grad_()
    expected = torch.autograd.grad(exact(z64, w64, row_N), (z64, w64), up_NE.double())
    for mine, theirs in zip(got, expected, strict=True):
        assert float((mine - theirs).norm() / theirs.norm()) < 4e-3
    assert got[1].dtype == torch.bfloat16 and (not grouped or not got[1][0].any())


@pytest.mark.parametrize("modalities", [1, 3])
@pytest.mark.parametrize("counts", [[0, 0, 0], [4, 0, 1]])
def test_no_rows_and_absent_groups_leave_zero_gradients(modalities: int, counts: list[int]) -> None:
    gate = Gate("laplace", 16, 8, modalities, modalities).bfloat16()
    row_N = torch.arange(3).repeat_interleave(torch.tensor(counts))
    x_ND = torch.randn(len(row_N), 16).bfloat16().requires_grad_()
    with gpu_branch():
        gate(x_ND, row_N).sum().backward()
    for parameter in gate.parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all()
    if modalities == 3 or not len(row_N):
        assert gate.prototypes.grad is not None and not gate.prototypes.grad[1 if modalities == 3 else 0].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_bf16_runs_on_a_gpu_take_bf16_operands(dtype: torch.dtype) -> None:
    z_ND, w_GDE, _ = operands([40], 64, 16)
    w_GDE = (w_GDE.float() * (1 + 2**-12)).to(dtype)
    assert not splits(w_GDE)
    assert torch.equal(product(z_ND, w_GDE, None), z_ND @ w_GDE[0].float())
    with gpu_branch():
        assert splits(w_GDE) == (dtype == torch.bfloat16)
        assert torch.equal(product(z_ND, w_GDE, None), z_ND @ w_GDE[0].float()) == (dtype == torch.float32)
