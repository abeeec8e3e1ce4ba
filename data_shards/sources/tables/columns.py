"""Which columns of which files a mapping uses, as what, and which words it lists for them."""

from __future__ import annotations

from collections.abc import Iterable

from data_shards.sources.tables.mapping import Mapping, Task
from data_shards.sources.tables.modalities import (
    CodesTable,
    FileTable,
    Modality,
    SeriesTable,
    TextTable,
    Times,
    VectorTable,
)

Place = tuple[str, str]  # (file, key column)


def wanted_columns(mapping: Mapping) -> dict[Place, dict[str, str]]:
    """(file, key) -> column -> type (see ``readers.cells``), for all that the mapping names.

    Raises:
        ValueError: a column is wanted as two types.
    """
    home = (mapping.records.file, mapping.records.key)
    wanted: dict[Place, dict[str, str]] = {home: {home[1]: "text"}}

    def want(place: Place, column: str | None, kind: str) -> None:
        if column is None:
            return
        have = wanted.setdefault(place, {}).setdefault(column, kind)
        if have != kind:
            raise ValueError(f"column {column!r} of {place[0]} is used as {have} and as {kind}; make it two columns")

    want(home, mapping.records.group, "text")
    sections = (*mapping.modalities.values(), *mapping.tasks.values())
    for section in sections:
        own = _of_modality(section) if isinstance(section, Modality) else _of_task(section)
        for column, kind in (*own, (section.time, _time(section))):
            want(mapping.place(section), column, kind)
        want(home, section.origin, _date(section))
    if mapping.split.file is None:
        for column in mapping.split.columns.values():
            want(home, column, "text")
    return wanted


def _of_modality(modality: Modality) -> list[tuple[str | None, str]]:
    """Columns of a modality's own file and their types, less its time."""
    if isinstance(modality, SeriesTable):
        numbers = [(column, "number") for column in modality.columns]
        return [(modality.channel, "text"), (modality.value, "loose"), *numbers]
    if isinstance(modality, VectorTable):
        return [(modality.column, "numbers"), *((column, "number") for column in modality.columns)]
    if isinstance(modality, CodesTable):
        return [*((column, "text") for column in (modality.column, *modality.columns)), (modality.value, "number")]
    if isinstance(modality, FileTable):
        return [(modality.column, "file"), (modality.start, "number"), (modality.end, "number")]
    assert isinstance(modality, TextTable), "all kinds are named"
    return [(modality.column, "text")]


def _of_task(task: Task) -> list[tuple[str | None, str]]:
    kind = "number" if task.kind in ("multilabel", "regression") else "text"
    return [(column, kind) for column in (task.column, *task.columns, task.seen)]


def _time(section: Times) -> str:
    return _date(section) if section.origin else "elapsed"


def _date(section: Times) -> str:
    return f"date:{section.date_unit}" if section.date_unit else "date"


def listed_words(mapping: Mapping, file: str) -> dict[str, frozenset[str]]:
    """Column of a file -> words that the mapping lists for it (classes, channels, codes, ...): never empty."""
    home, listed = mapping.records.file, dict[str, set[str]]()
    for section in (*mapping.modalities.values(), *mapping.tasks.values()):
        if mapping.place(section)[0] != file:
            continue
        for column, words in _listed(section):
            listed.setdefault(column, set()).update(words)
    if (mapping.split.file or home) == file:
        for column in mapping.split.columns.values():
            listed.setdefault(column, set()).update(mapping.split.rename)
    return {column: frozenset(words) for column, words in listed.items()}


def _listed(section: Modality | Task) -> list[tuple[str, Iterable[str]]]:
    if isinstance(section, Task):
        classes = section.classes
        words = [c for own in classes.values() for c in own] if isinstance(classes, dict) else classes
        return [(column, words) for column in (section.column, section.seen) if column is not None]
    if isinstance(section, SeriesTable) and section.channel:
        return [(section.channel, section.channels)]
    if isinstance(section, CodesTable) and isinstance(section.vocabulary, tuple):
        if section.column:
            return [(section.column, section.vocabulary)]
        pairs = [code.partition("=") for code in section.vocabulary]
        return [(column, [cell for name, _, cell in pairs if name == column]) for column in section.columns]
    return []


def replaced_cells(mapping: Mapping, place: Place) -> dict[str, dict[str, float | None]]:
    """Column of a table -> cell -> number that it stands for.

    Raises:
        ValueError: two sections say different things of a cell.
    """
    found: dict[str, dict[str, float | None]] = {}
    for section in (*mapping.modalities.values(), *mapping.tasks.values()):
        columns = _of_modality(section) if isinstance(section, Modality) else _of_task(section)
        numbers = [column for column, kind in columns if column is not None and kind in ("number", "loose")]
        for column in numbers if mapping.place(section) == place else ():
            for cell, number in getattr(section, "replace", {}).items():
                if found.setdefault(column, {}).setdefault(cell, number) != number:
                    raise ValueError(
                        f"two sections say with replace what {cell!r} of column {column!r} means, and not the same"
                    )
    return found
