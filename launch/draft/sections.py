"""Columns of a table -> the sections of a mapping that say where modalities are."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data_shards.sources.readers.picture_files import PictureError, decode
from launch.draft.draft import Draft
from launch.draft.profile import Column, Table
from launch.draft.roles import LINKED, Home, find_origin, nearest_link, time_column, time_unit, unknown_rows

_VALUE = ("value", "valuenum", "val", "result", "amount", "measurement", "reading", "dose", "quantity")
_CHANNEL = (
    "channel", "variable", "name", "item", "itemid", "label", "what", "parameter", "feature", "test", "kind", "type",
    "signal", "measurement",
)  # fmt: skip
_LONG = 20  # characters: with blanks in it, such cells are sentences
_DAYS_FROM = 24 * 60  # hours; where events are farther from time 0 on average, they are counted in days
_SIDE = 224  # most pixels of a side that a picture is drafted with


def of_records(home: Home, used: set[str], draft: Draft, folder: Path) -> None:
    """Modalities of the columns of the records' own table that nothing else uses."""
    _plain(home.table, [c for c in home.table.columns.values() if c.name not in used], {}, draft, folder, "")


def _nearest(found: tuple[str, float] | None) -> str:
    """How far a table is from being about the records."""
    if found is None or not found[1]:
        return ""
    share = f"{found[1]:.0%} of the values of {found[0]!r} do"
    return f" ({share}: if it is the key, add the table with unknown_keys: skip)"


def of_table(table: Table, home: Home, draft: Draft, folder: Path) -> None:
    """Modalities of another table."""
    stem = Path(table.file).stem.split(".")[0]
    found = nearest_link(table, home)
    if found is None or found[1] < LINKED:
        draft.left_out.append(f"{table.file}: no column of it names records of {home.table.file}{_nearest(found)}")
        return
    link = found[0]
    base: dict[str, Any] = {"file": table.file}
    if link != home.key:
        base["key"] = link
    doubts = []
    if unknown := unknown_rows(table, link, home):
        base["unknown_keys"] = "skip"
        doubts.append(f"{unknown} rows are of records that {home.table.file} does not have, and are left out")
    time = time_column(table, link)
    when = {} if time is None else _when(table, link, time, home, doubts)
    if when is None:
        assert time is not None
        draft.left_out.append(
            f"{table.file}: its column {time.name!r} holds dates, and no date of {home.table.file} says for each "
            "record when time 0 was (origin)"
        )
        return
    rest = [c for c in table.columns.values() if c.name not in (link, time.name if time else "")]
    before = set(draft.tree["modalities"])
    if time is not None:
        _timed(table, rest, base | when, draft, folder, stem)
    elif table.columns[link].unique:
        _plain(table, rest, base, draft, folder, stem)
    else:
        _many(table, rest, base, draft, stem)
    for name in draft.tree["modalities"].keys() - before:
        for doubt in doubts:
            draft.doubt(f"modalities.{name}", doubt)


def _when(table: Table, link: str, time: Column, home: Home, doubts: list[str]) -> dict[str, Any] | None:
    """What a section says of its times; None where they are dates without an origin."""
    when: dict[str, Any] = {"time": time.name}
    if time.kind == "date":
        origin = find_origin(table, link, time.name, home)
        if origin is None:
            return None
        when["origin"] = origin.column
        if origin.hours > _DAYS_FROM:
            when["time_unit"] = "days"
        doubts.append(f"times are {when.get('time_unit', 'hours')} since {origin.column!r}")
        if origin.before:
            when["outside"] = "skip"
            doubts.append(f"{origin.before} rows lie before {origin.column!r}, and are left out")
        return when
    unit = time_unit(time)
    if unit is not None and unit != "hours":
        when["time_unit"] = unit
    if unit is None and time.kind == "number":
        doubts.append(f"time_unit: {time.name!r} is taken for hours")
    if time.low < 0:
        when["outside"] = "skip"
        doubts.append("rows before time 0 are left out")
    return when


def _timed(table: Table, columns: list[Column], base: dict[str, Any], draft: Draft, folder: Path, stem: str) -> None:
    """Of rows that have a time."""
    numbers = [c for c in columns if c.kind == "number"]
    words = [c for c in columns if c.kind == "text"]
    value = next((c for c in numbers if c.name.lower() in _VALUE), numbers[0] if len(numbers) == 1 else None)
    named = [c for c in columns if c.name.lower() in _CHANNEL and (c.kind == "text" or c.whole) and c is not value]
    channel = next(iter([c for c in named if c.few] or [c for c in words if c.few and not c.is_path]), None)
    used: list[Column] = []
    if value is not None and channel is not None and channel.words:
        section = {**base, "channel": channel.name, "value": value.name, "channels": sorted(channel.words)}
        name = draft.add(stem, {"kind": "series", **section, **_fine(value)})
        draft.doubt(f"modalities.{name}", f"series: one row an observation of the {len(channel.words)} channels")
        used += [value, channel]
    elif numbers:
        name = draft.add(stem, {"kind": "series", **base, "columns": [c.name for c in numbers], **_fine(*numbers)})
        draft.doubt(f"modalities.{name}", "series: one row a time, one column a channel")
        used += numbers
    rest = [c for c in columns if c not in used]
    for column in rest:
        if column.is_path:
            _picture(column, base, draft, folder, stem if not used else f"{stem}_{column.name}")
        elif _is_text(column):
            draft.add(
                stem if not used else f"{stem}_{column.name}",
                {"kind": "text", **base, "column": column.name, **_long(column)},
            )
        elif column.kind == "text" and not used:
            name = draft.add(stem, {"kind": "codes", **base, "column": column.name})
            draft.doubt(f"modalities.{name}", f"codes: each row is a symbol, {column.name!r}, at its time")
        else:
            _leave(table, [column], draft, "beside the others of its row it says nothing that was guessed")
            continue
        used.append(column)


