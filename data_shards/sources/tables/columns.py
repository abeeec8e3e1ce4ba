"""Which columns of which files a mapping uses, as what, and which words it lists for them."""

from __future__ import annotations

from data_shards.sources.tables.mapping import (
    ImageTable,
    Mapping,
    Modality,
    SeriesTable,
    TextTable,
    VectorTable,
    WaveformTable,
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
    for modality in mapping.modalities.values():
        for column, kind in _of_modality(modality):
            want((modality.file or home[0], modality.key or home[1]), column, kind)
        if isinstance(modality, SeriesTable):
            want(home, modality.origin, _date(modality))
    for task in mapping.tasks.values():
        kind = "text" if task.kind in ("binary", "multiclass") else "number"
        for column in (task.column, *task.columns):
            want((task.file or home[0], task.key or home[1]), column, kind)
    if mapping.split.file is None:
        for column in mapping.split.columns.values():
            want(home, column, "text")
    return wanted


def _of_modality(modality: Modality) -> list[tuple[str | None, str]]:
    """Columns of a modality's own file and their types."""
    if isinstance(modality, SeriesTable):
        time = (modality.time, _date(modality) if modality.origin else "elapsed")
        numbers = [(column, "number") for column in modality.columns]
        return [time, (modality.channel, "text"), (modality.value, "loose"), *numbers]
    if isinstance(modality, VectorTable):
        return [(modality.column, "numbers"), *((column, "number") for column in modality.columns)]
    assert isinstance(modality, TextTable | ImageTable | WaveformTable), "all kinds are named"
    return [(modality.column, "picture" if isinstance(modality, ImageTable) else "text")]


def _date(series: SeriesTable) -> str:
    return f"date:{series.date_unit}" if series.date_unit else "date"


def listed_words(mapping: Mapping, file: str) -> dict[str, frozenset[str]]:
    """Column of a file -> words that the mapping lists for it (classes, channels, parts): they are never empty."""
    home, listed = mapping.records.file, dict[str, set[str]]()
    for modality in mapping.modalities.values():
        if isinstance(modality, SeriesTable) and modality.channel and (modality.file or home) == file:
            listed.setdefault(modality.channel, set()).update(modality.channels)
    for task in mapping.tasks.values():
        if task.column is not None and (task.file or home) == file:
            listed.setdefault(task.column, set()).update(task.classes)
    if (mapping.split.file or home) == file:
        for column in mapping.split.columns.values():
            listed.setdefault(column, set()).update(mapping.split.rename)
    return {column: frozenset(words) for column, words in listed.items()}
