"""Several heads in one: k members that share their weights but for what scales them (TabM; Gorishniy et al. 2024).

Each member scales what enters and what leaves the shared layer by vectors of its own (batch ensembles; Wen, Tran & Ba
2020) and has an output layer of its own. Members begin apart, by random signs. Each learns for itself: the loss is the
mean of theirs. What is answered is the mean of their probabilities, which is better than any of them where they differ.

Shapes: B records, X inputs, H hidden, K members, C logits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from data_shards import TaskSpec
from trainer.models.layers.heads import SCALED, Skip
from trainer.models.layers.standardise import Constant


class Members(nn.Module):
    """Pooled vector -> logits of one task by each member; a head of several.

    Args:
        mean, std: of answers, as of `layers.heads.Head`.
    """

    def __init__(
        self,
        task: TaskSpec,
        members: int,
        inputs: int,
        hidden: int,
        dropout: float,
        mean: list[float],
        std: list[float],
        skip: Skip | None = None,
    ) -> None:
        super().__init__()
        self.skip = skip  # one for all members
        self.kind = task.kind
        self.scaled = task.kind in SCALED or any(mean)
        self.norm, self.shared, self.dropout = nn.LayerNorm(inputs), nn.Linear(inputs, hidden), nn.Dropout(dropout)
        signs_KX = torch.randint(0, 2, (members, inputs)) * 2.0 - 1.0
        self.scale_in, self.scale_out = nn.Parameter(signs_KX), nn.Parameter(torch.ones(members, hidden))
        self.shift = nn.Parameter(torch.zeros(members, hidden))
        bound = hidden**-0.5
        self.weight = nn.Parameter(torch.empty(members, hidden, task.dim).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(members, task.dim).uniform_(-bound, bound))
        self.mean, self.std = Constant(torch.tensor(mean)), Constant(torch.tensor(std))

    def forward(self, pooled_BX: Tensor, first_BD: Tensor | None = None) -> Tensor:
        """(B, X), and, for the skip, (B, D) -> float32 (K, B, C)."""
        each_KBX = self.norm(pooled_BX) * self.scale_in[:, None]
        hidden_KBH = (each_KBX @ self.shared.weight.t() + self.shared.bias) * self.scale_out[:, None]
        hidden_KBH = self.dropout(functional.gelu(hidden_KBH + self.shift[:, None]))
        logits_KBC = torch.baddbmm(self.bias[:, None], hidden_KBH, self.weight).float()
        if self.skip is not None and first_BD is not None:
            logits_KBC = logits_KBC + self.skip(first_BD)
        return logits_KBC * self.std() + self.mean() if self.scaled else logits_KBC

    def together(self, logits_KBC: Tensor) -> Tensor:
        """(B, C): logits of the members' mean probability; of numbers the mean, of survival those of the mean curve."""
        match self.kind:
            case "regression":
                return logits_KBC.mean(0)
            case "multiclass":
                return _log_mean_exp(logits_KBC.log_softmax(2))
            case "survival":
                # A member's log survival at the end of each interval; of the mean curve what was lost within one.
                curve_BK = _log_mean_exp(-functional.softplus(logits_KBC).cumsum(2))
                lost_BK = -curve_BK.diff(dim=1, prepend=curve_BK.new_zeros(curve_BK.shape[0], 1))
                lost_BK = lost_BK.clamp_min(torch.finfo(lost_BK.dtype).tiny)
                return lost_BK + torch.log(-torch.expm1(-lost_BK))
        return _log_mean_exp(functional.logsigmoid(logits_KBC)) - _log_mean_exp(functional.logsigmoid(-logits_KBC))


def _log_mean_exp(x_KBC: Tensor) -> Tensor:
    return x_KBC.logsumexp(0) - math.log(len(x_KBC))