def _many(table: Table, columns: list[Column], base: dict[str, Any], draft: Draft, stem: str) -> None:
    """Of any number of rows a record, without a time."""
    numbers = [c for c in columns if c.kind == "number"]
    words = [c for c in columns if c.kind == "text" and not _is_text(c) and not c.is_path]
    for column in [c for c in columns if _is_text(c)]:
        name = draft.add(stem, {"kind": "text", **base, "column": column.name, **_long(column)})
        draft.doubt(f"modalities.{name}", "several rows of a record are joined by line ends")
    for number, column in enumerate(words):
        value = {"value": numbers[0].name, **_fine(numbers[0])} if len(numbers) == 1 and not number else {}
        name = draft.add(stem, {"kind": "codes", **base, "column": column.name, **value})
        draft.doubt(f"modalities.{name}", f"codes: each row is a symbol, {column.name!r}")
        numbers = [] if value else numbers
    _leave(table, numbers, draft, "a record has several of these rows, and no column says when")
    _leave(table, [c for c in columns if c.is_path or c.kind not in ("number", "text")], draft, "likewise")


def _plain(table: Table, columns: list[Column], base: dict[str, Any], draft: Draft, folder: Path, stem: str) -> None:
    """Of one row a record: numbers together, categories together, each text, list and picture by itself."""
    prefix = f"{stem}_" if stem else ""
    numbers, categories, rest = list[Column](), list[Column](), list[Column]()
    for column in columns:
        identity = column.whole and column.unique and column.rows > 2 and column.name.lower().endswith(("id", "key"))
        if identity:
            _leave(table, [column], draft, "different in every row, it looks like a name")
        elif column.kind == "number":
            numbers.append(column)
        elif column.kind == "text" and column.few and not column.is_path:
            categories.append(column)
        else:
            rest.append(column)
    if numbers:
        empty = {"empty": "known"} if any(c.empty for c in numbers) else {}
        section = {"kind": "vector", **base, "columns": [c.name for c in numbers], **empty, **_fine(*numbers)}
        name = draft.add(stem or "numbers", section)
        if empty:
            draft.doubt(f"modalities.{name}", "an empty cell becomes 0, and a further feature says so")
    if categories:
        draft.add(
            f"{prefix}categories" if numbers or not stem else stem,
            {"kind": "codes", **base, "columns": [c.name for c in categories]},
        )
    for column in rest:
        if column.is_path or column.kind == "file":
            _picture(column, base, draft, folder, f"{prefix}{column.name}")
        elif _is_text(column):
            draft.add(f"{prefix}{column.name}", {"kind": "text", **base, "column": column.name, **_long(column)})
        elif column.kind == "numbers" and len(column.sizes) == 1:
            draft.add(
                f"{prefix}{column.name}", {"kind": "vector", **base, "column": column.name, "size": min(column.sizes)}
            )
        else:
            _leave(table, [column], draft, _why(column))


def _is_text(column: Column) -> bool:
    """Whether cells are sentences."""
    return column.kind == "text" and column.longest > _LONG and column.spaced > 0.3 and not column.is_path


def _why(column: Column) -> str:
    return {
        "nothing": "all of its cells are empty",
        "date": "it holds dates, which no table of events counts from",
        "elapsed": "it holds durations",
        "text": "its cells are nearly all different, and no sentences",
        "numbers": f"its lists have {len(column.sizes)} different lengths",
    }.get(column.kind, "its cells are of no type that is read")


def _leave(table: Table, columns: Iterable[Column], draft: Draft, why: str) -> None:
    draft.left_out += [f"{table.file}, column {column.name!r}: {why}" for column in columns]


def _fine(*columns: Column) -> dict[str, str]:
    """Numbers that single precision would move are refused unless this is said."""
    return {"rounding": "allow"} if any(column.too_fine for column in columns) else {}


def _long(column: Column) -> dict[str, Any]:
    return {"too_long": "cut"} if column.longest * 4 > 65_536 else {}


def _picture(column: Column, base: dict[str, Any], draft: Draft, folder: Path, name: str) -> None:
    """Pictures by path; their size is that of the first one, at most _SIDE."""
    if column.kind == "file":
        size, channels = (64, 64), 3
    else:
        path = folder / next(iter(column.words or {}))
        try:
            picture = decode(path).picture
        except (PictureError, OSError) as error:
            draft.left_out.append(f"column {column.name!r}: {path} cannot be read as a picture ({error})")
            return
        size, channels = picture.size, 1 if picture.mode in ("L", "1", "I;16", "I") else 3
    width, height = (min(side, _SIDE) for side in size)
    section = {"kind": "image", **base, "column": column.name, "channels": channels, "height": height, "width": width}
    own = draft.add(name, {**section, "resize": True})
    draft.doubt(
        f"modalities.{own}", f"height, width: the first one has {size[0]} x {size[1]} pixels; others are resized"
    )
