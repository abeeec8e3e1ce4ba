"""Which table has a row a record, which column names the record everywhere, and when something happened."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_shards.records.record import KEY
from launch.draft.draft import Draft
from launch.draft.profile import Column, Table

_KEY = re.compile(r"(?:^|_)(?:id|key|uid|uuid|no|nr|index|number)$|id$", re.I)
LINKED = 0.5  # share of a column's cells that are keys, from which on it says which record a row belongs to
_GROUP = re.compile(
    r"(?:^|_)(?:patient|subject|person|participant|user|speaker|customer|client|animal)(?:_?(?:id|no|nr))?$", re.I
)
_TIME = re.compile(
    r"(?:^|_)(?:time|date|datetime|timestamp|ts|when|at|t|hours?|minutes?|seconds?|days?|offset|charttime|storetime"
    r"|written|given|taken|measured|recorded|observed)(?:$|_)|time$|date$|_(?:at|on)$",
    re.I,
)
_START = re.compile(r"admi|start|begin|intime|origin|open|arriv|enrol|from|birth|entry|created|first", re.I)
_UNITS = {"sec": "seconds", "min": "minutes", "hour": "hours", "hrs": "hours", "day": "days"}
_PART = re.compile(r"^(?:split|part|partition|fold|set|subset|usage)$", re.I)
# What people call a part -> what commands call it; None: it is called so.
PARTS = {
    "train": None, "val": None, "test": None, "training": "train", "dev": "val", "valid": "val", "validation": "val",
    "testing": "test", "Train": "train", "Val": "val", "Test": "test",
}  # fmt: skip


ALMOST = 0.1  # share of cells that may keep a column from being a key, to say so


@dataclass
class Home:
    """The table with a row a record, its column of keys, and all of them as text."""

    table: Table
    key: str
    keys: pa.Array


def find_home(tables: Sequence[Table], key: str | None, records: str | None, draft: Draft) -> Home:
    """The records.

    Args:
        key: column that names records, where somebody has said so. records: likewise the table.

    Raises:
        ValueError: no table has a column that is different in every row.
    """
    own = [table for table in tables if records in (None, table.file)]
    candidates = [
        (table, column)
        for table in own
        for column in table.columns.values()
        if column.unique and key in (None, column.name) and _can_name(column)
    ]
    if not candidates:
        wanted = "different in every row, without an empty cell and short text or whole numbers"
        if key is not None:
            raise ValueError(f"column {key!r} cannot name records: of no table is it {wanted}")
        names = ", ".join(table.file for table in own)
        raise ValueError(f"no column of {names} can name records: one has to be {wanted}; add one, e.g. 1, 2, 3, ...")
    links = [sum(_leads_to(other, column.name, table) for other in tables) for table, column in candidates]
    scores = [
        (link, bool(_KEY.search(column.name)), column.name == next(iter(table.columns)), -number)
        for number, (link, (table, column)) in enumerate(zip(links, candidates, strict=True))
    ]
    best = max(range(len(candidates)), key=lambda i: scores[i])
    table, column = candidates[best]
    if key is None and (len(tables) > 1 and not links[best]):
        for sentence in _almost_keys(table, tables):
            draft.doubt("records", sentence)
        draft.doubt("records", f"no other table has a column {column.name!r} whose cells are among these keys")
    same = [c.name for t, c in candidates if t is table and c is not column and _KEY.search(c.name)]
    if key is None and same and not links[best]:
        draft.doubt("records", f"key: {', '.join(same)} would do, too")
    return Home(table, column.name, table.read({column.name: "text"})[column.name].combine_chunks())


def _almost_keys(table: Table, tables: Sequence[Table]) -> list[str]:
    """Columns that other tables refer to, and that would name records but for a few cells."""
    found = []
    for name, column in table.columns.items():
        files = [other.file for other in tables if not column.unique and _leads_to(other, name, table)]
        if not files or not _can_name(column):
            continue
        cells = table.read({name: "text"})[name]
        counts = pc.value_counts(cells.drop_null())
        twice = [str(own["values"]) for own in counts.to_pylist() if own["counts"] > 1]
        bad = len(cells) - len(counts)
        if 0 < bad <= ALMOST * len(cells):
            what = f"{twice[0]!r} is there more than once" if twice else "it has empty cells"
            found.append(
                f"{', '.join(files)} refer to column {name!r}, which cannot be the key as {what} ({bad:,} of "
                f"{len(cells):,} rows too many): mend that first, and draft again"
            )
    return found


def has_key(table: Table, others: Sequence[Table]) -> bool:
    """Whether a column names records beyond doubt: it is called a key, or other tables refer to it."""
    return any(
        column.unique
        and _can_name(column)
        and (_KEY.search(column.name) or any(_leads_to(o, column.name, table) for o in others))
        for column in table.columns.values()
    )


def _can_name(column: Column) -> bool:
    return column.longest <= 90 and (column.whole or (column.kind == "text" and column.spaced < 0.5))


def _leads_to(other: Table, name: str, table: Table) -> bool:
    """Whether another table's column of this name is about the records of `table`."""
    if other is table or name not in other.columns:
        return False
    try:
        keys = table.read({name: "text"})[name].combine_chunks()
        return _share_among(other, name, keys) >= LINKED
    except ValueError:
        return False


