"""The lines of a file as records. Memory holds where each line begins, not the lines."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from data_shards.sources.readers.strict_json import BOM, parse_object


class Rows(Protocol):
    """The records of one part, by number."""

    def __len__(self) -> int:
        """How many there are."""

    def where(self, number: int) -> str:
        """File and line of one, for messages; the line is counted as an editor counts."""

    def row(self, number: int) -> dict[str, Any]:
        """Field -> value of one. ValueError says where it is wrong."""


@dataclass(frozen=True)
class Lines:
    """The lines of a file that are not blank."""

    path: str

    def __len__(self) -> int:
        return len(_index(self.path)[0])

    def where(self, number: int) -> str:
        return f"{self.path}, line {_index(self.path)[1][number]}"

    def line(self, number: int) -> bytes:
        """The line's bytes without a byte order mark; its end is left on."""
        with Path(self.path).open("rb") as stream:
            stream.seek(_index(self.path)[0][number])
            return stream.readline()


@dataclass(frozen=True)
class JsonLines(Lines):
    """A JSON object a line."""

    def row(self, number: int) -> dict[str, Any]:
        return parse_object(self.line(number), self.where(number))


def _index(path: str) -> tuple[array[int], array[int]]:
    """Offset and line number, from 1, of every line that is not blank."""
    state = Path(path).stat()
    return _indexed(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=6)
def _indexed(path: str, size: int, changed: int) -> tuple[array[int], array[int]]:
    """Of the file as it was then."""
    offsets, numbers, offset = array("q"), array("q"), 0
    with Path(path).open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            mark = len(BOM) if number == 1 and line.startswith(BOM) else 0
            if line[mark:].strip():
                offsets.append(offset + mark)
                numbers.append(number)
            offset += len(line)
    return offsets, numbers
