"""What the prompts of a FuseMoE host's stream are made from: the streams of the other modalities that are present.

Shapes: B samples, M modalities, H the modality that is prompted, Q present pairs (sample, modality), D width, X width
of the context, Y entries of a pool: all modalities and the null.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from parallel.moe.segments import look_up
from trainer.models.layers.missing import keyed_uniform
from trainer.models.layers.ragged import pick_rows
from trainer.models.mope.host.streams import Pairs


class ContextBuilder(nn.Module):
    """Pooled states of present streams -> for each of them, what the *others* say: (Q, X)."""

    def __init__(self, modalities: int, dim: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.entry = nn.Linear(dim, width)
        self.identity_MX = nn.Parameter(torch.randn(modalities, width) * 0.3)
        self.null_MX = nn.Parameter(torch.randn(modalities, width) * 0.3)
        self.query_gate_MX = nn.Parameter(torch.randn(modalities, width) * width**-0.5)

    def forward(self, pairs: Pairs, pooled_QD: Tensor) -> Tensor:
        entry_QX = self.entry(self.norm(pooled_QD)) + look_up(self.identity_MX, pairs.modality_Q)
        entry_BMX = pairs.table(entry_QX)
        modalities = len(self.null_MX)
        score_BHM = torch.einsum("hx,bmx->bhm", self.query_gate_MX, entry_BMX)
        own_HM = torch.eye(modalities, dtype=torch.bool, device=entry_QX.device)
        score_BHM = score_BHM.masked_fill(~pairs.present_BM[:, None] | own_HM, -torch.inf)
        null_H = (self.query_gate_MX * self.null_MX).sum(1)
        weight_BHY = torch.cat([score_BHM, null_H.expand(len(entry_BMX), -1)[..., None]], 2).softmax(2)
        mixed_BHX = weight_BHY[..., :-1] @ entry_BMX + weight_BHY[..., -1:] * self.null_MX
        return pairs.of_table(mixed_BHX)


def of_other_records(pooled_QD: Tensor, pairs: Pairs, index_B: Tensor, seed: int) -> Tensor:
    """(Q, D) of another record of the batch with the same modality, as a control of what the context is worth.

    The pattern of what is present stays the record's own. Who gets whose is a function of the records and `seed`.
    """
    turn_Q = keyed_uniform(seed, index_B, 1)[:, 0][pairs.sample_Q]
    order_Q = (pairs.modality_Q + turn_Q).argsort()
    same_Q = pairs.modality_Q[order_Q]
    first_Q = torch.searchsorted(same_Q, same_Q)
    after_Q = torch.searchsorted(same_Q, same_Q, right=True)
    place_Q = torch.arange(len(order_Q), device=order_Q.device)
    other_Q = order_Q[torch.where(place_Q + 1 < after_Q, place_Q + 1, first_Q)]
    return pick_rows(pooled_QD, torch.empty_like(order_Q).index_copy_(0, order_Q, other_Q))
