"""Every Triton kernel, run by Triton's interpreter, against its torch version. `test_triton.py` runs this file in a
process of its own, as a kernel is interpreted or compiled for the whole life of a process.
"""

import os

import pytest
import torch
from torch import Tensor

from parallel.moe.rows import bias, bias_triton, places, places_triton, sums, sums_triton

assert os.environ["TRITON_INTERPRET"] == "1"
DTYPES = [torch.float32, torch.bfloat16]


def close(mine: Tensor, oracle: Tensor, sums: int = 1) -> None:
    """Equal in fp32 up to the order of sums; in bf16 up to one unit of the last place (the interpreter cuts off)."""
    assert mine.dtype == oracle.dtype and mine.shape == oracle.shape
    rtol = 2**-7 if oracle.dtype == torch.bfloat16 else 2e-6 * sums
    torch.testing.assert_close(mine, oracle, rtol=rtol, atol=1e-6 * sums, equal_nan=True)


def table(n: int, k: int, empty: float) -> tuple[Tensor, Tensor]:
    """(row_NK, entry_R) with a share of places empty, and two rows more than there are places."""
    taken = torch.rand(n * k).ge(empty).nonzero()[:, 0]
    taken = taken[torch.randperm(len(taken))]
    row = torch.full((n * k,), -1)
    row[taken] = torch.arange(len(taken))
    return row.view(n, k), torch.cat([taken, torch.tensor([-1, -1])])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "k", "width", "empty"), [(37, 3, 40, 0.4), (5, 1, 1500, 0), (9, 8, 8, 0), (0, 2, 8, 0)])
def test_sums(n: int, k: int, width: int, empty: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    row, entry = table(n, k, empty)
    x, g = torch.randn(n, width, dtype=dtype), torch.randn(n, width, dtype=dtype)
    y, weight = torch.randn(len(entry), width, dtype=dtype), torch.rand(n, k)
    y[-2:] = torch.nan
    token = entry.div(k, rounding_mode="floor")
    assert torch.equal(sums_triton.gather_rows(x, token), sums.gather_plain(x, token))
    for weights in (None, weight):
        close(sums_triton.sum_rows(y, row, weights), sums.sum_plain(y, row, weights), k)
        close(sums.sum_cpu(y, row, weights), sums.sum_plain(y, row, weights), k)
    for mine, oracle in zip(
        sums_triton.spread_rows(g, y, weight, entry), sums.spread_plain(g, y, weight, entry), strict=True
    ):
        close(mine, oracle, width)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("counts", "width"), [([5, 0, 300, 1], 24), ([0, 0], 24), ([4], 24), ([0, 70, 0], 130), ([0, 9], 1100)]
)
def test_biases(counts: list[int], width: int, dtype: torch.dtype) -> None:
    """Two rows more than the groups have: what becomes of them does not matter, if only they spoil no other."""
    torch.manual_seed(0)
    rows = sum(counts)
    groups = places.RowGroups.of(torch.tensor(counts), rows + 2)
    packed = torch.randn(len(counts), 1, width + 8, dtype=dtype)
    h, g = torch.randn(rows + 2, width, dtype=dtype), torch.randn(rows + 2, width, dtype=dtype)
    h[rows:], g[rows:] = torch.nan, torch.nan
    for own in (packed[:, 0, 8:], None):
        close(
            bias_triton.bias_gelu(h, own, groups.group_R)[:rows], bias.bias_gelu_plain(h, own, groups.group_R)[:rows], 4
        )
        mine, oracle = g.clone(), g.clone()
        close(
            bias_triton.bias_gelu_backward(mine, h, own, groups.group_R)[:rows],
            bias.bias_gelu_backward_plain(oracle, h, own, groups.group_R)[:rows],
            4,
        )
        close(mine[:rows], oracle[:rows], 4)
    mine, oracle = h.clone(), h.clone()
    bias_triton.add_bias(mine, packed[:, 0, 8:], groups.group_R)
    bias.add_bias_plain(oracle, packed[:, 0, 8:], groups.group_R)
    close(mine[:rows], oracle[:rows])
    close(bias_triton.sum_groups(g, groups.ends_G), bias.sum_groups_plain(g, groups.ends_G), 300)


