"""The grouped product and the experts against their loops."""

import pytest
import torch
from torch import Tensor

from parallel.config import MoEConfig
from parallel.moe.experts import BLOCK, Experts, cut_portions, pad_blocks, reference_experts
from parallel.moe.grouped_matmul import grouped_matmul, reference_grouped_matmul
from parallel.moe.layer import MoELayer
from parallel.moe.rows.places import RowGroups

COUNTS = [[5, 3, 4], [0, 7, 0], [0, 0, 0], [1, 0, 30]]


def gradients(output: Tensor, up: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad((output.float() * up).sum(), inputs)


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grouped_matmul_equals_loop(counts: list[int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(sum(counts), 6, dtype=dtype, requires_grad=True)
    w = torch.randn(3, 6, 5, dtype=dtype, requires_grad=True)
    counts_G, up = torch.tensor(counts), torch.randn(sum(counts), 5)
    ours, theirs = grouped_matmul(x, w, counts_G), reference_grouped_matmul(x, w, counts_G)
    assert ours.shape == (sum(counts), 5) and ours.dtype == dtype
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(ours, theirs, **tolerance)
    for mine, oracle in zip(gradients(ours, up, x, w), gradients(theirs, up, x, w), strict=True):
        torch.testing.assert_close(mine, oracle, **tolerance)


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_experts_equal_loop(counts: list[int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    experts = Experts(6, 10, range(3)).to(dtype)
    torch.nn.init.normal_(experts.w3)
    x, counts_L, up = (
        torch.randn(sum(counts), 6, dtype=dtype, requires_grad=True),
        torch.tensor(counts),
        torch.randn(sum(counts), 6),
    )
    inputs = (x, experts.w1, experts.w2, experts.w3)
    groups = RowGroups.of(counts_L, len(x))
    ours = experts(x, groups)
    theirs = reference_experts(x, groups, experts.w1, experts.w2, experts.w3)
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 3e-2, "atol": 3e-2}
    torch.testing.assert_close(ours, theirs, **tolerance)
    for mine, oracle in zip(gradients(ours, up, *inputs), gradients(theirs, up, *inputs), strict=True):
        torch.testing.assert_close(mine, oracle, **tolerance)


def test_portions_of_an_expert_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for four rows in the cache, experts of 0, 3, 9 and 4 rows are served in 0, 1, 3 and 1 portions."""
    assert cut_portions([0, 3, 9, 4], 4) == [(1, 3), (2, 3), (2, 3), (2, 3), (3, 4)]
    assert cut_portions([10], 4) == [(0, 4), (0, 3), (0, 3)]
    torch.manual_seed(0)
    experts = Experts(6, 10, range(4))
    torch.nn.init.normal_(experts.w3)
    x, counts_L, up = torch.randn(16, 6, requires_grad=True), torch.tensor([0, 3, 9, 4]), torch.randn(16, 6)
    inputs = (x, experts.w1, experts.w2, experts.w3)
    monkeypatch.setattr("parallel.moe.experts.CACHE_BYTES", 4 * 4 * 10)
    groups = RowGroups.of(counts_L, len(x))
    ours = experts(x, groups)
    theirs = reference_experts(x, groups, experts.w1, experts.w2, experts.w3)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for mine, oracle in zip(gradients(ours, up, *inputs), gradients(theirs, up, *inputs), strict=True):
        torch.testing.assert_close(mine, oracle, rtol=1e-5, atol=1e-5)


def test_experts_pass_a_numerical_gradient_check() -> None:
    torch.manual_seed(0)
    experts = Experts(3, 4, range(2)).double()
    torch.nn.init.normal_(experts.w3)
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)

    def call(x: Tensor, *weights: Tensor) -> Tensor:
        return torch.func.functional_call(
            experts, dict(zip(("w1", "w2", "w3"), weights, strict=True)), (x, RowGroups.of(torch.tensor([2, 3]), 5))
        )

    assert torch.autograd.gradcheck(call, (x, experts.w1, experts.w2, experts.w3))


def test_experts_without_rows_give_zero_gradients_not_none() -> None:
    experts = Experts(6, 10, range(3))
    experts(torch.zeros(0, 6), RowGroups.of(torch.zeros(3, dtype=torch.int64), 0)).sum().backward()
    for parameter in experts.parameters():
        assert parameter.grad is not None and not parameter.grad.any()


@pytest.mark.parametrize("counts", [[5, 0, 16, 17], [0, 0]])
def test_padding_keeps_rows_in_order_and_blocks_round(counts: list[int]) -> None:
    padded_L, place_R = pad_blocks(torch.tensor(counts))
    assert all(
        padded % BLOCK == 0 and 0 <= padded - n < BLOCK for padded, n in zip(padded_L.tolist(), counts, strict=True)
    )
    starts = (padded_L.cumsum(0) - padded_L).tolist()
    assert place_R.tolist() == [start + i for start, n in zip(starts, counts, strict=True) for i in range(n)]


def test_initial_weights_depend_on_the_global_id_only() -> None:
    before = torch.get_rng_state()
    everyone, half = Experts(6, 10, range(4), (1, 0)), Experts(6, 10, range(2, 4), (1, 0))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(everyone.w1[2:], half.w1) and torch.equal(everyone.w2[2:], half.w2)
    assert not torch.equal(everyone.w1[0], everyone.w1[1])
    assert not torch.equal(everyone.w1, Experts(6, 10, range(4), (1, 1)).w1)
    assert not torch.equal(everyone.w1, Experts(6, 10, range(4), (2, 0)).w1)


def test_bf16_experts_are_close_to_fp32() -> None:
    torch.manual_seed(0)
    experts = Experts(32, 64, range(4))
    x, counts = torch.randn(40, 32), RowGroups.of(torch.tensor([10, 0, 25, 5]), 40)
    exact = experts(x, counts).detach()
    rounded = experts.to(torch.bfloat16)(x.bfloat16(), counts).detach()
    assert rounded.dtype == torch.bfloat16
    assert float((rounded.float() - exact).norm() / exact.norm()) < 2e-2


def test_frozen_experts_pass_back_what_trained_ones_do() -> None:
    torch.manual_seed(0)
    experts = Experts(6, 10, range(4))
    groups = RowGroups.of(torch.tensor([3, 0, 5, 1]), 9)
    x_RD = torch.randn(9, 6, requires_grad=True)
    weight_RD = torch.randn(9, 6)
    (expected,) = torch.autograd.grad((experts(x_RD, groups) * weight_RD).sum(), x_RD)
    experts.requires_grad_(False)
    (got,) = torch.autograd.grad((experts(x_RD, groups) * weight_RD).sum(), x_RD)
    assert torch.allclose(got, expected, atol=1e-6)


def test_experts_without_a_bias_equal_those_whose_bias_is_zero() -> None:
    torch.manual_seed(0)
    plain, zero = Experts(6, 10, range(3), bias=False), Experts(6, 10, range(3))
    assert [name for name, _ in plain.named_parameters()] == ["w1", "w2"]
    groups, x = RowGroups.of(torch.tensor([4, 0, 5]), 9), torch.randn(9, 6)
    ours, theirs = plain(x, groups), zero(x, groups)
    assert torch.equal(ours, theirs)
    for mine, oracle in zip(
        gradients(ours, x, plain.w1, plain.w2), gradients(theirs, x, zero.w1, zero.w2), strict=True
    ):
        assert torch.equal(mine, oracle)
    layer = MoELayer(6, MoEConfig(experts=4, top_k=2, expert_bias=False, shared_expert_hidden=8))
    assert not [name for name, _ in layer.named_parameters() if name.endswith("w3")]
    assert MoEConfig().expert_bias, "checkpoints of before have biases"


@pytest.mark.parametrize("rows", [0, 4])
def test_rows_of_nobody_spoil_nothing(rows: int) -> None:
    experts, groups = Experts(6, 10, range(2)), RowGroups.of(torch.tensor([rows, 0]), rows + 2)
    x = torch.randn(rows + 2, 6, requires_grad=True)
    y = experts(x, groups)
    own = experts(x[:rows], RowGroups.of(torch.tensor([rows, 0]), rows))
    assert y.shape == x.shape and torch.equal(y[:rows], own)
