"""Records that a model has not seen, packed as those that it was trained on: by their mapping, or their schema."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from data_shards import open_manifest
from data_shards import pack as pack_into
from data_shards.records.record import Record
from data_shards.shards.manifest import Manifest
from data_shards.sources.base import Source
from data_shards.sources.readers.cells import Cells
from data_shards.sources.tables.columns import wanted_columns
from data_shards.sources.tables.mapping import Mapping as TableMapping
from data_shards.yaml_file import to_yaml
from launch.api.data import Data, InMemory
from launch.api.frames import RECORDS, called_frames, file_of, set_folder, to_arrow
from launch.datasets.pack import make_source
from launch.errors import UsageError

logger = logging.getLogger(__name__)

PART = "test"  # of all new records


@contextmanager
def packed_for(url: str, data: Any, frames: Mapping[str, Any]) -> Iterator[str]:
    """A place with packed records, for as long as they are used.

    Args:
        url: the data that the model was trained on. data: a place, `Data`, a frame of records, or `Record`s.
        frames: the other tables, by the names that their files have in the mapping.

    Raises:
        UsageError: frames for a model whose data came from no tables. ValueError: records that do not fit.
    """
    if isinstance(data, str | Path | Data):
        if frames:
            raise UsageError(
                f"data frames ({', '.join(frames)}) belong to a frame of records, and {data} is packed data"
            )
        yield str(data)
        return
    with TemporaryDirectory(prefix="fleximoe-new-") as folder:
        manifest = open_manifest(url)
        with called_frames(folder):
            made = _source(manifest, data, frames, Path(folder))
            report = pack_into(made, f"{folder}/packed")
        _say_unknown(report)
        yield f"{folder}/packed"


def _say_unknown(report: Mapping[str, Any]) -> None:
    """Codes and categories that the model has never seen are predicted as unknown ones, and said."""
    for what, count in ((report.get("source") or {}).get("notes") or {}).items():
        if what.startswith("codes_unknown."):
            logger.warning(
                "%d cells of %s are codes or categories that the training data did not have: the model knows them as "
                "unknown",
                count, what.removeprefix("codes_unknown."),
            )  # fmt: skip


def _source(manifest: Manifest, data: Any, frames: Mapping[str, Any], folder: Path) -> Source:
    records = [data] if isinstance(data, Record) else data
    if isinstance(records, Sequence) and records and all(isinstance(record, Record) for record in records):
        made = InMemory(manifest.schema, records)
        made.vocabularies = {
            m.name: manifest.vocabulary(m.name) for m in manifest.schema.modalities if m.kind == "codes"
        }
        return made
    given = {RECORDS: data, **frames}
    mapping = (manifest.source or {}).get("mapping")
    if mapping is None:
        raise UsageError(
            f"{manifest.url} was packed from no tables, so nothing says what columns of a data frame mean: give "
            "fleximoe.Record objects, or packed data"
        )
    tree = _of_frames(mapping, manifest, set(given))
    return make_source("tables", {"path": str(_written(tree, given, folder))})


def _of_frames(mapping: Mapping[str, Any], manifest: Manifest, given: set[str]) -> dict[str, Any]:
    """The mapping of the training data, with frames for files, one part, and the vocabularies that were learned."""
    tree: dict[str, Any] = json.loads(json.dumps(mapping))
    # The order of modalities is part of a schema, and not of what a manifest says in JSON.
    tree["modalities"] = {name: tree["modalities"][name] for name in manifest.schema.modality_names}
    home = tree["records"]["file"]
    stems = {home: RECORDS}
    for section in [*tree["modalities"].values(), *tree.get("tasks", {}).values()]:
        file = section.get("file", home)
        stems.setdefault(file, Path(file.split("*")[0].rstrip("/")).name.split(".")[0] or file)
        if "file" in section:
            section |= {"file": file_of(stems[file]), "unknown_keys": "skip"}  # there may be no row; see `_asked_for`
        if section.get("kind") == "codes":
            section.pop("max_codes", None), section.pop("min_count", None)
    unknown = sorted(given - set(stems.values()))
    if unknown:
        raise UsageError(
            f"{unknown[0]}= is none of the tables that the model was trained on; these are {', '.join(stems.values())}"
        )
    for section in tree["modalities"].values():
        if section["kind"] == "codes":
            section["vocabulary"] = manifest.url
    tree["records"]["file"] = file_of(RECORDS)
    tree["records"].pop("need_any", None)
    tree["split"] = {"shares": {PART: 1.0}}
    set_folder(tree["modalities"])
    return tree


def _asked_for(table: pa.Table, link: str, home: pa.Table, key: str, name: str) -> pa.Table:
    """Rows of the records that are predicted; that there are others is said."""
    if link not in table.column_names or not len(table):
        return table
    cells, keys = (
        Cells().convert(own[column].combine_chunks(), column, "text") for own, column in ((table, link), (home, key))
    )
    known = pc.is_in(cells, value_set=keys)
    kept = table.filter(known)
    if len(kept) < len(table):
        logger.warning(
            "%d of the %d rows of %s are of none of these records (column %r)",
            len(table) - len(kept), len(table), name, link,
        )  # fmt: skip
    return kept


def _written(tree: dict[str, Any], given: Mapping[str, Any], folder: Path) -> Path:
    """Files and mapping. Labels may be missing, and so may tables but the records': then there is nothing of them."""
    tables = {name: to_arrow(frame, name) for name, frame in given.items()}
    home, key = tables[RECORDS], tree["records"]["key"]
    if key not in home.column_names and len(tables) > 1:
        others = ", ".join(name for name in tables if name != RECORDS)
        raise UsageError(f"records has no column {key!r}, which says whose the rows of {others} are; add it")
    if key not in home.column_names:
        tables[RECORDS] = home = home.append_column(key, pa.array([str(n) for n in range(len(home))]))
    if tree["records"].get("group") not in home.column_names:
        tree["records"].pop("group", None)
    mapping = TableMapping.model_validate(tree)
    labels = {
        (mapping.place(task)[0], column)
        for task in mapping.tasks.values()
        for column in [task.column, *task.columns, task.seen, None if task.at_moments else task.time]
    }
    for (file, link), columns in wanted_columns(mapping).items():
        name = file.removesuffix(".parquet")
        if name not in tables:
            for task_name, task in mapping.tasks.items():
                if task.at_moments and mapping.place(task)[0] == file:
                    raise UsageError(f"{name}= is missing: task {task_name} is asked for at the times that it holds")
            tables[name] = pa.table({column: pa.nulls(0) for column in (link, *columns)})
        for column in columns:
            if (file, column) in labels and column not in tables[name].column_names:
                tables[name] = tables[name].append_column(column, pa.nulls(len(tables[name])))
    for (file, link), _ in wanted_columns(mapping).items():
        name = file.removesuffix(".parquet")
        if name != RECORDS:
            tables[name] = _asked_for(tables[name], link, home, key, name)
    for name, table in tables.items():
        pa.parquet.write_table(table, folder / file_of(name))
    path = folder / "mapping.yaml"
    path.write_text(to_yaml(tree), encoding="utf-8")
    return path
