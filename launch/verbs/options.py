"""Options that several verbs share."""

from __future__ import annotations

from typing import Annotated

import typer


def recipe_names(incomplete: str) -> list[str]:
    """For the shell: shipped recipes that begin so. Where there is none the shell completes names of files."""
    from trainer.config.recipe import known_recipes

    return [name for name in known_recipes() if name.startswith(incomplete)]


def source_names(incomplete: str) -> list[str]:
    """For the shell: sources that begin so."""
    from data_shards.sources import known_sources

    return [name for name in known_sources() if name.startswith(incomplete)]


Recipe = Annotated[
    str,
    typer.Argument(
        help="Name of a shipped recipe (launch/recipes), or a YAML file.",
        autocompletion=recipe_names,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[SECTION.KEY=VALUE]...", help="Changes to the recipe, e.g. model.moe.experts=64."),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show stack traces, and what Ray and other libraries log.")]
