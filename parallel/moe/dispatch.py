"""Dispatch: bring tokens to the ranks that hold their experts, and the results back.

A layer hands over tokens and the choice of experts. `LocalDispatcher` holds all experts here: one sort by expert, one
gather each way. `AllToAllDispatcher` spreads the experts over an expert-parallel group. A token goes to a rank once,
however many of its experts live there, with its ids and weights; the rank serves it like a local one, adds up its
experts' results by weight and sends one row back. Nothing is dropped or padded. Both dispatchers have the same
interface and give the same result. Every rank of the group takes part in every call, also without tokens.

A group has one channel, and what is sent through it arrives in turn. So the small things go first (how many rows, then
ids and weights), and the tokens' journey overlaps with work that does not need its end (`beside`, a shared expert),
forward and backward. The host waits for the device once, to learn how many rows go where.

Shapes: N tokens, K places a token, D width, P pairs of token and rank, S pairs received, R rows of experts, E experts
of the layer, G ranks of the group, L = E / G experts on this rank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.moe.choice import Choice
from parallel.moe.kept import Kept
from parallel.moe.rows.exchange import Journey, depart, exchange_rows, land
from parallel.moe.rows.permute import collect_rows, combine_rows, expand_rows, label_rows
from parallel.moe.rows.places import RowGroups, list_pairs, pairs_by_rank, place_rows

ExpertsFn = Callable[[Tensor, RowGroups], Tensor]  # (rows sorted by local expert, where each one's are) -> rows
Beside = Callable[[], Tensor]


class Dispatcher(Protocol):
    """What a model knows of the other ranks.

    Attributes:
        world_group: all ranks of the run, over which tables are spread; None for one that is alone.
    """

    world_group: dist.ProcessGroup | None

    @property
    def size(self) -> int: ...

    @property
    def rank(self) -> int: ...

    def __call__(
        self, x_ND: Tensor, choice: Choice, experts: ExpertsFn, beside: Beside | None = None, kept: Kept | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Serve tokens by their experts.

        Args:
            x_ND: tokens of this rank. choice: their experts, by global id.
            experts: applies this rank's experts to rows sorted by them; rows behind the last expert's are nobody's.
            beside: further work on the tokens, done while they travel.
            kept: what a recomputed pass takes over.

        Returns:
            y_ND, the sum of every token's results by weight, and what `beside` returned.
        """


def serve(x_ND: Tensor, choice: Choice, experts: ExpertsFn) -> Tensor:
    """Sort the places of a choice by expert, run the experts, add each token's results up by weight."""
    rows = choice.expert_NK.numel() if choice.rows is None else choice.rows
    places = place_rows(choice.expert_NK, choice.experts, rows)
    y_RD = experts(expand_rows(x_ND, places.token_R, places.row_NK), places.groups)
    return combine_rows(y_RD, places.row_NK, choice.weight_NK, places.entry_R)


class LocalDispatcher:
    """All experts are here.

    Args:
        world_group: other ranks may be there nevertheless.
    """

    size, rank = 1, 0
    world_group: dist.ProcessGroup | None = None

    def __init__(self, world_group: dist.ProcessGroup | None = None) -> None:
        self.world_group = world_group

    def __call__(
        self, x_ND: Tensor, choice: Choice, experts: ExpertsFn, beside: Beside | None = None, kept: Kept | None = None
    ) -> tuple[Tensor, Tensor | None]:
        return serve(x_ND, choice, experts), beside() if beside else None


class _Route(NamedTuple):
    """Who gets what. Pairs travel in the order of (rank, token)."""

    token_P: Tensor
    rank_P: Tensor
    pair_NW: Tensor
    """The pairs of each token, -1 for none; as wide as a token can have pairs."""
    send: list[int]
    receive: list[int]
    rows: int
    """Places that experts of this rank will have to serve."""


