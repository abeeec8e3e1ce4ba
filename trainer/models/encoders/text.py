"""Text -> a few tokens: bytes, a small trainable transformer, learned queries. All text modalities in one pass.

The vocabulary is the 256 bytes of UTF-8, so no vocabulary file is needed and nothing is ever out of vocabulary.
Several neighbouring bytes form one position (`stride`), which keeps the sequence short.

Shape legend: P pairs (sample, modality), O bytes of all texts, R byte groups (positions) of all texts, T tokens a text
becomes, M blocks, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data_shards import TextGroup
from parallel.moe.segments import Segments
from trainer.config.sections import TextEncoderConfig
from trainer.models.encoders.layout import Encoder, GroupLayout, PresentPairs
from trainer.models.layers.attention import attend_ragged, read_segments
from trainer.models.layers.embedding import Embedding
from trainer.models.layers.ragged import Ragged, offsets_to_ids, ragged

BYTES = 256


@dataclass(frozen=True)
class TextLayout:
    """The positions of all texts: the pair of each, and who attends to whom."""

    by_pair: Segments
    sequences: Ragged


class TextLayer(nn.Module):
    """Pre-norm transformer layer on packed positions."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.dense_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.project, self.output = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.dense = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x_RD: Tensor, layout: Ragged) -> Tensor:
        x_RD = x_RD + self.output(attend_ragged(self.project(self.attention_norm(x_RD)), layout, self.heads))
        return x_RD + self.dense(self.dense_norm(x_RD))


class TextEncoder(Encoder):
    """Packed bytes with offsets -> (P, T, D). An empty text gives its modality's queries alone.

    Args:
        positions: rows of the table of positions; what lies behind the last row shares it.
    """

    def __init__(self, positions: int, config: TextEncoderConfig, dim: int, blocks: int) -> None:
        super().__init__()
        self.tokens, self.stride = config.tokens, config.stride
        self.byte = Embedding(config.stride * BYTES, dim)
        self.position = Embedding(positions, dim)
        nn.init.normal_(self.byte.weight, std=config.stride**-0.5)
        nn.init.normal_(self.position.weight, std=0.02)
        self.layers = nn.ModuleList(TextLayer(dim, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(dim)
        self.query_MTD = nn.Parameter(torch.randn(blocks, config.tokens, dim) * dim**-0.5)
        self.value = nn.Linear(dim, dim)

    def lay_out(self, group: TextGroup, block_P: Tensor, blocks: int, present: PresentPairs | None) -> TextLayout:
        """Which positions belong together, from the lengths of the texts on the CPU."""
        length_P = -(-group.offsets.diff() // self.stride)
        pair_R = torch.repeat_interleave(length_P)
        return TextLayout(Segments.of(pair_R, len(length_P), ascending=True), ragged(pair_R, len(length_P)))

    def forward(self, group: TextGroup, layout: GroupLayout) -> Tensor:
        texts = layout.own
        assert isinstance(texts, TextLayout)
        x_RD = self._positions(group, texts.by_pair)
        for layer in self.layers:
            x_RD = layer(x_RD, texts.sequences)
        x_RD, query_PTD = self.norm(x_RD), layout.pairs.segments.spread(self.query_MTD)
        return query_PTD + read_segments(x_RD, self.value(x_RD), texts.by_pair, query_PTD)

    def _positions(self, group: TextGroup, by_pair: Segments) -> Tensor:
        """Embedded positions of all texts (R, D)."""
        pair_O = offsets_to_ids(group.offsets, len(group.bytes_O))
        place_O = torch.arange(len(pair_O), device=pair_O.device) - group.offsets[pair_O]
        length_P = -(-group.offsets.diff() // self.stride)
        start_P = length_P.cumsum(0) - length_P
        pair_R = by_pair.segment_N
        byte_OD = self.byte(group.bytes_O.long() + (place_O % self.stride) * BYTES)
        # Neighbouring bytes form a position, so they lie in its order.
        position = Segments.of(start_P[pair_O] + place_O // self.stride, len(pair_R), ascending=True)
        summed_RD = position.sum(byte_OD).to(byte_OD.dtype)
        place_R = torch.arange(len(pair_R), device=pair_R.device) - start_P[pair_R]
        return summed_RD + self.position(place_R.clamp_max(self.position.num_embeddings - 1))
