"""Dispatch: bring tokens to the ranks that hold their experts, and the results back.

A layer hands over tokens and the choice of experts. `LocalDispatcher` holds all experts here: one sort by expert, one
gather each way. `AllToAllDispatcher` spreads the experts over an expert-parallel group. A token goes to a rank once,
however many of its experts live there, with their ids and weights; the rank serves it like a local one, adds up its
experts' results by weight and sends one row back. Nothing is dropped or padded. Both dispatchers have the same
interface and give the same result. Every rank of the group takes part in every call, also without tokens.

The tokens' journey overlaps with work that does not need its end (`beside`, a shared expert), forward and backward.

Shapes: N tokens, D width, R entries of the choice, P pairs of token and rank, S pairs received, E experts of the layer,
G ranks of the group, L = E / G experts on this rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.moe.choice import Choice
from parallel.moe.permute import combine_rows, expand_rows, inverse_permutation

ExpertsFn = Callable[[Tensor, Tensor], Tensor]  # (rows sorted by local expert, counts_L) -> rows
Beside = Callable[[], Tensor]


class Dispatcher(Protocol):
    """What a layer knows of the other ranks."""

    @property
    def size(self) -> int: ...

    @property
    def rank(self) -> int: ...

    def __call__(
        self, x_ND: Tensor, choice: Choice, experts: ExpertsFn, number: int, beside: Beside | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Serve tokens by their experts.

        Args:
            x_ND: tokens of this rank. choice: their experts, by global id in [0, number).
            experts: applies this rank's experts to rows sorted by them.
            beside: further work on the tokens, done while they travel.

        Returns:
            y_ND, the sum of every token's results by weight, and what `beside` returned.
        """


def serve(x_ND: Tensor, choice: Choice, experts: ExpertsFn, number: int) -> Tensor:
    """Sort the entries of a choice by expert, run the experts, add each token's results up by weight."""
    # Stable: an expert's rows keep the order of the tokens, so its sums over rows always add up in one order.
    order_R = choice.expert_R.argsort(stable=True)
    inverse_R = inverse_permutation(order_R)
    counts_E = torch.bincount(choice.expert_R, minlength=number)
    y_RD = experts(expand_rows(x_ND, choice, order_R, inverse_R), counts_E)
    return combine_rows(y_RD, choice, order_R, inverse_R)


class LocalDispatcher:
    """All experts are here."""

    size, rank = 1, 0

    def __call__(
        self, x_ND: Tensor, choice: Choice, experts: ExpertsFn, number: int, beside: Beside | None = None
    ) -> tuple[Tensor, Tensor | None]:
        return serve(x_ND, choice, experts, number), beside() if beside else None


@dataclass
class _Flight:
    """An exchange under way: wait for `work`, then `arriving` is filled. `sent` must live until then."""

    group: dist.ProcessGroup
    send: list[int]
    receive: list[int]
    work: Any = None
    sent: Tensor | None = None
    arriving: Tensor | None = None

    def depart(self, x_RD: Tensor, send: list[int], receive: list[int]) -> Tensor:
        # Kept until it lands: the exchange still reads `sent` when this function has returned.
        self.sent, self.arriving = x_RD.contiguous(), x_RD.new_empty((sum(receive), *x_RD.shape[1:]))
        self.work = dist.all_to_all_single(self.arriving, self.sent, receive, send, group=self.group, async_op=True)
        return self.arriving

    def land(self) -> Tensor:
        self.work.wait()  # of gloo the host waits here, of NCCL only the device's stream
        arrived, self.sent, self.arriving, self.work = self.arriving, None, None, None
        assert arrived is not None
        return arrived


class _Depart(torch.autograd.Function):
    """Start an exchange of rows. What it returns is filled only after `_Land`; backward they change roles."""

    @staticmethod
    def forward(ctx: Any, x_RD: Tensor, flight: _Flight) -> Tensor:
        ctx.flight = flight
        return flight.depart(x_RD, flight.send, flight.receive)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        # Autograd has run `_Land.backward` before, which sent the gradients off; here they arrive.
        return ctx.flight.land(), None


class _Land(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y_SD: Tensor, flight: _Flight) -> Tensor:
        ctx.flight = flight
        flight.land()
        # The same rows, not copied: `_Depart` has returned the buffer that was filled meanwhile.
        return y_SD.view_as(y_SD)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        flight = ctx.flight
        # Backward the rows go home: what was received is sent.
        flight.depart(grads[0], flight.receive, flight.send)
        # Nobody reads this: it has the shape that autograd asks for, and `_Depart.backward` passes on what arrives.
        return grads[0], None


def exchange_rows(x_RD: Tensor, group: dist.ProcessGroup, send: list[int], receive: list[int]) -> Tensor:
    """Send the first send[0] rows to rank 0 of the group, the next send[1] to rank 1, ...; receive likewise, in rank
    order. Differentiable."""
    flight = _Flight(group, send, receive)
    return _Land.apply(_Depart.apply(x_RD, flight), flight)


class _Route(NamedTuple):
    """Who gets what. Pairs travel in the order of (rank, token), and so do entries."""

    pairs: Choice
    """One entry a (token, rank), in the order of the tokens; `expert_R` is the rank."""
    order_P: Tensor
    inverse_P: Tensor
    order_R: Tensor
    """Entries of the layer's choice in the order they are sent."""
    opens_R: Tensor
    """int64 0 or 1: whether an entry is the first of its pair."""
    send: list[int]
    receive: list[int]
    send_entries: list[int]
    receive_entries: list[int]


