"""Fixed-length vectors -> tokens: a two-layer network per modality, one launch for all vectors of a length.

Shape legend: P pairs (sample, modality), F features, D width, T tokens a vector becomes.
"""

from __future__ import annotations

from torch import Tensor

from data_shards import VectorGroup
from trainer.models.encoders.layout import Encoder, GroupLayout
from trainer.models.layers.grouped_linear import GroupedMLP
from trainer.models.layers.standardise import Standardiser


class VectorEncoder(Encoder):
    """(P, F) raw vectors -> (P, T, D)."""

    def __init__(self, features: int, standardiser: Standardiser, tokens: int, dim: int, blocks: int) -> None:
        super().__init__()
        self.tokens, self.standardiser = tokens, standardiser
        self.network = GroupedMLP(blocks, features, 2 * dim, tokens * dim)

    def forward(self, group: VectorGroup, layout: GroupLayout) -> Tensor:
        value_PF = self.standardiser(group.values_PF, layout.block_P)
        return self.network(value_PF, layout.pairs).unflatten(1, (self.tokens, -1))
