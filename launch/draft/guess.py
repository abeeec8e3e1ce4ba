"""Tables -> a draft of their mapping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.draft.draft import Draft
from launch.draft.labels import add_tasks, likely_label
from launch.draft.profile import Table
from launch.draft.roles import PARTS, find_home, group_column, illegal_keys, part_column
from launch.draft.sections import of_records, of_table


def guess_mapping(
    name: str,
    tables: Sequence[Table],
    folder: Path,
    *,
    records: str | None = None,
    key: str | None = None,
    group: str | None = None,
    split: Mapping[str, Any] | None = None,
    tasks: str | Sequence[str] | Mapping[str, Any] | None = None,
    modalities: Mapping[str, Any] | None = None,
) -> Draft:
    """A mapping of these tables, with what is not sure of it.

    Args:
        name: of the data set. folder: that paths of pictures start from. records: the table with a row a record.
        key, group, split: as in a mapping, where they are known. tasks: columns of the records to predict, or sections
            as in a mapping; None: the column whose name says so. modalities: sections as in a mapping; a table or a
            column that they use is not guessed any more, and None leaves out a modality of this name.

    Raises:
        ValueError: no column can name records, or a column that was named is not there.
    """
    draft = Draft({"name": name, "records": {}, "split": {}, "modalities": {}, "tasks": {}})
    home = find_home(tables, key, records, draft)
    columns = home.table.columns
    draft.tree["records"] = {"file": home.table.file, "key": home.key}
    if illegal_keys(home):
        draft.tree["records"]["keys"] = "escape"
    own = group_column(home, group)
    if own is not None:
        draft.tree["records"]["group"] = own
        if group is None:
            draft.doubt("records", f"records of one {own!r} stay in one part")
    part = None if split is not None else part_column(columns.values())
    _split(draft, split, part, columns[part].words if part else None)
    free = [c for c in columns.values() if c.name not in (home.key, own, part)]
    if tasks is None:
        label = likely_label(free)
        tasks = [] if label is None else [label.name]
        if label is None:
            draft.doubt("tasks", "no column is called like a label: name what is to be predicted")
    add_tasks(home.table, tasks, draft)
    given = dict(modalities or {})
    used = {home.key, own, part} | _columns(draft.tree["tasks"].values(), home.table.file, home.table.file)
    used |= _columns(given.values(), home.table.file, home.table.file)
    for table in tables:
        said = any((s or {}).get("file") == table.file for s in [*given.values(), *draft.tree["tasks"].values()])
        if table is not home.table and not said:
            of_table(table, home, draft, folder)
    used |= {section.get("origin") for section in draft.tree["modalities"].values()}
    of_records(home, {name for name in used if name is not None}, draft, folder)
    for name, section in given.items():
        draft.tree["modalities"].pop(name, None)
        draft.doubts.pop(f"modalities.{name}", None)
        if section is not None:
            draft.tree["modalities"][name] = dict(section)
    for empty in [name for name in ("split", "tasks") if not draft.tree[name]]:
        del draft.tree[empty]
    if not draft.tree["modalities"]:
        raise ValueError(
            "nothing is left that could be a modality: "
            + "; ".join([*draft.doubts.get("records", []), *(draft.left_out or ["no other column"])])
        )
    return draft


def _split(draft: Draft, split: Mapping[str, Any] | None, part: str | None, words: Mapping[str, int] | None) -> None:
    if split is not None:
        # {train: 0.8, ...} is the short form of shares
        shares = all(isinstance(value, int | float) for value in split.values())
        draft.tree["split"] = {"shares": dict(split)} if shares else dict(split)
    elif part is not None:
        rename = {word: PARTS[word] for word in words or () if PARTS[word]}
        draft.tree["split"] = {"columns": {"default": part}, **({"rename": rename} if rename else {})}
        draft.doubt("split", f"column {part!r} says which part a record belongs to")
    else:
        draft.tree["split"] = {"shares": {"train": 0.8, "val": 0.1, "test": 0.1}}


def _columns(sections: Any, file: str, home: str) -> set[str]:
    """Columns of a file that sections use."""
    found: set[str] = set()
    for section in sections:
        if not isinstance(section, Mapping):
            continue
        origin = section.get("origin")
        if isinstance(origin, str):
            found.add(origin)
        if section.get("file", home) == file:
            own = [section.get(key) for key in ("column", "time", "channel", "value", "seen")]
            found |= {name for name in [*own, *(section.get("columns") or ())] if isinstance(name, str)}
    return found
