"""Data sets packed from Python: a source by name, a mapping file, records in memory, or data frames."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from html import escape
from pathlib import Path, PurePath
from typing import Any

from data_shards import pack as pack_into
from data_shards.paths import absolute_url
from data_shards.records.record import Record
from data_shards.records.schema import DatasetSchema
from data_shards.sources.base import Source, SourceOptions, hashed_part
from launch.api.errors import speaking
from launch.api.frames import called_frames, frames_mapping
from launch.datasets.pack import make_source
from launch.errors import UsageError

UNIT = 500  # records that are encoded at a time
SHARES = (("train", 0.8), ("val", 0.1), ("test", 0.1))


class Data:
    """A packed data set.

    Attributes:
        url: folder or URL; also what `str` gives, so it can stand wherever a place is asked for.
        report: what packing it gave, as `pack` prints it: counts, splits, notes. Empty where it was packed before.
        guesses: what was guessed of data frames, a sentence each; all of it can be said in `pack` instead.
    """

    def __init__(self, url: str, report: Mapping[str, Any] | None = None, guesses: Sequence[str] = ()) -> None:
        self.url = absolute_url(str(url))
        self.report, self.guesses = dict(report or {}), list(guesses)

    def __str__(self) -> str:
        return self.url

    def __repr__(self) -> str:
        return f"<Data {self.url}>"

    @speaking
    def summary(self) -> dict[str, Any]:
        """What `inspect` says of it: modalities and how often they are there, labels, sampling, warnings."""
        from data_shards import open_manifest, summary

        return summary(open_manifest(self.url))

    def _repr_html_(self) -> str:
        from launch.datasets.tables import MODALITY_COLUMNS, modality_table
        from launch.output.html import table

        facts = self.summary()
        guesses = "".join(f"<li>{escape(guess)}</li>" for guess in self.guesses)
        head = f"<p><b>{escape(facts['name'])}</b>, {facts['records']:,} records, {escape(self.url)}</p>"
        return (
            head
            + table(MODALITY_COLUMNS, modality_table(facts))
            + (f"<p>guessed:</p><ul>{guesses}</ul>" * bool(guesses))
        )


class InMemory(Source):
    """Records that somebody has made; those of a set that names no part for any of them are divided by hash."""

    schema: DatasetSchema

    def __init__(self, schema: DatasetSchema, records: Iterable[Record]) -> None:
        super().__init__(SourceOptions())
        self.schema = schema
        self._records = [_checked(record, number) for number, record in enumerate(records)]
        self._divide = not any(record.splits for record in self._records)

    def fingerprint(self) -> None:
        """Nobody else has these records."""

    def units(self) -> Sequence[int]:
        return range(0, len(self._records), UNIT)

    def read(self, unit: int, notes: Counter[str]) -> Iterator[Record]:
        for record in self._records[unit : unit + UNIT]:
            if self._divide:
                notes["records_divided_by_hash"] += 1
                part = hashed_part(record.group or record.key, SHARES)
                yield replace(record, splits={"default": part})
            else:
                yield record


def _checked(record: Any, number: int) -> Record:
    if not isinstance(record, Record):
        raise UsageError(
            f"element {number} of the records is a {type(record).__name__}, and a fleximoe.Record is wanted"
        )
    return record


def pack(
    source: Any,
    out: Any,
    frames: Mapping[str, Any],
    *,
    schema: DatasetSchema | None,
    options: Mapping[str, Any] | None,
    workers: int,
    shard_mb: int,
    overwrite: bool,
    append: bool,
    **guided: Any,
) -> Data:
    """See `fleximoe.pack`; `guided` is what is said of data frames."""
    if out is None:
        raise UsageError("say where to: out='data/NAME', a folder or URL of the new data set")
    place = absolute_url(str(out))
    with _scratch(bool(frames)) as scratch, called_frames(scratch) if frames else nullcontext():
        made, guesses = _source(source, place, frames, schema, dict(options or {}), scratch, guided)
        report = pack_into(made, place, workers=workers, shard_bytes=shard_mb << 20, overwrite=overwrite, append=append)
    return Data(place, report, guesses)


def _scratch(wanted: bool) -> AbstractContextManager[str]:
    return tempfile.TemporaryDirectory(prefix="fleximoe-frames-") if wanted else nullcontext("")


def _source(
    source: Any,
    place: str,
    frames: Mapping[str, Any],
    schema: DatasetSchema | None,
    options: dict[str, Any],
    scratch: str,
    guided: dict[str, Any],
) -> tuple[Source, list[str]]:
    """The source that was meant, and what was guessed."""
    if source is not None and frames:
        raise UsageError(f"give either a source ({source!r}) or data frames ({', '.join(frames)}), not both")
    said = [name for name, value in guided.items() if value is not None]
    if said and not frames:
        raise UsageError(f"{said[0]}= is for data frames; there is none (records=DATA_FRAME)")
    if frames:
        if schema is not None or options:
            raise UsageError(
                "schema= and options= are for records and sources; of data frames say modalities= and tasks="
            )
        name = guided.pop("name") or PurePath(place).name or "data"
        path, draft = frames_mapping(frames, Path(scratch), name, **guided)
        return make_source("tables", {"path": str(path)}), draft.said()
    if isinstance(source, str | PurePath):
        text = str(source)
        if text.endswith((".yaml", ".yml")):
            return make_source("tables", {"path": text, **options}), []
        return make_source(text, options), []
    if isinstance(source, Source):
        return source, []
    if hasattr(source, "columns") or hasattr(source, "__arrow_c_stream__"):
        raise UsageError("a data frame is given by name: pack(records=DATA_FRAME, tasks='COLUMN', out=...)")
    if not isinstance(source, Iterable):
        raise UsageError(
            "nothing to pack: give a source by name, a mapping file, records with a schema, or data frames"
        )
    if schema is None:
        raise UsageError("records need schema=: the DatasetSchema that says which modalities and tasks there are")
    return InMemory(schema, source), []
