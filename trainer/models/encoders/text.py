"""Text -> a few tokens: bytes, a small trainable transformer, learned queries. All text modalities in one pass.

The vocabulary is the 256 bytes of UTF-8, so no vocabulary file is needed and nothing is ever out of vocabulary.
Several neighbouring bytes form one position (`stride`), which keeps the sequence short.

Shape legend: P pairs (sample, modality), O bytes of all texts, R byte groups (positions) of all texts, T tokens a text
becomes, M blocks, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from data_shards import TextGroup
from trainer.config.sections import TextEncoderConfig
from trainer.models.layers.attention import attend_ragged
from trainer.models.layers.ragged import Ragged, offsets_to_ids, ragged, segment_softmax, segment_sum

BYTES = 256


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


class TextEncoder(nn.Module):
    """Packed bytes with offsets -> (P, T, D). An empty text gives its modality's queries alone.

    Args:
        positions: rows of the table of positions; what lies behind the last row shares it.
    """

    def __init__(self, positions: int, config: TextEncoderConfig, dim: int, blocks: int) -> None:
        super().__init__()
        self.tokens, self.stride = config.tokens, config.stride
        self.byte = nn.Embedding(config.stride * BYTES, dim)
        self.position = nn.Embedding(positions, dim)
        nn.init.normal_(self.byte.weight, std=config.stride**-0.5)
        nn.init.normal_(self.position.weight, std=0.02)
        self.layers = nn.ModuleList(TextLayer(dim, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(dim)
        self.query_MTD = nn.Parameter(torch.randn(blocks, config.tokens, dim) * dim**-0.5)
        self.value = nn.Linear(dim, dim)

    def forward(self, group: TextGroup, block_P: Tensor, counts_M: Tensor) -> Tensor:
        x_RD, pair_R = self._positions(group)
        layout = ragged(pair_R, len(block_P))
        for layer in self.layers:
            x_RD = layer(x_RD, layout)
        return self._read(self.norm(x_RD), pair_R, self.query_MTD[block_P])

    def _positions(self, group: TextGroup) -> tuple[Tensor, Tensor]:
        """Embedded positions of all texts (R, D), and the pair of each."""
        pair_O = offsets_to_ids(group.offsets, len(group.bytes_O))
        place_O = torch.arange(len(pair_O), device=pair_O.device) - group.offsets[pair_O]
        length_P = -(-group.offsets.diff() // self.stride)
        start_P = length_P.cumsum(0) - length_P
        rows = int(length_P.sum())
        pair_R = torch.repeat_interleave(length_P, output_size=rows)
        byte_OD = self.byte(group.bytes_O.long() + (place_O % self.stride) * BYTES)
        summed_RD = segment_sum(byte_OD, start_P[pair_O] + place_O // self.stride, rows)
        place_R = torch.arange(rows, device=pair_R.device) - start_P[pair_R]
        return summed_RD + self.position(place_R.clamp_max(self.position.num_embeddings - 1)), pair_R

    def _read(self, x_RD: Tensor, pair_R: Tensor, query_PTD: Tensor) -> Tensor:
        """Each query attends over its text's positions."""
        score_RT = (x_RD[:, None, :] * query_PTD[pair_R]).sum(-1)
        weight_RT = segment_softmax(score_RT, pair_R, len(query_PTD))
        return query_PTD + segment_sum(weight_RT[..., None] * self.value(x_RD)[:, None, :], pair_R, len(query_PTD))