class AllToAllDispatcher:
    """Experts spread evenly over the ranks of `group`: rank r holds experts [r * L, (r + 1) * L).

    Args:
        overlap: do the work beside while the tokens travel, not after; off only to measure what it is worth.
    """

    def __init__(self, group: dist.ProcessGroup, overlap: bool = True) -> None:
        self.group, self.overlap = group, overlap
        self.size = dist.get_world_size(group)
        self.rank = dist.get_rank(group)

    def __call__(
        self, x_ND: Tensor, choice: Choice, experts: ExpertsFn, number: int, beside: Beside | None = None
    ) -> tuple[Tensor, Tensor | None]:
        if torch.is_grad_enabled():
            # The exchanges of the backward pass need every rank, also one whose rows (none, perhaps) depend on no
            # parameter.
            x_ND, weight_R = (t if t.requires_grad else t.detach().requires_grad_() for t in (x_ND, choice.weight_R))
            choice = choice._replace(weight_R=weight_R)
        local = number // self.size
        route = self._route(choice, local)
        flight = _Flight(self.group, route.send, route.receive)
        travelling_SD = _Depart.apply(expand_rows(x_ND, route.pairs, route.order_P, route.inverse_P), flight)
        # Ids and weights follow the tokens. Every rank of the group makes these exchanges in this order, also without a
        # token of its own: one exchange more or fewer on one rank, and all of them wait.
        work = self._their_work(choice, route, local)
        # Autograd runs later nodes first: in the backward pass, too, this lies between departure and landing.
        extra = beside() if beside and self.overlap else None
        received_SD = _Land.apply(travelling_SD, flight)
        result_SD = serve(received_SD, work, experts, local)
        # Weights were applied where the experts are: one row a (token, rank) comes back, not one an expert.
        back_PD = exchange_rows(result_SD, self.group, route.receive, route.send)
        y_ND = combine_rows(back_PD, route.pairs, route.order_P, route.inverse_P, weighted=False)
        return y_ND, beside() if beside and not self.overlap else extra

    def _route(self, choice: Choice, local: int) -> _Route:
        """Plan the journey; one small exchange tells every rank how much it will get."""
        device, ranks, tokens = choice.expert_R.device, self.size, choice.tokens
        rank_R = torch.div(choice.expert_R, local, rounding_mode="floor")
        goes_NG = torch.zeros(tokens, ranks, dtype=torch.bool, device=device)
        # Several experts on one rank write the same True: the token travels there once.
        goes_NG[choice.token_R, rank_R] = True
        # Two columns: pairs, whose rows travel, and entries, whose ids and weights do.
        leaving_G2 = torch.stack([goes_NG.sum(0), torch.bincount(rank_R, minlength=ranks)], 1)
        arriving_G2 = torch.empty_like(leaving_G2)
        dist.all_to_all_single(arriving_G2, leaving_G2, group=self.group)
        # The host waits for the device here: it must know the sizes of the exchanges. On CUDA a call waits five times:
        # the `bincount` above and that of `serve` wait twice each, for their least and their largest number.
        sizes = torch.cat([leaving_G2.t(), arriving_G2.t()]).tolist()
        # With its size known, finding the pairs is no further wait.
        place_P = torch.nonzero_static(goes_NG.view(-1), size=sum(sizes[0]))[:, 0]
        token_P, rank_P = torch.div(place_P, max(ranks, 1), rounding_mode="floor"), place_P % ranks
        # Stable: tokens for one rank keep their order, which `pair_T` below counts on.
        order_P = rank_P.argsort(stable=True)
        # Sorted by this key, entries of a token at a rank lie together; the first of them opens a pair.
        key_R = rank_R * tokens + choice.token_R
        order_R = key_R.argsort(stable=True)
        sorted_R = key_R.index_select(0, order_R)
        opens_R = torch.ones_like(sorted_R)
        opens_R[1:] = (sorted_R[1:] != sorted_R[:-1]).to(torch.int64)
        pairs = Choice(tokens, token_P, rank_P, choice.weight_R[:0])
        send, send_entries, receive, receive_entries = sizes
        inverse_P = inverse_permutation(order_P)
        return _Route(pairs, order_P, inverse_P, order_R, opens_R, send, receive, send_entries, receive_entries)

    def _their_work(self, choice: Choice, route: _Route, local: int) -> Choice:
        """Exchange ids and weights: the choice of the tokens that will arrive, among this rank's experts."""
        send, receive = route.send_entries, route.receive_entries
        # Local expert and `opens` in one number: one exchange instead of two.
        mine_R = choice.expert_R.index_select(0, route.order_R) % local * 2 + route.opens_R
        told_T = mine_R.new_empty(sum(receive))
        dist.all_to_all_single(told_T, mine_R, receive, send, group=self.group)
        # Weights go apart from the ids, for their gradient comes back.
        weight_T = exchange_rows(choice.weight_R.index_select(0, route.order_R), self.group, send, receive)
        # Entries arrive in the order of the pairs, so counting the openings gives each its row.
        pair_T = (told_T % 2).cumsum(0) - 1
        return Choice(sum(route.receive), pair_T, torch.div(told_T, 2, rounding_mode="floor"), weight_T)


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
