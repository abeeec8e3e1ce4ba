"""JSON objects of files that others wrote, read strictly: UTF-8, no field twice, errors that name file and line."""

from __future__ import annotations

import json
from typing import Any

BOM = b"\xef\xbb\xbf"


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
