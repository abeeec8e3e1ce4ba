"""Where rows go: which ranks a token travels to, and where it lies among the rows of the experts.

Nothing here has a gradient, and nothing depends on numbers that only the device knows.

Shapes: N tokens, K places a token, G ranks, P pairs of token and rank, W pairs a token can have, X = N * K, R rows, L
experts on this rank.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from parallel.moe.rows.operators import operator


class RowGroups(NamedTuple):
    """Rows sorted by group, behind which there may be rows of no group.

    ends_G: int32, where the rows of each group end. group_R: int32, the group of each row, at least G for none.
    """

    ends_G: Tensor
    group_R: Tensor

    @staticmethod
    def of(counts_G: Tensor, rows: int) -> RowGroups:
        """RowGroups of these sizes among `rows` rows."""
        ends_G = counts_G.cumsum(0, dtype=torch.int32)
        places_R = torch.arange(rows, dtype=torch.int32, device=counts_G.device)
        return RowGroups(ends_G, torch.searchsorted(ends_G, places_R, right=True, out_int32=True))

    def counts(self) -> list[int]:
        """Rows of each group; the host waits for them if they are on a device."""
        ends = self.ends_G.tolist()
        return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def pairs_by_rank_plain(expert_NK: Tensor, ranks: int, local: int) -> tuple[Tensor, Tensor]:
    rank_NK = expert_NK.div(local, rounding_mode="floor")
    # Places without an expert have a number behind the last rank's.
    count_NX = rank_NK.new_zeros(len(rank_NK), ranks + 1).scatter_add_(1, rank_NK, torch.ones_like(rank_NK))
    goes_GN = (count_NX[:, :ranks] > 0).t().contiguous()
    sizes_2G2 = rank_NK.new_zeros(2, ranks, 2)
    sizes_2G2[0] = torch.stack([goes_GN.sum(1), count_NX[:, :ranks].sum(0)], 1)
    return goes_GN, sizes_2G2


def list_pairs_plain(goes_GN: Tensor, so_far_X: Tensor, size: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    ranks, tokens = goes_GN.shape
    place_P = torch.nonzero_static(goes_GN.view(-1), size=size)[:, 0]
    pair_GN = (so_far_X - 1).view(ranks, tokens).masked_fill(~goes_GN, -1)
    # A token has no more than `width` pairs: what the largest leave out is -1.
    pair_NW = pair_GN.t().topk(width, dim=1).values if width < ranks else pair_GN.t().contiguous()
    tokens = max(tokens, 1)
    return place_P % tokens, place_P.div(tokens, rounding_mode="floor"), pair_NW


def bounds_plain(sorted_N: Tensor, segments: int) -> Tensor:
    return torch.searchsorted(sorted_N, torch.arange(segments + 1, device=sorted_N.device))


def label_pairs_plain(
    expert_NK: Tensor, weight_NK: Tensor, token_P: Tensor, rank_P: Tensor, local: int, by_column: bool
) -> tuple[Tensor, Tensor]:
    if by_column:
        ranks = expert_NK.shape[1] // local
        index_P = token_P * ranks + rank_P
        expert_NK, weight_NK = expert_NK.view(-1, local), weight_NK.reshape(-1, local)
    else:
        index_P = token_P
    ids_PX = expert_NK.index_select(0, index_P) - rank_P[:, None] * local
    return ids_PX.masked_fill_((ids_PX < 0) | (ids_PX >= local), local), weight_NK.index_select(0, index_P)


def place_rows_plain(
    sorted_X: Tensor, order_X: Tensor, places: int, experts: int, rows: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    ids_L = torch.arange(experts, device=sorted_X.device)
    ends_L = torch.searchsorted(sorted_X, ids_L, right=True, out_int32=True)
    some_X = sorted_X < experts
    numbers_X = torch.arange(len(order_X), device=order_X.device)
    row_X = torch.empty_like(order_X).scatter_(0, order_X, torch.where(some_X, numbers_X, -1))
    entry_R = torch.where(some_X[:rows], order_X[:rows], -1)
    token_R = entry_R.div(max(places, 1), rounding_mode="floor")
    return entry_R, token_R, sorted_X[:rows].to(torch.int32), ends_L, row_X


_pairs = operator(
    "pairs_by_rank(Tensor expert, int ranks, int local) -> (Tensor, Tensor)",
    pairs_by_rank_plain,
    triton="places_triton",
)
_list = operator(
    "list_pairs(Tensor goes, Tensor so_far, int size, int width) -> (Tensor, Tensor, Tensor)",
    list_pairs_plain,
    triton="places_triton",
)
_label = operator(
    "label_pairs(Tensor expert, Tensor weight, Tensor token, Tensor rank, int local, bool by_column) "
    "-> (Tensor, Tensor)",
    label_pairs_plain,
    triton="places_triton",
)
_bounds = operator("bounds(Tensor sorted, int segments) -> Tensor", bounds_plain, triton="places_triton")
_place = operator(
    "place_rows(Tensor sorted, Tensor order, int places, int experts, int rows) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    place_rows_plain,
    triton="places_triton",
)


def pairs_by_rank(expert_NK: Tensor, ranks: int, local: int) -> tuple[Tensor, Tensor]:
    """Which ranks each token has experts on.

    Args:
        expert_NK: int64 id of an expert, of which each rank has `local` neighbouring ones; ranks * local for none.

    Returns:
        goes_GN, bool; and int64 (2, G, 2), whose first half is how many tokens go to each rank and how many places
        they take there; the other half is zero, room for what the ranks answer.
    """
    goes_GN, sizes_2G2 = _pairs(expert_NK, ranks, local)
    return goes_GN, sizes_2G2


def label_pairs(
    expert_NK: Tensor, weight_NK: Tensor, token_P: Tensor, rank_P: Tensor, local: int, by_column: bool
) -> tuple[Tensor, Tensor]:
    """What goes with each pair: ids among the rank's `local` experts (`local` for all others), and weights.

    (P, K) each; or (P, L) if `by_column`, that is if column e of the tables is expert e's: then the rank's columns.
    """
    ids_PX, weight_PX = _label(expert_NK, weight_NK, token_P, rank_P, local, by_column)
    return ids_PX, weight_PX


def bounds(sorted_N: Tensor, segments: int) -> Tensor:
    """int64 (segments + 1): how many of the sorted numbers are smaller than 0, 1, ..."""
    start_S1: Tensor = _bounds(sorted_N, segments)
    return start_S1


def list_pairs(goes_GN: Tensor, size: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """The pairs in the order of (rank, token).

    Args:
        size: how many there are. width: W, most pairs of a token.

    Returns:
        token_P, rank_P; and pair_NW, the pairs of each token, -1 for none. If W is G, column g is that of rank g.
    """
    token_P, rank_P, pair_NW = _list(goes_GN, goes_GN.view(-1).cumsum(0), size, width)
    return token_P, rank_P, pair_NW


class Places(NamedTuple):
    """Rows of experts and the places of a table of experts that they serve, each by the other."""

    entry_R: Tensor
    """int64 place n * K + k of each row, -1 for a row of no place."""
    token_R: Tensor
    """int64 n, or -1."""
    groups: RowGroups
    row_NK: Tensor
    """int64 row of each place, -1 for a place that is empty."""


def place_rows(expert_NK: Tensor, experts: int, rows: int) -> Places:
    """Sort the places of a table by expert; ids of `experts` and more mean none and come last.

    Args:
        rows: how many of the sorted places become rows; no fewer than those that have an expert.
    """
    # Stable: an expert's rows keep the order of the tokens, so its sums over rows always add up in one order.
    sorted_X, order_X = expert_NK.reshape(-1).sort(stable=True)
    entry_R, token_R, group_R, ends_L, row_X = _place(sorted_X, order_X, expert_NK.shape[1], experts, rows)
    return Places(entry_R, token_R, RowGroups(ends_L, group_R), row_X.view(expert_NK.shape))
