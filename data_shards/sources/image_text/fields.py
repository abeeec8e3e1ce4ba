"""What a field of a record may hold. Nothing is made a text that is not one; what is not there is None or empty.

Not there means for every field: absent, null, NaN (which pandas writes for it), or an empty text.
"""

from __future__ import annotations

import math
from typing import Any

from data_shards.records.record import KEY
from data_shards.sources.readers.strict_json import kind_of

Row = dict[str, Any]


class LeftOut(Exception):  # noqa: N818  (nothing is wrong)
    """A record is not packed, as the options say; its text is what is counted."""


def text_of(row: Row, field: str, where: str) -> str | None:
    """A text as it stands. Raises ValueError for anything else."""
    value = row.get(field)
    if is_missing(value):
        return None
    if not isinstance(value, str):
        raise ValueError(f"{where}: field {field!r} is a {kind_of(value)}, not a text: write it in quotes")
    return _whole(value, field, where)


def turns_of(row: Row, field: str, where: str) -> list[str]:
    """Turns of a dialogue, in order: ``role: text`` where a role is named; a text alone is one turn.

    A turn is a text, or an object with the speaker (``role`` or ``from``) and the text (``content`` or ``value``).
    Those without any text are left out. Raises ValueError for anything else.
    """
    value = row.get(field)
    turns = value if isinstance(value, list) else [value]
    found = []
    for number, turn in enumerate(turns):
        here = f"{where}, turn {number + 1}"
        if not isinstance(turn, dict):
            text = text_of({field: turn}, field, here)
            found += [] if text is None else [text]
            continue
        told = next((name for name in ("content", "value") if name in turn), None)
        if told is None:
            raise ValueError(f"{here}: field {field!r} holds an object without content or value: {sorted(turn)}")
        text = text_of(turn, told, here)
        role = next((text_of(turn, name, here) for name in ("role", "from") if name in turn), None)
        found += [] if text is None else [text if role is None else f"{role}: {text}"]
    return found


def names_of(row: Row, field: str, where: str) -> list[str]:
    """Names in order, of a list or of one; what is not there is left out. Raises ValueError as `name_of`."""
    value = row.get(field)
    names = [name_of({field: one}, field, where) for one in (value if isinstance(value, list) else [value])]
    return [name for name in names if name is not None]


def name_of(row: Row, field: str, where: str) -> str | None:
    """A text or whole number, as the name of something, e.g. of a picture. Raises ValueError."""
    value = _whole_number(row.get(field))
    if is_missing(value):
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"{where}: field {field!r} is a {kind_of(value)}, not a text or a whole number")
    name = _whole(str(value), field, where)
    if any(character < " " for character in name):
        raise ValueError(f"{where}: field {field!r} holds control characters: {name[:80]!r}")
    return name


def key_of(row: Row, field: str, where: str) -> str:
    """A record's key. Raises ValueError."""
    name = name_of(row, field, where)
    if name is None:
        raise ValueError(f"{where} has no {field!r}, which is to be its key: leave option id out to number the records")
    if not KEY.fullmatch(name):
        raise ValueError(
            f"{where}: {field!r} is {name[:100]!r}, and a key is 1 to 90 letters, digits, '_' or '-': leave option id "
            "out to number the records"
        )
    return name


def labels_of(row: Row, field: str, where: str) -> list[str]:
    """Labels of one record, none if it is unlabelled; repeated ones are left in.

    A label is a text, without spaces around it, or a whole number or truth value as JSON writes it: 1, 1.0 and "1" are
    one label, and true and "true". No label is also an empty list.

    Raises:
        ValueError: a number with a decimal point, an object, a list in a list, or nothing in a list.
    """
    value = row.get(field)
    if is_missing(value) or value == []:
        return []
    if not isinstance(value, list):
        label = _label(value, field, where)
        return [label] if label else []
    labels = [_label(item, field, where) for item in value if not is_missing(item)]
    if len(labels) < len(value) or "" in labels:
        raise ValueError(f"{where}: one of the labels in {field!r} is empty: leave it out of the list")
    return labels


def is_missing(value: object) -> bool:
    """Absent, null, NaN or an empty text."""
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _label(value: object, field: str, where: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    value = _whole_number(value)
    if not isinstance(value, str | int):
        raise ValueError(
            f"{where}: field {field!r} holds a {kind_of(value)}, and a label is a text, a whole number or a truth value"
        )
    return _whole(str(value), field, where).strip()


def _whole_number(value: object) -> object:
    """1.0 as 1: pandas writes whole numbers so in a column where one is missing."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def _whole(text: str, field: str, where: str) -> str:
    r"""The text, if it can be written as UTF-8: JSON can name half of a character, \ud83d, which cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where}: field {field!r} holds half of a character, {text[error.start]!a} at place {error.start + 1}: "
            "write the file again from text that is whole"
        ) from error
    return text
