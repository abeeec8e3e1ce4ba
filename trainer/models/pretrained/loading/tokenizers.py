"""Text as token numbers, with or without a vocabulary file.

A model from the Hugging Face hub brings its own tokenizer. One that was trained here reads UTF-8 bytes: nothing to
download, nothing out of vocabulary. Texts that are too long are cut, and counted.

Shapes: B texts, N tokens of the longest one.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from trainer.models.pretrained.loading.backbone import BackboneError

PAD, START, END, FIRST_BYTE = 0, 1, 2, 3
VOCABULARY = 256 + FIRST_BYTE


class Tokenizer(Protocol):
    """Texts -> (numbers (B, N), valid (B, N) bool).

    Attributes:
        longest: tokens that a text may have. cut: texts so far that had more.
    """

    longest: int
    cut: int

    def __call__(self, texts: list[bytes]) -> tuple[Tensor, Tensor]: ...


class ByteTokenizer:
    """Start, the bytes of the text, end; what is longer than `longest` is cut."""

    def __init__(self, longest: int) -> None:
        self.longest, self.cut = longest, 0

    def __call__(self, texts: list[bytes]) -> tuple[Tensor, Tensor]:
        self.cut += sum(len(text) > self.longest - 2 for text in texts)
        rows = [[START, *(byte + FIRST_BYTE for byte in text[: self.longest - 2]), END] for text in texts]
        return _padded(rows, PAD)


class FolderTokenizer:
    """The tokenizer of a model folder, through transformers."""

    def __init__(self, tokenizer: Any, longest: int) -> None:
        self._tokenizer = tokenizer
        self.longest, self.cut = min(longest, int(tokenizer.model_max_length)), 0

    def __call__(self, texts: list[bytes]) -> tuple[Tensor, Tensor]:
        decoded = [text.decode("utf-8", "replace") for text in texts]
        found = self._tokenizer(decoded, add_special_tokens=True, truncation=True, max_length=self.longest)
        self.cut += sum(bool(one.overflowing) for one in found.encodings or ())
        rows = found["input_ids"]
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


def tokenizer_of(words: Any, settings: Any, max_tokens: int, label: str, remedy: str, size: str) -> Tokenizer:
    """The tokenizer of a model with these settings; without `words`, of bytes.

    Args:
        label: what the model is called in sentences. remedy: what to do about another tokenizer; size: about too small
            a vocabulary.

    Raises:
        BackboneError: it is empty, or larger than what the model embeds.
    """
    longest, embedded = min(max_tokens, longest_text(settings)), int(settings.vocab_size)
    if words is None:
        if embedded < VOCABULARY:
            raise BackboneError(f"{label} has a vocabulary of {embedded} tokens, and bytes need {VOCABULARY}: {size}")
        return ByteTokenizer(longest)
    # The library makes an empty tokenizer where its files are gone, and an embedding is asked for any number.
    known = len(words)
    if known <= len(words.all_special_tokens):
        raise BackboneError(
            f"{label}: its tokenizer knows no words (are vocab.txt or tokenizer.json gone from its folder?); give "
            f"another folder{remedy}, or bytes"
        )
    if known > embedded:
        raise BackboneError(
            f"{label}: its tokenizer knows {known} tokens, and the model embeds {embedded}: give the tokenizer that "
            f"the model was trained with{remedy}"
        )
    return FolderTokenizer(words, longest)


def longest_text(settings: Any) -> int:
    """Tokens that a model has positions for. RoBERTa and Longformer begin to count behind the number of padding."""
    first = int(settings.pad_token_id) + 1 if settings.model_type in ("roberta", "longformer") else 0
    return int(settings.max_position_embeddings) - first
