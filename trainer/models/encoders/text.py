"""Text -> a few tokens: bytes, a small trainable transformer, learned queries. All text modalities in one pass.

The vocabulary is the 256 bytes of UTF-8, so no vocabulary file is needed and nothing is ever out of vocabulary.
Several neighbouring bytes form one position (`stride`), which keeps the sequence short.

Shape legend: P pairs (sample, modality), O bytes of all texts, R byte groups of all texts, L longest text in groups,
T tokens a text becomes, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from data_shards import TextGroup
from trainer.models.segments import offsets_to_ids, padding, segment_sum
from trainer.sections import TextEncoderConfig

BYTES = 256


class TextEncoder(nn.Module):
    """Packed bytes with offsets -> (P, T, D)."""

    def __init__(self, longest: int, config: TextEncoderConfig, heads: int, dim: int, blocks: int) -> None:
        super().__init__()
        self.tokens, self.stride = config.tokens, config.stride
        positions = -(-longest // config.stride) + 1
        self.byte = nn.Embedding(config.stride * BYTES, dim)
        self.position = nn.Embedding(positions, dim)
        nn.init.normal_(self.byte.weight, std=config.stride**-0.5)
        nn.init.normal_(self.position.weight, std=0.02)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                dim, heads, 4 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(config.layers)
        )
        self.query_MTD = nn.Parameter(torch.randn(blocks, config.tokens, dim) * dim**-0.5)
        self.read = nn.MultiheadAttention(dim, heads, batch_first=True)

    def forward(self, group: TextGroup, block_P: Tensor, counts_M: Tensor) -> Tensor:
        pairs = len(block_P)
        pair_O = offsets_to_ids(group.offsets, len(group.bytes_O))
        place_O = torch.arange(len(pair_O), device=pair_O.device) - group.offsets[pair_O]
        length_P = -(-group.offsets.diff() // self.stride)
        start_P = length_P.cumsum(0) - length_P
        rows = int(length_P.sum())
        pair_R = torch.repeat_interleave(torch.arange(pairs, device=pair_O.device), length_P, output_size=rows)
        row_O = start_P[pair_O] + place_O // self.stride
        byte_OD = self.byte(group.bytes_O.long() + (place_O % self.stride) * BYTES)
        place_R = torch.arange(rows, device=pair_O.device) - start_P[pair_R]
        x_RD = segment_sum(byte_OD, row_O, rows) + self.position(place_R)
        return self._read(x_RD, pair_R, self.query_MTD[block_P])

    def _read(self, x_RD: Tensor, pair_R: Tensor, query_PTD: Tensor) -> Tensor:
        layout = padding(pair_R, len(query_PTD))
        # An empty text keeps one (zero) position: attention over nothing would be NaN.
        empty_PL = ~layout.valid_SL
        empty_PL[:, 0] = False
        x_PLD = layout.pad(x_RD)
        for layer in self.layers:
            x_PLD = layer(x_PLD, src_key_padding_mask=empty_PL)
        return query_PTD + self.read(query_PTD, x_PLD, x_PLD, key_padding_mask=empty_PL, need_weights=False)[0]
