"""What signals are as a whole, by fixed kernels: one row of the model's width for each.

Shapes: O samples of all signals, P signals, C channels, X features, D width.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from trainer.models.layers.grouped_linear import GroupedLinear
from trainer.models.numbers.first_seen import FirstSeen
from trainer.models.numbers.kernels import Detail, KernelShares

DEVIATION = 0.1  # of a share: all together they drowned whatever else a model is given
HIDDEN_SHARES = 0.5  # of a signal's shares, while training: there are more of them than small data have signals


class WholeSignal(nn.Module):
    """Signals -> (P, D), from the shares of time in which fixed kernels are answered.

    Args:
        standardised: each share by what it is in the training part; else all of a signal's by their own mean and
            spread, as models of before have it, in which what every signal answers drowns what tells them apart.
    """

    def __init__(self, channels: int, detail: Detail, standardised: bool, dim: int, blocks: int) -> None:
        super().__init__()
        self.shares = KernelShares(channels, detail)
        features = detail.features
        plain = nn.LayerNorm(features, elementwise_affine=False)
        self.norm = FirstSeen(blocks, features, DEVIATION) if standardised else plain
        self.dropout, self.project = nn.Dropout(HIDDEN_SHARES), GroupedLinear(blocks, features, dim)

    def forward(self, value_OC: Tensor, by_signal: Any, offsets_P1: Tensor, moments: int, pairs: Any) -> Tensor:
        """Standardised samples, the signal of each, where signals begin, and the block of each."""
        return self.projected(self.shares(value_OC, by_signal, offsets_P1, moments), pairs)

    def projected(self, shares_PX: Tensor, pairs: Any) -> Tensor:
        """What `shares` gives -> (P, D)."""
        shares_PX = self.norm(shares_PX, pairs) if isinstance(self.norm, FirstSeen) else self.norm(shares_PX)
        return self.project(self.dropout(shares_PX), pairs)  # type: ignore[no-any-return]