def experts_of(n: int, k: int, experts: int) -> Tensor:
    """k different experts a token, some places empty."""
    ids = torch.rand(n, experts).argsort(1)[:, :k]
    return torch.where(torch.rand(n, k) < 0.2, experts, ids)


@pytest.mark.parametrize(
    ("n", "k", "ranks", "local"), [(700, 3, 4, 2), (50, 2, 8, 1), (600, 4, 2, 2), (3, 1, 2, 5), (0, 2, 2, 2)]
)
def test_pairs(n: int, k: int, ranks: int, local: int) -> None:
    torch.manual_seed(0)
    expert = experts_of(n, k, ranks * local)
    goes, sizes = places_triton.pairs_by_rank(expert, ranks, local)
    for mine, oracle in zip((goes, sizes), places.pairs_by_rank_plain(expert, ranks, local), strict=True):
        assert torch.equal(mine, oracle)
    so_far = goes.view(-1).cumsum(0)
    for width in {min(k, ranks), ranks}:
        mine = places_triton.list_pairs(goes, so_far, int(goes.sum()), width)
        oracle = places.list_pairs_plain(goes, so_far, int(goes.sum()), width)
        assert all(torch.equal(a, b) for a, b in zip(mine, oracle, strict=True))
        weight = torch.rand(n, k)
        mine = places_triton.label_pairs(expert, weight, *mine[:2], local, False)
        oracle = places.label_pairs_plain(expert, weight, *oracle[:2], local, False)
        assert all(torch.equal(a, b) for a, b in zip(mine, oracle, strict=True))


def test_pairs_by_column() -> None:
    torch.manual_seed(0)
    expert = torch.where(torch.rand(40, 12) < 0.3, torch.arange(12), 12)
    token, rank = torch.randint(0, 40, (50,)), torch.randint(0, 4, (50,))
    mine = places_triton.label_pairs(expert, torch.rand(40, 12), token, rank, 3, True)[0]
    assert torch.equal(mine, places.label_pairs_plain(expert, torch.rand(40, 12), token, rank, 3, True)[0])
    assert mine.shape == (50, 3) and sorted(set(mine.flatten().tolist())) == [0, 1, 2, 3]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "segments", "width"), [(300, 7, 24), (5, 40, 130), (0, 3, 8), (90, 1, 8)])
def test_segments(n: int, segments: int, width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, (sorted_N, order) = torch.randn(n, width, dtype=dtype), torch.randint(0, segments, (n,)).sort(stable=True)
    start = places.bounds_plain(sorted_N, segments)
    assert torch.equal(places_triton.bounds(sorted_N, segments), start)
    for mean in (False, True):
        oracle = sums.segments_plain(x, order, start, mean)
        close(sums_triton.sum_segments(x, order, start, mean), oracle, n)
        close(sums.segments_cpu(x, order, start, mean), oracle, n)


@pytest.mark.parametrize(("n", "k", "experts"), [(700, 3, 7), (5, 2, 40), (4, 1, 1), (0, 2, 3)])
def test_places(n: int, k: int, experts: int) -> None:
    torch.manual_seed(0)
    expert = experts_of(n, min(k, experts), experts)
    sorted_X, order_X = expert.view(-1).sort(stable=True)
    taken = int((expert < experts).sum())
    for rows in {taken, min(taken + 3, expert.numel())}:
        mine = places_triton.place_rows(sorted_X, order_X, expert.shape[1], experts, rows)
        oracle = places.place_rows_plain(sorted_X, order_X, expert.shape[1], experts, rows)
        for a, b in zip(mine, oracle, strict=True):
            assert a.dtype == b.dtype and torch.equal(a, b)