def _share_among(other: Table, name: str, keys: pa.Array) -> float:
    """Of the different cells of a column, how many are keys."""
    if not other.rows:
        return 1.0
    cells = other.read({name: "text"})[name].unique().drop_null()
    return float(pc.mean(pc.is_in(cells, value_set=keys).cast(pa.float64())).as_py() or 0.0) if len(cells) else 0.0


def illegal_keys(home: Home) -> bool:
    """Whether keys have characters that a record's key cannot have."""
    return any(not KEY.fullmatch(key) for key in home.keys.to_pylist())


def nearest_link(table: Table, home: Home) -> tuple[str, float] | None:
    """The column whose cells are most often records' keys, and the share of its different cells that are; None if no
    column can hold keys."""
    same = [home.key] if home.key in table.columns else []
    others = [
        name
        for name, column in table.columns.items()
        if name not in same and (column.whole or column.kind == "text") and column.longest <= 90
    ]
    best = max(
        ((_share_among(table, name, home.keys), name == home.key, name) for name in [*same, *others]), default=None
    )
    return None if best is None else (best[2], best[0])


def unknown_rows(table: Table, link: str, home: Home) -> int:
    """Rows of records that there are not."""
    if not table.rows:
        return 0
    cells = table.read({link: "text"})[link]
    return int(pc.sum(pc.invert(pc.is_in(cells, value_set=home.keys))).as_py() or 0)


def group_column(home: Home, given: str | None) -> str | None:
    """The column that says what belongs together."""
    if given is not None:
        return given
    named = [c for c in home.table.columns.values() if _GROUP.search(c.name) and c.name != home.key]
    return next((c.name for c in named if c.whole or c.kind == "text"), None)


def part_column(columns: Iterable[Column]) -> str | None:
    """The column that says to which part a record belongs."""
    for column in columns:
        known = (
            column.words is not None and column.kind == "text" and column.words and set(column.words) <= PARTS.keys()
        )
        if known and (_PART.search(column.name) or {PARTS[w] or w for w in column.words or ()} >= {"train", "test"}):
            return column.name
    return None


def time_column(table: Table, link: str) -> Column | None:
    """The column with the time of each row: dates first, numbers only where their name says so."""
    own = [column for column in table.columns.values() if column.name != link and not column.empty]
    dates = [c for c in own if c.kind in ("date", "elapsed")]
    named = [c for c in own if _TIME.search(c.name) and c.kind in ("date", "elapsed", "number")]
    both = [c for c in named if c in dates]
    return next(iter(both or dates or named), None)


def time_unit(column: Column) -> str | None:
    """The unit of times that are numbers, as their name says it."""
    return next((unit for part, unit in _UNITS.items() if part in column.name.lower()), None)


@dataclass
class Origin:
    """A date of the records as time 0: how many rows lie before it, and how far away rows are on average."""

    column: str
    before: int
    hours: float


def find_origin(table: Table, link: str, time: str, home: Home) -> Origin | None:
    """The date of the records' table that the fewest rows lie before; None if there is none to count from."""
    dates = [column for column in home.table.columns.values() if column.kind == "date"]
    if not dates or not table.rows:
        return None
    try:
        rows = table.read({link: "text", time: "date"})
    except ValueError:
        return None
    place = pc.index_in(rows[link], value_set=home.keys).combine_chunks()
    known = pc.and_(place.is_valid(), rows[time].combine_chunks().is_valid())
    at_N = rows[time].combine_chunks().filter(known).cast(pa.int64()).to_numpy()
    place_N = place.filter(known).to_numpy(zero_copy_only=False).astype(np.int64)
    found = []
    for column in dates:
        start = home.table.read({column.name: "date"})[column.name].combine_chunks()
        if start.null_count:
            continue
        hours_N = (at_N - start.cast(pa.int64()).to_numpy()[place_N]) / 3.6e9
        before = int((hours_N < 0).sum())
        named = bool(_START.search(column.name))
        far = float(np.abs(hours_N).mean()) if len(hours_N) else 0.0
        found.append(((before / max(1, len(hours_N)) > 0.2, not named, before, far), Origin(column.name, before, far)))
    return min(found, key=lambda pair: pair[0])[1] if found else None
