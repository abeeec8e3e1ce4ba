"""Cells of a table, as text (CSV, JSON lines) or typed (Parquet) -> columns of one of a few types; the same for both.

Types: ``number`` (float64); ``loose`` (a number that may be a word: then the word is kept beside it, and whoever uses
the cell refuses it); ``text``; ``date`` (a moment, as UTC microseconds; ``date:seconds`` and so on: a number since 1970
in that unit); ``elapsed`` (a number, or a duration, then in seconds); ``numbers`` (a list); ``file`` (a path, or
bytes). An empty cell is empty in all of them. Words such as NA are empty where a number or a date is wanted, and in
every column if the mapping names them itself; they are counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_shards.sources.readers.csv_dialect import EMPTY_WORDS, Dialect

FILE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
TYPES: dict[str, pa.DataType] = {
    "number": pa.float64(),
    "loose": pa.struct([("number", pa.float64()), ("word", pa.string())]),
    "text": pa.string(),
    "elapsed": pa.float64(),
    "numbers": pa.list_(pa.float64()),
    "file": FILE,
}
SCALES = {"nanoseconds": "ns", "microseconds": "us", "milliseconds": "ms", "seconds": "s"}
_LONG = {"minutes": 60, "hours": 3600, "days": 86400}
DATE_UNITS = (*SCALES, *_LONG)
_BOOLEANS = {"true": 1.0, "True": 1.0, "TRUE": 1.0, "false": 0.0, "False": 0.0, "FALSE": 0.0}
_SAY_DATE = 'say how dates are written: csv: {date: "%d.%m.%Y %H:%M"}'
_TWO_KINDS = (
    "holds dates with a zone (Z or +01:00) and dates without one, whose distance nobody knows; give all of them a "
    "zone, or none"
)
_DURATION = r"^(?:(?P<days>[+-]?\d+) days?,? )?(?P<sign>[+-]?)(?P<h>\d+):(?P<m>\d\d):(?P<s>\d\d(?:\.\d+)?)$"


def type_of(kind: str) -> pa.DataType:
    """The Arrow type of a column."""
    return pa.timestamp("us") if kind.startswith("date") else TYPES[kind]


class CellError(ValueError):
    """A cell that is not of the type: its row in the batch, and what is wrong."""

    def __init__(self, row: int | None, problem: str) -> None:
        super().__init__(problem)
        self.row = row


@dataclass
class Cells:
    """Converts the columns of one table (one file or all of a pattern), and keeps what must agree over all of it.

    Attributes:
        dialect: words for empty cells, decimal mark, form of dates. listed: column -> words that the mapping lists.
        swallowed: column -> cells that a word made empty. zoned: date column -> whether its dates have a zone.
        durations: columns of type elapsed -> whether they hold durations (then in seconds). key: column that names the
            record; it shows rows that a stray quote has swallowed. replace: column of numbers -> cell, as Python writes
            it, -> the number that it stands for, or None. replaced: column -> cells that were.
    """

    dialect: Dialect = field(default_factory=Dialect)
    listed: Mapping[str, frozenset[str]] = field(default_factory=dict)
    swallowed: Counter[str] = field(default_factory=Counter)
    zoned: dict[str, bool] = field(default_factory=dict)
    durations: dict[str, bool] = field(default_factory=dict)
    key: str | None = None
    replace: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    replaced: Counter[str] = field(default_factory=Counter)

    def fresh(self) -> Cells:
        """For another piece of the same table, which may be read elsewhere."""
        return replace(self, swallowed=Counter(), zoned={}, durations={}, replaced=Counter())

    def join(self, other: Cells) -> None:
        """Take in what was found in a later piece. Raises CellError: the pieces do not agree."""
        self.swallowed += other.swallowed
        self.replaced += other.replaced
        try:
            name = ""
            for name, zoned in other.zoned.items():
                self._same_zone(name, zoned)
            for name, duration in other.durations.items():
                self._same_elapsed(name, duration)
        except CellError as error:
            raise CellError(None, f"column {name!r} {error}") from error

    def convert(self, column: pa.Array, name: str, kind: str) -> pa.Array:
        """A piece of a column as `kind`; raises CellError."""
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if pa.types.is_null(column.type):
            return pa.nulls(len(column), type_of(kind))
        if name in self.replace and kind in ("number", "loose"):
            return self._with_replaced(column, name, kind)
        return self._convert(column, name, kind)

    def _convert(self, column: pa.Array, name: str, kind: str) -> pa.Array:
        if _is_text(column.type):
            column = self._empty(column.cast(pa.string()), name, kind)
        by_kind: dict[str, Callable[[pa.Array, str, str], pa.Array]] = {
            "number": self._number, "loose": self._loose, "text": self._text, "date": self._date,
            "elapsed": self._elapsed, "numbers": self._numbers, "file": self._file,
        }  # fmt: skip
        return by_kind[kind.split(":")[0]](column, name, kind)

    def _with_replaced(self, column: pa.Array, name: str, kind: str) -> pa.Array:
        """As `_convert`; cells that stand for a number become it before anything is made of them."""
        meaning = self.replace[name]
        text = column.cast(pa.string()) if _is_text(column.type) else self._text(column, name, "text")
        place = pc.index_in(pc.utf8_trim_whitespace(text), value_set=pa.array(list(meaning), pa.string()))
        self.replaced[name] += len(place) - place.null_count
        stands = pa.array(list(meaning.values()), pa.float64()).take(place)
        rest = self._convert(pc.if_else(place.is_valid(), pa.scalar(None, column.type), column), name, kind)
        if kind == "number":
            return pc.if_else(place.is_valid(), stands, rest)
        number = pc.if_else(place.is_valid(), stands, rest.field("number"))
        return pa.StructArray.from_arrays([number, rest.field("word")], ["number", "word"])

    def _empty(self, text: pa.Array, name: str, kind: str) -> pa.Array:
        """Cells without content become null, and words for it."""
        if kind in ("text", "file"):
            words = set(self.dialect.null or ()) - self.listed.get(name, frozenset())
            bare = text
        else:
            words = set(EMPTY_WORDS if self.dialect.null is None else self.dialect.null)
            bare = text = pc.utf8_trim_whitespace(text)
        swallowed = pc.is_in(bare, value_set=pa.array(sorted(words), pa.string()))
        self.swallowed[name] += pc.sum(swallowed).as_py() or 0
        return pc.if_else(pc.or_(swallowed, pc.equal(bare, "")), pa.scalar(None, pa.string()), text)

    def _text(self, column: pa.Array, name: str, kind: str) -> pa.Array:
        if _is_text(column.type):
            return column
        if pa.types.is_boolean(column.type):
            return pc.if_else(column, "True", "False")
        if pa.types.is_floating(column.type):
            # As Python and pandas write them: 1.0, not 1
            return pa.array([None if v != v else str(v) for v in column.to_numpy(zero_copy_only=False)], pa.string())
        if pa.types.is_integer(column.type) or pa.types.is_decimal(column.type):
            return column.cast(pa.string())
        raise CellError(None, f"holds {column.type}, and is used as text; store text or integers")

    def _number(self, column: pa.Array, name: str, kind: str) -> pa.Array:
        loose = self._loose(column, name, kind)
        number, word = loose.field("number"), loose.field("word")
        if word.null_count < len(word):
            row = int(np.flatnonzero(word.is_valid())[0])
            raise CellError(row, f"{word[row].as_py()!r} is no number")
        return number

    def _loose(self, column: pa.Array, name: str, kind: str) -> pa.Array:
        """Number and, where there is none, the word."""
        words = pa.nulls(len(column), pa.string())
        if not _is_text(column.type):
            return pa.StructArray.from_arrays([_plain_number(column), words], ["number", "word"])
        text = column
        if self.dialect.decimal == ",":
            point = pc.match_substring(text, ".")
            text = pc.if_else(point, text, pc.replace_substring(text, ",", "."))
            words = pc.if_else(point, column, words)
            text = pc.if_else(point, pa.scalar(None, pa.string()), text)
        try:
            number = text.cast(pa.float64())
        except pa.ArrowInvalid:
            found = [_parse(cell) for cell in text.to_pylist()]
            number = pa.array([value for value, _ in found], pa.float64())
            words = pc.coalesce(words, pa.array([word for _, word in found], pa.string()))
        nan = pc.is_nan(number).fill_null(False)
        self.swallowed[name] += pc.sum(nan).as_py() or 0
        number = pc.if_else(nan, pa.scalar(None, pa.float64()), number)
        return pa.StructArray.from_arrays([number, words.cast(pa.string())], ["number", "word"])

    def _date(self, column: pa.Array, name: str, kind: str) -> pa.Array:
        unit = kind.partition(":")[2]
        if unit:
            return self._counted_date(column, name, unit)
        if _is_text(column.type):
            column = _parse_dates(column, self.dialect.date)
        elif not (pa.types.is_timestamp(column.type) or pa.types.is_date(column.type)):
            raise CellError(
                None,
                f"holds {column.type}, which is no date; if these are counts since 1970, say of what: date_unit: "
                f"{', '.join(DATE_UNITS)}",
            )
        if column.null_count < len(column):
            self._same_zone(name, pa.types.is_timestamp(column.type) and column.type.tz is not None)
        fine = pa.types.is_timestamp(column.type) and column.type.unit == "ns"  # less than a microsecond is cut
        return column.cast(pa.timestamp("us"), safe=not fine)

    def _counted_date(self, column: pa.Array, name: str, unit: str) -> pa.Array:
        """Numbers since 1970 in a unit."""
        if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
            raise CellError(None, f"holds dates ({column.type}); date_unit is for numbers")
        if _is_text(column.type) and pc.all(pc.match_substring_regex(column, r"^[+-]?\d+$")).as_py():
            column = column.cast(pa.int64())
        if pa.types.is_integer(column.type):
            whole = column.cast(pa.int64())
            if unit in SCALES:
                # Less than a microsecond is cut, more than the calendar is refused
                return whole.cast(pa.timestamp(SCALES[unit])).cast(pa.timestamp("us"), safe=unit != "nanoseconds")
            return pc.multiply_checked(whole, _LONG[unit] * 1_000_000).cast(pa.timestamp("us"))
        number = self._number(column, name, "number")
        per = {"nanoseconds": 1e-3, "microseconds": 1.0, "milliseconds": 1e3, "seconds": 1e6}.get(unit)
        moments = pc.round(pc.multiply(number, per if per is not None else _LONG[unit] * 1e6))
        return moments.cast(pa.int64()).cast(pa.timestamp("us"))

    def _same_zone(self, name: str, zoned: bool) -> None:
        if self.zoned.setdefault(name, zoned) != zoned:
            raise CellError(None, _TWO_KINDS)

    def _elapsed(self, column: pa.Array, name: str, kind: str) -> pa.Array:
        """Numbers, or durations in seconds."""
        if column.null_count == len(column):
            return pa.nulls(len(column), pa.float64())
        if pa.types.is_duration(column.type):
            self._same_elapsed(name, True)
            return pa.array(column.cast(pa.duration("ns")).cast(pa.int64()).to_numpy(zero_copy_only=False) / 1e9,
                            pa.float64(), mask=column.is_null().to_numpy(zero_copy_only=False))  # fmt: skip
        if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
            raise CellError(None, f"holds dates ({column.type}); say which date is time 0 with origin")
        if _is_text(column.type) and pc.match_substring(column.drop_null()[:1], ":")[0].as_py():
            self._same_elapsed(name, True)
            return _parse_durations(column)
        self._same_elapsed(name, False)
        return self._number(column, name, kind)

    def _same_elapsed(self, name: str, duration: bool) -> None:
        if self.durations.setdefault(name, duration) != duration:
            raise CellError(None, "holds numbers and durations; make it one of the two")

    def _numbers(self, column: pa.Array, name: str, kind: str) -> pa.Array:
        if _is_text(column.type):
            raise CellError(None, "is text, and a list of numbers is wanted; use Parquet, or one column a feature")
        listed = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
        if not listed and not pa.types.is_fixed_size_list(column.type):
            raise CellError(None, f"holds {column.type}, and a list of numbers is wanted")
        return column.cast(TYPES["numbers"])

    def _file(self, column: pa.Array, name: str, kind: str) -> pa.Array:
        if _is_text(column.type):
            return pa.StructArray.from_arrays(
                [pa.nulls(len(column), pa.binary()), column], fields=list(FILE), mask=column.is_null()
            )
        if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
            return pa.StructArray.from_arrays(
                [column.cast(pa.binary()), pa.nulls(len(column), pa.string())],
                fields=list(FILE),
                mask=column.is_null(),
            )
        if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
            names = [f.name for f in column.type]
            path = pc.struct_field(column, "path") if "path" in names else pa.nulls(len(column), pa.string())
            parts = [pc.struct_field(column, "bytes").cast(pa.binary()), path.cast(pa.string())]
            nothing = pc.and_(parts[0].is_null(), parts[1].is_null())
            return pa.StructArray.from_arrays(parts, fields=list(FILE), mask=nothing)
        raise CellError(
            None, f"holds {column.type}, and a file is given by a path, by bytes, or by a struct of bytes and path"
        )


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _plain_number(column: pa.Array) -> pa.Array:
    """A typed column as float64; NaN is empty."""
    if pa.types.is_boolean(column.type):
        return column.cast(pa.uint8()).cast(pa.float64())
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_decimal(column.type)):
        raise CellError(None, f"holds {column.type}, and numbers are wanted")
    number = column.cast(pa.float64())
    return pc.if_else(pc.is_nan(number).fill_null(False), pa.scalar(None, pa.float64()), number)


def _parse(cell: str | None) -> tuple[float | None, str | None]:
    """(number, None) or (None, the word)."""
    if cell is None:
        return None, None
    if cell in _BOOLEANS:
        return _BOOLEANS[cell], None
    # Python takes 1_000 and digits of any script
    try:
        return (None, cell) if "_" in cell or not cell.isascii() else (float(cell), None)
    except ValueError:
        return None, cell


def _parse_dates(text: pa.Array, form: str | None) -> pa.Array:
    """Timestamps with a zone or without; raises CellError."""
    if form is not None:
        return _formed_dates(text, form)
    try:
        # UTC and GMT are zones, and a blank may stand before one
        text = pc.replace_substring_regex(text, r" ?(?:UTC|GMT)$", "Z")
        text = pc.replace_substring_regex(text, r"(:\d\d(?:\.\d+)?) ([+-]\d)", r"\1\2")
        # pandas writes nanoseconds with nine digits, which Arrow does not read as microseconds
        text = pc.replace_substring_regex(text, r"(\.\d{6})\d+", r"\1")
        return text.cast(pa.timestamp("us"))
    except pa.ArrowInvalid as plain:
        try:
            return text.cast(pa.timestamp("us", "UTC"))
        except pa.ArrowInvalid:
            raise _wrong_date(text) from plain


def _formed_dates(text: pa.Array, form: str) -> pa.Array:
    """Dates of one form, each different cell once; no 31 February becomes another day."""
    cells = text.dictionary_encode()
    moments: list[datetime | None] = []
    for cell in cells.dictionary.to_pylist():
        try:
            moments.append(datetime.strptime(cell, form))
        except ValueError:
            row = text.index(cell).as_py()
            raise CellError(row, f"{cell!r} is not of the form {form}; {_SAY_DATE}") from None
    zone = "UTC" if any(moment.tzinfo for moment in moments if moment) else None
    return pa.array(moments, pa.timestamp("us", zone)).take(cells.indices)


def _wrong_date(text: pa.Array) -> CellError:
    """Which cell is none; or that some have a zone and some have not."""
    for row, cell in enumerate(text.to_pylist()):
        if cell is not None and not any(
            _readable(cell, kind) for kind in (pa.timestamp("us"), pa.timestamp("us", "UTC"))
        ):
            return CellError(row, f"{cell!r} is not an ISO 8601 date (2031-05-30 14:05); {_SAY_DATE}")
    return CellError(None, _TWO_KINDS)


def _readable(cell: str, kind: pa.DataType) -> bool:
    try:
        pa.array([cell]).cast(kind)
    except pa.ArrowInvalid:
        return False
    return True


def _parse_durations(text: pa.Array) -> pa.Array:
    """Cells such as `0 days 05:00:00` or `05:00:00.5`, in seconds."""
    parts = pc.extract_regex(text, _DURATION)
    bad = np.flatnonzero(pc.and_(parts.is_null(), text.is_valid()).to_numpy(zero_copy_only=False))
    if len(bad):
        raise CellError(int(bad[0]), f"{text[int(bad[0])].as_py()!r} is no duration like 1 days 05:00:00 or 05:00:00")
    return pa.array([None if part is None else _seconds(part) for part in parts.to_pylist()], pa.float64())


def _seconds(part: dict[str, Any]) -> float:
    clock = int(part["h"]) * 3600 + int(part["m"]) * 60 + float(part["s"])
    # -1 days +23:00:00 is an hour before; -01:00:00 too
    return int(part["days"] or 0) * 86400 + (-clock if part["sign"] == "-" else clock)
