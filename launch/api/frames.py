"""Data frames as the tables of a mapping: the source `tables` packs them, so its rules, counts and sentences hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
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


def to_arrow(frame: Any, name: str) -> pa.Table:
    """A data frame of pandas or polars, or a table of pyarrow, as an Arrow table.

    Raises:
        UsageError: none of these, columns without a name of their own, cells of mixed types.
    """
    if type(frame).__module__.split(".")[0] == "pandas" and hasattr(frame, "columns"):
        columns = list(frame.columns)
        odd = next((column for column in columns if not isinstance(column, str)), None)
        if odd is not None:
            raise UsageError(f"data frame {name}: names of columns are text, and one is {odd!r}; rename it")
        if frame.index.name is not None or frame.index.nlevels > 1:
            try:
                frame = frame.reset_index()
            except ValueError as error:
                raise UsageError(f"data frame {name}: its index and a column have the same name ({error})") from None
    elif not isinstance(frame, pa.Table) and not hasattr(frame, "__arrow_c_stream__"):
        kind = type(frame).__name__
        raise UsageError(f"{name} is a {kind}, and a data frame (pandas, polars) or a table of pyarrow is wanted")
    try:
        is_pandas = type(frame).__module__.split(".")[0] == "pandas"
        table = pa.Table.from_pandas(frame, preserve_index=False) if is_pandas else pa.table(frame)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise UsageError(f"data frame {name}: cells of one column are of one type ({_first(error)})") from None
    twice = [column for column, number in Counter(table.column_names).items() if number > 1]
    if twice:
        raise UsageError(f"data frame {name} has two columns called {twice[0]!r}; give them different names")
    if not len(table):
        raise UsageError(f"data frame {name} has no row")
    return table.replace_schema_metadata(None)


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
    tables = write_frames(frames, folder)
    known = {name: file_of(name) for name in frames}
    doubts = []
    key = key or _index_name(frames[RECORDS])
    if key is None and not has_key(tables[0], tables[1:]):
        if len(tables) > 1:
            raise UsageError(
                f"no column of records is also one of {', '.join(list(known)[1:])}: say with key='COLUMN' which column "
                "names the record in all of them"
            )
        tables[0], key = numbered(tables[0], folder), ROW
        doubts.append(f"no column names records, so they are numbered, in a column {ROW!r}")
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
    for doubt in doubts:
        draft.doubt("records", doubt)
    set_folder(draft.tree["modalities"])
    path = folder / "mapping.yaml"
    path.write_text(mapping_text(draft), encoding="utf-8")
    return path, draft


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
