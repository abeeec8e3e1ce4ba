"""Fixed-length vectors -> tokens: a two-layer network per modality, one launch for all vectors of a length.

Shape legend: P pairs (sample, modality), F features, D width, T tokens a vector becomes.
"""

from __future__ import annotations

from torch import Tensor

from data_shards import VectorGroup
from trainer.models.encoders.layout import Encoder, GroupLayout
from trainer.models.layers.grouped_linear import GroupedMLP
from trainer.models.layers.standardise import Standardiser
from trainer.models.numbers.scale import NormalScores
from trainer.models.numbers.steps import STEPS, Steps


class VectorEncoder(Encoder):
    """(P, F) raw vectors -> (P, T, D).

    Args:
        scale: of the features. piecewise: whether the network is given steps of them.
    """

    def __init__(
        self, features: int, scale: Standardiser | NormalScores, piecewise: bool, tokens: int, dim: int, blocks: int
    ) -> None:
        super().__init__()
        self.tokens, self.scale = tokens, scale
        self.steps = Steps() if piecewise else None
        self.network = GroupedMLP(blocks, features * (STEPS if piecewise else 1), 2 * dim, tokens * dim)

    def forward(self, group: VectorGroup, layout: GroupLayout) -> Tensor:
        value_PF = self.scale(group.values_PF, layout.block_P)
        if self.steps is not None:
            value_PF = self.steps(value_PF).flatten(1)
        return self.network(value_PF, layout.pairs).unflatten(1, (self.tokens, -1))
