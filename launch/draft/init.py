"""The verb `init`: a mapping and a recipe drafted from a folder of tables."""

from __future__ import annotations

import logging
from pathlib import Path

from data_shards.paths import absolute_path
from data_shards.sources.readers.csv_dialect import Dialect
from data_shards.sources.readers.table_files import is_table
from data_shards.sources.tables.mapping import read_mapping
from launch.draft.dialects import likely_dialect
from launch.draft.draft import Draft, legal_name
from launch.draft.guess import guess_mapping
from launch.draft.profile import Table, profile
from launch.draft.write import SURE, mapping_text, recipe_text
from launch.errors import UsageError
from launch.output.tables import people, print_json_line

MAPPING, RECIPE = "mapping.yaml", "recipe.yaml"
logger = logging.getLogger(__name__)


def draft_folder(folder: str, out: str | None, overwrite: bool) -> None:
    """Write both files; prints what was guessed, and as the last line where it is.

    Raises:
        UsageError: no folder, no table in it, or files that are there. ValueError: a table that cannot be read.
    """
    place = absolute_path(folder)
    target = place if out is None else absolute_path(out)
    there = [path for path in (target / MAPPING, target / RECIPE) if path.exists()]
    if there and not overwrite:
        raise UsageError(f"{there[0]} exists: give another folder with --out, or --overwrite")
    draft = draft_mapping(place, target)
    data = f"data/{draft.tree['name']}"
    target.mkdir(parents=True, exist_ok=True)
    mapping, recipe = target / MAPPING, target / RECIPE
    mapping.write_text(mapping_text(draft), encoding="utf-8")
    recipe.write_text(recipe_text(data), encoding="utf-8")
    read_mapping(mapping)  # what is drafted is a mapping
    for sentence in draft.said():
        people.print(f"sure? {sentence}", markup=False, highlight=False)
    people.print(
        f"Look at the lines with {SURE} in {mapping}, then: fleximoe pack tables --source {mapping} --out {data}; "
        f"fleximoe train {recipe}",
        markup=False,
        highlight=False,
    )
    print_json_line({"mapping": str(mapping), "recipe": str(recipe), "data": data, "doubts": draft.said()})


def draft_mapping(folder: Path, target: Path | None = None) -> Draft:
    """The draft of a folder's tables.

    Args:
        target: folder that the mapping will lie in; file names are written relative to it.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder: give the one that the tables are in")
    paths = [path for path in sorted(folder.iterdir()) if path.is_file() and is_table(path.name)]
    if not paths:
        raise UsageError(f"{folder} holds no table: CSV (.csv, .tsv, .txt), Parquet (.parquet) or JSON lines (.jsonl)")
    inside = target in (None, folder)
    dialect, why = likely_dialect(paths)
    tables = [_table(path, path.name if inside else str(path), dialect) for path in paths]
    draft = guess_mapping(legal_name(folder.name), tables, folder)
    if dialect != Dialect():
        draft.tree["csv"] = dialect.model_dump(exclude_unset=True)
        draft.doubt("csv", why)
    if not inside:
        for section in draft.tree["modalities"].values():
            if section["kind"] == "image":
                section["folder"] = str(folder)
    return draft


def _table(path: Path, name: str, dialect: Dialect) -> Table:
    logger.info("looking at %s", path)
    return profile(path, name, dialect)
