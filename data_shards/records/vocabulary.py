"""Which number stands for which code: given, or learned from the training part.

Numbers 0 and 1 are reserved: a code that the vocabulary does not know is `UNKNOWN`, one that training had too seldom
for a number of its own is `RARE`. Named codes follow from `FIRST_CODE` on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np

from data_shards.errors import TableError
from data_shards.parquet import Column, dump_table, load_table
from data_shards.records.check import MAX_CODE_BYTES
from data_shards.records.schema import FIRST_CODE, RARE, UNKNOWN

MAX_NAMED = 1_000_000  # codes with a number of their own
MAX_SEEN = 1 << 22  # different codes of a training part, with the rare ones
_TYPES = {"code": "string", "id": "int32", "records": "int64"}


@dataclass(frozen=True)
class VocabularyRule:
    """How a vocabulary is learned.

    Attributes:
        min_count: training records that a code must be in, to have a number of its own.
        max_codes: most codes that have one: the most frequent ones.

    Raises:
        ValueError: one of them is out of range.
    """

    min_count: int = 1
    max_codes: int = MAX_NAMED

    def __post_init__(self) -> None:
        if self.min_count < 1 or not 1 <= self.max_codes <= MAX_NAMED:
            raise ValueError(
                f"min_count {self.min_count} must be 1 or more, max_codes {self.max_codes} must be 1 to {MAX_NAMED}"
            )


@dataclass(frozen=True)
class Vocabulary:
    """Codes of one modality.

    Attributes:
        names: codes that have a number, in its order. counts: training records that each is in; empty if not known.
        rare: codes that training has and that share one number. rare_counts: as for names.

    Raises:
        ValueError: a code twice, one that is no text of 1 to 200 bytes, too many, or counts that do not fit.
    """

    names: tuple[str, ...]
    counts: tuple[int, ...] = ()
    rare: tuple[str, ...] = ()
    rare_counts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for field in ("names", "counts", "rare", "rare_counts"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        if len(self.names) > MAX_NAMED or len(self.names) + len(self.rare) > MAX_SEEN:
            raise ValueError(
                f"a vocabulary of {len(self.names)} codes and {len(self.rare)} rare ones: at most {MAX_NAMED} have a "
                f"number, and {MAX_SEEN} may there be in all"
            )
        for code in (*self.names, *self.rare):
            if not isinstance(code, str) or not code or len(code.encode()) > MAX_CODE_BYTES:
                raise ValueError(f"code {code!r} must be text of 1 to {MAX_CODE_BYTES} bytes")
        if len(self._numbers) != len(self.names) + len(self.rare):
            seen = set[str]()
            twice = next(code for code in (*self.names, *self.rare) if code in seen or seen.add(code))  # type: ignore[func-returns-value]
            raise ValueError(f"code {twice!r} is in the vocabulary twice")
        for codes, counts in ((self.names, self.counts), (self.rare, self.rare_counts)):
            if counts and len(counts) != len(codes):
                raise ValueError(f"{len(counts)} counts for {len(codes)} codes of a vocabulary")

    @staticmethod
    def learned(records: Mapping[str, int], rule: VocabularyRule) -> Vocabulary:
        """From the number of training records that each code is in: the most frequent first, then by name."""
        ordered = sorted(records, key=lambda code: (-records[code], code))
        named = [code for code in ordered[: rule.max_codes] if records[code] >= rule.min_count]
        rare = ordered[len(named) :]
        return Vocabulary(
            tuple(named), tuple(records[code] for code in named), tuple(rare), tuple(records[code] for code in rare)
        )

    @property
    def size(self) -> int:
        """Numbers that there are, with the reserved ones: ``ModalitySpec.codes``."""
        return len(self.names) + FIRST_CODE

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what numbers depend on (`digested`), in hexadecimal."""
        return hashlib.sha256(self.digested()).hexdigest()

    def digested(self) -> bytes:
        """What numbers depend on: the JSON text ``[names, rare]`` without spaces. Without counts."""
        return json.dumps([self.names, self.rare], ensure_ascii=False, separators=(",", ":")).encode()

    @staticmethod
    def of_digested(data: bytes) -> Vocabulary:
        """Inverse of `digested`. Raises ValueError: it is no vocabulary."""
        lists = json.loads(data)
        if not isinstance(lists, list) or [type(own) for own in lists] != [list, list]:
            raise ValueError("it is not JSON of two lists of codes")
        return Vocabulary(tuple(lists[0]), (), tuple(lists[1]))

    @cached_property
    def _numbers(self) -> dict[str, int]:
        numbers = {code: number for number, code in enumerate(self.names, FIRST_CODE)}
        return numbers | dict.fromkeys(self.rare, RARE)

    def ids(self, codes: Sequence[str]) -> np.ndarray:
        """int32 [codes]: the number of each."""
        numbers = self._numbers
        return np.array([numbers.get(code, UNKNOWN) for code in codes], np.int32)

    def name(self, number: int) -> str:
        """The code with this number; of the reserved ones what they stand for. Raises ValueError: there is none."""
        if number in (UNKNOWN, RARE):
            return "(unknown)" if number == UNKNOWN else "(rare)"
        if not FIRST_CODE <= number < self.size:
            raise ValueError(f"number {number} is none of this vocabulary's {self.size}")
        return self.names[number - FIRST_CODE]

    def to_bytes(self) -> bytes:
        """Parquet: code, number, training records (-1 if not known); by number, rare ones at the end."""
        counts = (*(self.counts or [-1] * len(self.names)), *(self.rare_counts or [-1] * len(self.rare)))
        ids = (*range(FIRST_CODE, self.size), *[RARE] * len(self.rare))
        columns: dict[str, Column] = {
            "code": [*self.names, *self.rare],
            "id": np.array(ids, np.int32),
            "records": np.array(counts, np.int64),
        }
        return dump_table(columns, _TYPES)

    @property
    def rows(self) -> int:
        """Of the table."""
        return len(self.names) + len(self.rare)

    @staticmethod
    def from_bytes(data: bytes, rows: int) -> Vocabulary:
        """Inverse of `to_bytes`. Raises TableError: it is no vocabulary of so many rows."""
        if not 0 <= rows <= MAX_SEEN:
            raise TableError(f"{rows} codes are claimed, at most {MAX_SEEN} are legal")
        columns = load_table(data, _TYPES, rows)
        codes, ids, counts = cast(list[str], columns["code"]), columns["id"], cast(np.ndarray, columns["records"])
        named = int((np.asarray(ids) != RARE).sum())
        wanted = np.concatenate((np.arange(FIRST_CODE, FIRST_CODE + named), np.full(rows - named, RARE)))
        if not np.array_equal(ids, wanted):
            raise TableError("its numbers do not count up to the rare codes")
        known = tuple(counts.tolist()) if rows and (counts >= 0).all() else ()
        try:
            return Vocabulary(tuple(codes[:named]), known[:named], tuple(codes[named:]), known[named:])
        except ValueError as error:
            raise TableError(str(error)) from error
