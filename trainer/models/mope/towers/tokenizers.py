"""Text as token numbers, with or without a vocabulary file.

A tower from the Hugging Face hub brings its own tokenizer. One that was trained here reads UTF-8 bytes: nothing to
download, nothing out of vocabulary.

Shapes: B texts, N tokens of the longest one.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

PAD, START, END, FIRST_BYTE = 0, 1, 2, 3
VOCABULARY = 256 + FIRST_BYTE


class Tokenizer(Protocol):
    """Texts -> (numbers (B, N), valid (B, N) bool)."""

    def __call__(self, texts: list[bytes]) -> tuple[Tensor, Tensor]: ...


class ByteTokenizer:
    """Start, the bytes of the text, end; what is longer than `longest` is cut."""

    def __init__(self, longest: int) -> None:
        self.longest = longest

    def __call__(self, texts: list[bytes]) -> tuple[Tensor, Tensor]:
        rows = [[START, *(byte + FIRST_BYTE for byte in text[: self.longest - 2]), END] for text in texts]
        return _padded(rows, PAD)


class FolderTokenizer:
    """The tokenizer of a model folder, through transformers."""

    def __init__(self, tokenizer: Any, longest: int) -> None:
        self._tokenizer = tokenizer
        self.longest = min(longest, int(tokenizer.model_max_length))

    def __call__(self, texts: list[bytes]) -> tuple[Tensor, Tensor]:
        decoded = [text.decode("utf-8", "replace") for text in texts]
        rows = self._tokenizer(decoded, add_special_tokens=True, truncation=True, max_length=self.longest)["input_ids"]
        pad = self._tokenizer.pad_token_id
        return _padded(rows, 0 if pad is None else int(pad))


def _padded(rows: list[list[int]], pad: int) -> tuple[Tensor, Tensor]:
    width = max((len(row) for row in rows), default=1)
    numbers_BN = torch.full((len(rows), width), pad)
    valid_BN = torch.zeros(len(rows), width, dtype=torch.bool)
    for row, numbers in enumerate(rows):
        numbers_BN[row, : len(numbers)] = torch.tensor(numbers)
        valid_BN[row, : len(numbers)] = True
    return numbers_BN, valid_BN
