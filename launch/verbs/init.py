"""The verb `init`."""

from __future__ import annotations

from typing import Annotated

import typer

from launch.verbs.options import Debug

app = typer.Typer(rich_markup_mode=None)


@app.command("init")
def init(
    folder: Annotated[str, typer.Argument(help="Folder with tables: CSV, Parquet or JSON lines.")],
    out: Annotated[str | None, typer.Option(metavar="DIR", help="Folder for both files; default: FOLDER.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    debug: Debug = False,
) -> None:
    """Write a first mapping and recipe from a folder of tables: types, times and keys are guessed.

    Every guess that should be looked at is marked in the mapping with `# sure?`.

    \b
    fleximoe init ward/
    fleximoe pack tables --source ward/mapping.yaml --out data/ward
    fleximoe train ward/recipe.yaml
    """
    from launch.draft.init import draft_folder

    draft_folder(folder, out, overwrite)
