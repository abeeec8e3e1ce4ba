"""Texts through a pretrained encoder: tokens on the CPU, the longest of neighbours in length decides the padding.

Shapes: P texts, L tokens of the longest one.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from data_shards import TextGroup
from trainer.config.encoders import PretrainedConfig
from trainer.models.pretrained.encoder import Chunk, PretrainedEncoder
from trainer.models.pretrained.loading.sources import Asked, Loaded
from trainer.models.pretrained.loading.tokenizers import Tokenizer, longest_text, tokenizer_of
from trainer.models.pretrained.reading import stretches_of_all

MOST_TOKENS = 1 << 20
BYTES_OF_A_TOKEN, MARKS = 4.0, 2.0  # of English text; first and last token: for estimates only


class PretrainedTexts(PretrainedEncoder):
    """Of BERT's kind. Raises BackboneError: no tokenizer that fits."""

    def __init__(self, asked: Asked, loaded: Loaded, config: PretrainedConfig) -> None:
        self.tokenizer: Tokenizer | None = None
        super().__init__(asked, loaded, config)
        self.longest = min(config.max_tokens or MOST_TOKENS, longest_text(self.model.config))
        self.word_pieces = loaded.run_id is None
        if not loaded.shapes_only:
            settings, size = self.model.config, "give a model with its tokenizer"
            self.tokenizer = tokenizer_of(loaded.tokenizer, settings, self.longest, asked.label, "", size)
            self.longest = self.tokenizer.longest

    @property
    def reads(self) -> str:
        return f"{self.longest} tokens"

    @property
    def lengths(self) -> tuple[float, float, int]:
        return BYTES_OF_A_TOKEN if self.word_pieces else 1.0, MARKS, self.longest

    def example(self, positions: int) -> dict[str, Tensor]:
        ones_PL = torch.ones(1, positions, dtype=torch.int64, device="meta")
        return {"input_ids": ones_PL, "attention_mask": ones_PL}

    def _objects(self, group: TextGroup) -> Sequence[bytes]:
        ends, data = group.offsets.tolist(), group.bytes_O.numpy().tobytes()
        return [data[start:end] for start, end in itertools.pairwise(ends)]

    def _content(self, one: bytes) -> bytes:
        return one

    def _read(self, objects: list[bytes]) -> list[Tensor]:
        assert self.tokenizer is not None
        if not objects:
            return []
        numbers_PL, valid_PL = self.tokenizer(objects)
        self.cut = self.tokenizer.cut
        return [row_L[:length] for row_L, length in zip(numbers_PL, valid_PL.sum(1).tolist(), strict=True)]

    def _length(self, made: Tensor) -> int:
        return len(made)

    def _chunk(self, made: list[Tensor]) -> Chunk:
        lengths = [len(row) for row in made]
        pad = self.model.config.pad_token_id or 0
        numbers_PL = torch.nn.utils.rnn.pad_sequence(made, batch_first=True, padding_value=pad)
        valid_PL = torch.arange(max(lengths), device="cpu") < torch.tensor(lengths, device="cpu")[:, None]
        read_PNL = None
        if not self._own_token:
            read_PNL = stretches_of_all(lengths, self.tokens, max(lengths))
        return Chunk(len(made), {"input_ids": numbers_PL, "attention_mask": valid_PL.long()}, read_PNL)

    def _hidden(self, group: Any, chunk: Chunk) -> Tensor:
        # `return_dict` is said, because a folder's config.json may say otherwise.
        hidden_PLD: Tensor = self.model(**chunk.inputs, return_dict=True).last_hidden_state
        return hidden_PLD
