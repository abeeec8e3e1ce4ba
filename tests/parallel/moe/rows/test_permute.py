"""Row movement against indexing, with numerical gradients."""

import pytest
import torch
from torch import Tensor

from parallel.moe.rows.permute import collect_rows, combine_rows, expand_rows, inverse_permutation, permute_rows


def table(n: int, k: int, empty: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """(row_NK, token_R, entry_R) of an index in random order in which the places `empty` name no row, and one row more
    than there are places."""
    generator = torch.Generator().manual_seed(0)
    taken = torch.tensor([i for i in range(n * k) if i not in empty], dtype=torch.int64)
    order = torch.randperm(len(taken), generator=generator)
    row = torch.full((n * k,), -1)
    row[taken[order]] = torch.arange(len(taken))
    entry = torch.cat([taken[order], torch.tensor([-1])])
    return row.view(n, k), entry.div(k, rounding_mode="floor"), entry


def test_permutations_and_their_inverse() -> None:
    order = torch.tensor([2, 0, 3, 1])
    assert inverse_permutation(order).tolist() == [1, 3, 0, 2]
    y = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.equal(permute_rows(y, order, inverse_permutation(order)), y[order])
    assert torch.autograd.gradcheck(lambda t: permute_rows(t, order, inverse_permutation(order)), y)


@pytest.mark.parametrize(("n", "empty"), [(0, []), (7, []), (7, [0, 1, 2, 5, 16])])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rows_move_as_indexing_does(n: int, empty: list[int], dtype: torch.dtype) -> None:
    """With empty places, too: token 0 has no row at all, tokens 1 and 5 have two."""
    torch.manual_seed(0)
    row, token, entry = table(n, 3, empty)
    x = torch.randn(n, 4, dtype=dtype)
    y, weight = (
        torch.randn(len(token), 4, dtype=dtype),
        torch.rand(n, 3, dtype=torch.promote_types(dtype, torch.float32)),
    )
    expanded = expand_rows(x, token, row)
    assert expanded.dtype == dtype and torch.equal(expanded[:-1], x[token[:-1]]) and not expanded[-1].any()
    # A row that no place names may hold anything.
    y[-1] = torch.nan
    factor, picked = (row >= 0).to(y.dtype)[:, :, None], y[row]
    picked = torch.where(row[:, :, None] >= 0, picked, 0).to(weight.dtype)
    tolerance = {"rtol": 1e-2, "atol": 1e-2} if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-6}
    combined, collected = combine_rows(y, row, weight, entry), collect_rows(y, row, token)
    assert combined.dtype == collected.dtype == dtype and factor.dtype == dtype
    torch.testing.assert_close(combined, (picked * weight[:, :, None]).sum(1).to(dtype), **tolerance)
    torch.testing.assert_close(collected, picked.sum(1).to(dtype), **tolerance)


@pytest.mark.parametrize("empty", [[], [0, 1, 2, 5, 16]])
def test_gradients_are_those_of_numerical_differences(empty: list[int]) -> None:
    torch.manual_seed(0)
    row, token, entry = table(7, 3, empty)
    x = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    y = torch.randn(len(token), 4, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(7, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: expand_rows(t, token, row), x)
    assert torch.autograd.gradcheck(lambda t: collect_rows(t, row, token), y)
    assert torch.autograd.gradcheck(lambda t, w: combine_rows(t, row, w, entry), (y, weight))