class AllToAllDispatcher:
    """Experts spread evenly over the ranks of `group`: rank r holds experts [r * L, (r + 1) * L).

    Args:
        overlap: do the work beside while the tokens travel, not after; off only to measure what it is worth.
        world_group: all ranks of the run, where they are more than the group's.
    """

    def __init__(
        self, group: dist.ProcessGroup, overlap: bool = True, world_group: dist.ProcessGroup | None = None
    ) -> None:
        self.group, self.overlap = group, overlap
        self.world_group: dist.ProcessGroup | None = world_group or group
        self.size = dist.get_world_size(group)
        self.rank = dist.get_rank(group)

    def __call__(
        self, x_ND: Tensor, choice: Choice, experts: ExpertsFn, beside: Beside | None = None, kept: Kept | None = None
    ) -> tuple[Tensor, Tensor | None]:
        if torch.is_grad_enabled():
            # The exchanges of the backward pass need every rank, also one whose rows (none, perhaps) depend on no
            # parameter.
            x_ND, weight_NK = (t if t.requires_grad else t.detach().requires_grad_() for t in (x_ND, choice.weight_NK))
            choice = choice._replace(weight_NK=weight_NK)
        route = self._route(choice, kept or Kept(hold=False))
        journey = Journey(self.group, route.send, route.receive)
        # The receiver's own experts, by its own numbers; in the table of a pair all others are empty places.
        pairs, local = (route.token_P, route.rank_P, route.pair_NW), choice.experts // self.size
        ids_PX, weight_PX = label_rows(choice.expert_NK, choice.weight_NK, pairs, local, choice.by_column)
        # Every rank of the group makes these exchanges in this order, also without a token of its own: one more or
        # fewer on one rank, and all of them wait.
        ids_SX, *travelling = depart(journey, ids_PX, weight_PX, expand_rows(x_ND, route.token_P, route.pair_NW))
        # Autograd runs later nodes first: in the backward pass, too, this lies between departure and landing.
        extra = beside() if beside and self.overlap else None
        weight_SX, received_SD = land(journey, *travelling)
        # Weights are applied where the experts are: one row a (token, rank) goes back, not one an expert.
        result_SD = serve(received_SD, Choice(ids_SX, weight_SX, local, route.rows), experts)
        back_PD = exchange_rows(result_SD, self.group, route.receive, route.send)
        y_ND = collect_rows(back_PD, route.pair_NW, route.token_P)
        return y_ND, beside() if beside and not self.overlap else extra

    def _route(self, choice: Choice, kept: Kept) -> _Route:
        """Plan the journey; one small exchange tells every rank how much it will get."""
        goes_GN, sizes_2G2 = pairs_by_rank(choice.expert_NK, self.size, choice.experts // self.size)
        send, receive, rows = kept.once("sizes", lambda: self._sizes(sizes_2G2))
        # A token has K pairs at most. With their number known, finding them is no wait.
        width = self.size if choice.by_column else min(choice.expert_NK.shape[1], self.size)
        token_P, rank_P, pair_NW = list_pairs(goes_GN, sum(send), width)
        return _Route(token_P, rank_P, pair_NW, send, receive, rows)

    def _sizes(self, sizes_2G2: Tensor) -> tuple[list[int], list[int], int]:
        """(pairs to each rank, pairs from each, places they bring)."""
        dist.all_to_all_single(sizes_2G2[1], sizes_2G2[0], group=self.group)
        # The one wait of the host: it must know the sizes of the exchanges.
        leaving, arriving = sizes_2G2.tolist()
        return [n for n, _ in leaving], [n for n, _ in arriving], sum(n for _, n in arriving)


class _KeepInStep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, *outputs: Tensor) -> Tensor:
        ctx.outputs = len(outputs)
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        # None is enough: autograd still runs what lies behind, with zeros where nothing else arrives.
        return grads[0], *(None,) * ctx.outputs


def keep_in_step(loss: Tensor, outputs: list[Tensor]) -> Tensor:
    """`loss`, with the layers' outputs as further ancestors that receive no gradient through this edge.

    The backward pass of every layer, and the exchanges in it, then run on every rank, also where the loss does not
    depend on a layer (a rank without tokens). Where it does, this changes nothing and costs nothing.
    """
    return _KeepInStep.apply(loss, *outputs)
