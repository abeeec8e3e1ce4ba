"""Shards of a data set: made one by one from columns, as a hundred thousand of them are seldom needed at once.

Shapes: S shards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar, overload

import numpy as np
from pydantic import ConfigDict

from data_shards.shards.contents.chunks import Chunks, ChunkTable


@dataclass(frozen=True)
class IndexFile:
    """The file with one row per record of a shard."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Shard:
    """One tar file."""

    name: str
    bytes: int
    sha256: str
    records: int
    index: IndexFile
    chunks: Chunks = field(repr=False, compare=False)


class ShardList(Sequence[Shard]):
    """All shards of a data set, in storage order.

    Args:
        arrays: ``names`` and ``index_names``, text one after the other, with the places where each begins, and the
            end, in ``name_starts`` and ``index_name_starts``; ``sha256``, ``index_sha256`` [S, 32]; ``bytes``,
            ``records``, ``index_bytes``.
    """

    def __init__(self, arrays: dict[str, np.ndarray], chunks: ChunkTable) -> None:
        self._arrays, self._chunks = arrays, chunks

    @staticmethod
    def arrays_of(
        names: Sequence[str],
        sha256: Sequence[str],
        index_names: Sequence[str],
        index_sha256: Sequence[str],
        numbers: dict[str, np.ndarray],
    ) -> dict[str, np.ndarray]:
        """The arrays, from lists of text and the columns of numbers."""
        found = dict(numbers)
        for key, texts in (("name", names), ("index_name", index_names)):
            raw = [text.encode() for text in texts]
            found[f"{key}s"] = np.frombuffer(b"".join(raw), np.uint8)
            found[f"{key}_starts"] = np.cumsum([0, *map(len, raw)])
        for key, digests in (("sha256", sha256), ("index_sha256", index_sha256)):
            found[key] = np.frombuffer(bytes.fromhex("".join(digests)), np.uint8).reshape(-1, 32)
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        # Of shared arrays only their place travels.
        return ShardList, (self._chunks.shared or self._arrays, self._chunks)

    @property
    def bytes_S(self) -> np.ndarray:  # noqa: N802
        """int64: bytes of each shard."""
        return self._arrays["bytes"]

    @property
    def records_S(self) -> np.ndarray:  # noqa: N802
        """int64: records of each shard."""
        return self._arrays["records"]

    @property
    def index_bytes_S(self) -> np.ndarray:  # noqa: N802
        """int64: bytes of each shard's index."""
        return self._arrays["index_bytes"]

    def names(self) -> Iterator[str]:
        """Names of all shards, then those of their indices."""
        for key in ("name", "index_name"):
            raw = self._arrays[f"{key}s"].tobytes()
            for start, end in pairwise(self._arrays[f"{key}_starts"].tolist()):
                yield raw[start:end].decode()

    def __len__(self) -> int:
        return len(self._arrays["bytes"])

    @overload
    def __getitem__(self, number: int) -> Shard: ...
    @overload
    def __getitem__(self, number: slice) -> list[Shard]: ...
    def __getitem__(self, number: int | slice) -> Shard | list[Shard]:
        if isinstance(number, slice):
            return [self._shard(n) for n in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(f"shard {number} of {len(self)}")
        return self._shard(number % len(self))

    def __iter__(self) -> Iterator[Shard]:
        return map(self._shard, range(len(self)))

    def _shard(self, number: int) -> Shard:
        own = self._arrays
        index = IndexFile(
            self._text("index_name", number),
            int(own["index_bytes"][number]),
            own["index_sha256"][number].tobytes().hex(),
        )
        return Shard(
            self._text("name", number),
            int(own["bytes"][number]),
            own["sha256"][number].tobytes().hex(),
            int(own["records"][number]),
            index,
            self._chunks.of_shard(number),
        )

    def _text(self, key: str, number: int) -> str:
        start, end = self._arrays[f"{key}_starts"][number : number + 2].tolist()
        return self._arrays[f"{key}s"][start:end].tobytes().decode()
