"""Data frames as the tables of a mapping: the source `tables` packs them, so its rules, counts and sentences hold."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from launch.draft.draft import Draft
from launch.draft.guess import guess_mapping
from launch.draft.profile import Table, profile
from launch.draft.roles import has_key
from launch.draft.write import mapping_text
from launch.errors import UsageError

RECORDS = "records"  # the frame with a row a record
ROW = "row"  # the column of keys that are numbers of rows
_PATHS = ("image", "waveform")  # kinds whose cells may be paths
_EXACT = 2.0**53  # whole numbers below are floats of double precision


def to_arrow(frame: Any, name: str) -> pa.Table:
    """A data frame of pandas or polars, or a table of pyarrow, as an Arrow table.

    Raises:
        UsageError: none of these, columns without a name of their own, cells of mixed types.
    """
    is_pandas = type(frame).__module__.split(".")[0] == "pandas" and hasattr(frame, "columns")
    if is_pandas:
        columns = list(frame.columns)
        odd = next((column for column in columns if not isinstance(column, str)), None)
        if odd is not None:
            raise UsageError(f"data frame {name}: names of columns are text, and one is {odd!r}; rename it")
        _refuse_twice(columns, name)
        if frame.index.name is not None or frame.index.nlevels > 1:
            try:
                frame = frame.reset_index()
            except ValueError as error:
                raise UsageError(f"data frame {name}: its index and a column have the same name ({error})") from None
    elif not isinstance(frame, pa.Table) and not (
        hasattr(frame, "__arrow_c_stream__") and (hasattr(frame, "columns") or hasattr(frame, "column_names"))
    ):
        kind = type(frame).__name__
        raise UsageError(f"{name} is a {kind}, and a data frame (pandas, polars) or a table of pyarrow is wanted")
    try:
        table = pa.Table.from_pandas(frame, preserve_index=False) if is_pandas else pa.table(frame)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise UsageError(f"data frame {name}: cells of one column are of one type ({_first(error)})") from None
    _refuse_twice(table.column_names, name)
    if not len(table):
        raise UsageError(f"data frame {name} has no row")
    return whole_numbers(table).replace_schema_metadata(None)


def _refuse_twice(columns: Sequence[str], name: str) -> None:
    twice = [column for column, number in Counter(columns).items() if number > 1]
    if twice:
        raise UsageError(f"data frame {name} has two columns called {twice[0]!r}; give them different names")


def whole_numbers(table: pa.Table) -> pa.Table:
    """Floats that are all whole as integers: pandas makes floats of whole numbers where a cell is empty, and a key 7.0
    would not be the key 7."""
    for place, field in enumerate(table.schema):
        if not pa.types.is_floating(field.type):
            continue
        filled = pc.drop_null(pc.if_else(pc.is_nan(table[place]), None, table[place]))
        whole = pc.all(pc.and_(pc.equal(filled, pc.floor(filled)), pc.less(pc.abs(filled), _EXACT))).as_py()
        if whole and len(filled):
            cells = pc.if_else(pc.is_nan(table[place]), None, table[place])
            table = table.set_column(place, field.name, cells.cast(pa.int64()))
    return table


@contextmanager
def called_frames(folder: str) -> Iterator[None]:
    """Sentences about files of this folder are about the data frames that were written there."""
    try:
        yield
    except ValueError as error:
        named = re.sub(rf"{re.escape(folder)}/(\w+)\.parquet", r"data frame \1", str(error))
        raise UsageError(named) if named != str(error) else error from None


def _first(error: Exception) -> str:
    return " ".join(" ".join(str(part) for part in error.args).split())


def write_frames(frames: Mapping[str, Any], folder: Path) -> list[Table]:
    """Each frame as a Parquet file of its name, the records first, and what its columns look like."""
    if RECORDS not in frames:
        raise UsageError(f"records= is missing: the data frame with a row a record; there are {', '.join(frames)}")
    order = [RECORDS, *(name for name in frames if name != RECORDS)]
    return [_write(to_arrow(frames[name], name), name, folder) for name in order]


def _write(table: pa.Table, name: str, folder: Path) -> Table:
    path = folder / file_of(name)
    pa.parquet.write_table(table, path)
    return profile(path, path.name)


def file_of(name: str) -> str:
    """The file of a frame."""
    return f"{name}.parquet"


def frames_mapping(
    frames: Mapping[str, Any],
    folder: Path,
    name: str,
    *,
    tasks: str | Sequence[str] | Mapping[str, Any] | None,
    modalities: Mapping[str, Any] | None = None,
    key: str | None = None,
    group: str | None = None,
    split: Mapping[str, Any] | None = None,
) -> tuple[Path, Draft]:
    """Files of all frames and `mapping.yaml` in a folder; where that is, and what was guessed.

    Args:
        tasks, modalities, split: as in a mapping, where `file` is the name of a frame; a task may be a column's name.

    Raises:
        UsageError, ValueError: see `to_arrow` and `guess_mapping`.
    """
    if tasks is None:
        raise UsageError(
            "say what is to be predicted: tasks='COLUMN', or tasks={NAME: {kind: ..., column: ...}} as in a mapping; "
            "tasks=[] packs without labels"
        )
    if not isinstance(tasks, str | Mapping) and any(not isinstance(own, str) for own in _listed(tasks)):
        raise UsageError(f"tasks= takes names of columns of records, and not a {type(tasks).__name__} of values")
    tables = write_frames(frames, folder)
    known = {name: file_of(name) for name in frames}
    doubts = []
    key = key or _index_name(frames[RECORDS])
    if key is None and not has_key(tables[0], tables[1:]):
        if len(tables) > 1:
            raise UsageError(_no_key(tables))
        key = counting(tables[0], tasks)
        if key is None:
            tables[0], key = numbered(tables[0], folder), ROW
            doubts.append(f"no column names records, so they are numbered, in a column {ROW!r}")
        else:
            doubts.append(f"column {key!r} counts the rows, so it names them and is no feature")
    draft = guess_mapping(
        name,
        tables,
        Path.cwd(),
        records=file_of(RECORDS),
        key=key,
        group=group,
        split=None if split is None else _with_file(split, known),
        tasks=tasks if not isinstance(tasks, Mapping) else _sections(tasks, known, "tasks"),
        modalities=_sections(modalities or {}, known, "modalities"),
    )
    _refuse_left_out(draft, tables[1:])
    for doubt in doubts:
        draft.doubt("records", doubt)
    set_folder(draft.tree["modalities"])
    path = folder / "mapping.yaml"
    path.write_text(mapping_text(draft), encoding="utf-8")
    return path, draft


def _listed(tasks: Any) -> list[Any]:
    """What `tasks` lists; of what is a table, or has but values, itself."""
    return [tasks] if hasattr(tasks, "columns") or not isinstance(tasks, Sequence) else list(tasks)


def counting(table: Table, tasks: Any) -> str | None:
    """The column that is 0, 1, 2, ... or 1, 2, 3, ... in some order: nobody means that as a feature."""
    asked = {tasks} if isinstance(tasks, str) else set(tasks)
    if isinstance(tasks, Mapping):
        asked = {name for section in tasks.values() if isinstance(section, Mapping) for name in section.values()}
    for column in table.columns.values():
        counts = column.unique and column.whole and column.low in (0, 1) and column.high - column.low + 1 == column.rows
        if counts and column.name not in asked:
            return column.name
    return None


def _no_key(tables: Sequence[Table]) -> str:
    """Why no column leads from other tables to the records."""
    others = [Path(table.file).stem for table in tables[1:]]
    for column in tables[0].columns.values():
        shared = next(
            (name for name, table in zip(others, tables[1:], strict=True) if column.name in table.columns), None
        )
        if shared is None:
            continue
        if column.empty:
            return f"column {column.name!r} cannot name the records: {column.empty} of its cells in records are empty"
        if not column.unique:
            return (
                f"column {column.name!r} cannot name the records, as a cell of it is in several rows of records; drop "
                "the rows that are there twice, or say key='COLUMN'"
            )
        return (
            f"column {column.name!r} is in records and in {shared}, but they have hardly a cell in common: write "
            "them alike, or say with key='COLUMN' which column names the record"
        )
    return (
        f"no column of records is also one of {', '.join(others)}: say with key='COLUMN' which column names the record "
        "in all of them"
    )


def _refuse_left_out(draft: Draft, tables: Sequence[Table]) -> None:
    """Raise UsageError: a whole frame would not be used."""
    for table in tables:
        why = next((own.split(": ", 1)[1] for own in draft.left_out if own.startswith(f"{table.file}: ")), None)
        if why is not None:
            name = Path(table.file).stem
            raise UsageError(
                f"data frame {name} would be left out: {why.replace('.parquet', '')}; turn times into numbers, give "
                f"records a column of dates to count from, or do without it: leave out {name}="
            )


def _index_name(frame: Any) -> str | None:
    """The name of an index that names rows."""
    index = getattr(frame, "index", None)
    named = isinstance(getattr(index, "name", None), str) and getattr(index, "is_unique", False)
    return str(index.name) if index is not None and named else None


def numbered(table: Table, folder: Path) -> Table:
    """The same table with its rows numbered from 0. Raises UsageError: it has such a column."""
    if ROW in table.columns:
        raise UsageError(f"column {ROW!r} of records cannot name them, as its cells are not all different: give key=")
    whole = pa.parquet.read_table(table.path)
    return _write(whole.append_column(ROW, pa.array(range(len(whole)), pa.int64())), Path(table.file).stem, folder)


def set_folder(modalities: Mapping[str, Any]) -> None:
    """Paths in cells of frames start from the working folder, not from where the frames are written."""
    for section in modalities.values():
        if isinstance(section, dict) and section.get("kind") in _PATHS:
            section["folder"] = str(Path.cwd() / section.get("folder", "."))


def _sections(given: Mapping[str, Any], known: Mapping[str, str], what: str) -> dict[str, Any]:
    for name, section in given.items():
        if section is not None and not isinstance(section, Mapping):
            raise UsageError(f"{what}[{name!r}] is {section!r}, and a section as in a mapping is wanted: {{kind: ...}}")
    return {name: None if section is None else _with_file(section, known) for name, section in given.items()}


def _with_file(section: Mapping[str, Any], known: Mapping[str, str]) -> dict[str, Any]:
    """A section whose `file` is the file of a frame. Raises UsageError: there is no such frame."""
    named = section.get("file")
    if named is None:
        return dict(section)
    if named not in known:
        raise UsageError(f"file: {named!r} is no data frame that was given; there are {', '.join(known)}")
    return {**section, "file": known[named]}
