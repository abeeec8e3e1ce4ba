"""Files of lines, and JSON that is read strictly. Memory holds where each line begins, not the lines."""

from __future__ import annotations

import json
from array import array
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

BOM = b"\xef\xbb\xbf"


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


def parse_text(data: bytes, where: str) -> str:
    """UTF-8 as text. Raises ValueError."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{where} is not UTF-8 (byte {data[error.start]:#04x} at place {error.start + 1}): save the file as UTF-8"
        ) from error


def parse_object(data: bytes, where: str) -> dict[str, Any]:
    """A JSON object; a field that is named twice is an error, NaN and Infinity are read as Python writes them.

    Raises:
        ValueError: not UTF-8, not JSON, no object, or a field twice.
    """
    text = parse_text(data, where).strip()
    if text.startswith("["):
        raise ValueError(
            f"{where} begins a JSON array, and a JSON object a line is read: write each record on its line"
        )
    try:
        value = json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not JSON: {error.msg}, at character {error.pos + 1}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not read: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{where} is a JSON {kind_of(value)}, not an object with fields")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it names the field {twice!r} twice")
    return found


def kind_of(value: object) -> str:
    """What JSON calls a value."""
    if isinstance(value, bool):
        return "truth value"
    kinds = {str: "text", int: "whole number", float: "number with a decimal point", list: "list", dict: "object"}
    return kinds.get(type(value), "null")
