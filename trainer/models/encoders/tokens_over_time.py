"""Each object's tokens stand for themselves, in the bin of its time.

So that *when* shows within a bin as well, and which of two came first, an object's tokens also get a learned embedding
of its time: that of the series encoder, with a projection for each modality. A pair without objects is one learned
token, in the last bin: that nothing came is not that nobody looked, which a missing modality's indicator says.

Shape legend: O objects of a group, U tokens of an object, Q pairs, E pairs without objects, N tokens of all pairs, D
width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from parallel.moe.rows.permute import inverse_permutation, permute_rows
from trainer.models.encoders.layout import PresentPairs
from trainer.models.encoders.over_time import ObjectTimes, OverTime
from trainer.models.encoders.series import TimeEmbedding
from trainer.models.layers.embedding import Embedding
from trainer.models.layers.grouped_linear import Blocks, GroupedLinear
from trainer.models.layers.token_layout import EncodedGroup, bin_of_time


@dataclass(frozen=True)
class TokenPlaces:
    """Objects of each block, blocks of the empty pairs, and how objects' tokens and then theirs come into order (None:
    they are); tokens of each pair, and the bin of each token."""

    objects: Blocks
    empty_E: Tensor
    order_N: Tensor | None
    inverse_N: Tensor | None
    count_Q: Tensor
    bin_N: Tensor


class TokensOverTime(OverTime):
    """(O, U, D) -> (N, D), N = O * U + E.

    Args:
        blocks: modalities. tokens: U. width: of an embedding of time. bins: T. dim: D.
    """

    def __init__(self, blocks: int, tokens: int, width: int, bins: int, dim: int) -> None:
        super().__init__()
        self.tokens, self.bins = tokens, bins
        self.time = TimeEmbedding(width, bins)
        self.place = GroupedLinear(blocks, width, dim)
        self.empty = Embedding(blocks, dim)
        nn.init.normal_(self.empty.weight, std=0.3)

    def lay_out(self, times: ObjectTimes, present: PresentPairs) -> TokenPlaces:
        pairs = len(present.sample_Q)
        count_Q = torch.bincount(times.pair_O, minlength=pairs) * self.tokens
        empty_E = (count_Q == 0).nonzero()[:, 0]
        pair_N = torch.cat([times.pair_O.repeat_interleave(self.tokens), empty_E])
        bin_N = bin_of_time(times.time_O, self.bins).repeat_interleave(self.tokens)
        bin_N = torch.cat([bin_N, torch.full_like(empty_E, self.bins - 1)])
        order_N = inverse_N = None
        if len(empty_E):
            order_N = pair_N.argsort(stable=True)
            inverse_N, bin_N = inverse_permutation(order_N), bin_N[order_N]
        return TokenPlaces(times.objects, present.block_Q[empty_E], order_N, inverse_N, count_Q.clamp_min(1), bin_N)

    def encoded(self, layout: TokenPlaces, present: PresentPairs) -> EncodedGroup:
        return EncodedGroup(present.modality_Q, present.sample_Q, present.blocks, layout.count_Q, layout.bin_N)

    def forward(self, token_OUD: Tensor, time_O: Tensor, layout: TokenPlaces) -> Tensor:
        place_OD = self.place(self.time(time_O), layout.objects)
        token_ND = (token_OUD + place_OD[:, None].to(token_OUD.dtype)).flatten(0, 1)
        if layout.order_N is None or layout.inverse_N is None:
            return token_ND
        empty_ED = self.empty(layout.empty_E).to(token_ND.dtype)
        return permute_rows(torch.cat([token_ND, empty_ED]), layout.order_N, layout.inverse_N)


def tokens_reference(module: TokensOverTime, token_OUD: Tensor, times: ObjectTimes, present: PresentPairs) -> Tensor:
    """The obvious loop: pair after pair, object after object."""
    rows = []
    for pair, block in enumerate(present.block_Q.tolist()):
        own = (times.pair_O == pair).nonzero()[:, 0].tolist()
        for number in own:
            phi_K = module.time(times.time_O[number])
            placed_D = phi_K @ module.place.weight[block, : module.place.inputs] + module.place.bias[block]
            rows += [token_D + placed_D for token_D in token_OUD[number]]
        if not own:
            rows.append(module.empty.weight[block])
    return torch.stack(rows)
