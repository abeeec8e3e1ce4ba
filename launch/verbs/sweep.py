"""The verb `sweep`."""

from __future__ import annotations

from typing import Annotated

import typer

from launch.verbs.options import Debug, Overrides, Recipe

app = typer.Typer(rich_markup_mode=None)


@app.command()
def sweep(
    recipe: Recipe,
    space: Annotated[str, typer.Argument(help="Name of a shipped space (launch/spaces), or a YAML file.")],
    overrides: Overrides = None,
    debug: Debug = False,
) -> None:
    """Run a recipe over a space of settings and seeds, as many trials at once as there are resources.

    The same command again continues a sweep that was killed. Every trial is a child of one MLflow run.

    \b
    python -m launch sweep digits experts parallel.workers=1 parallel.expert_parallel=1
    python -m launch sweep icu_physionet2012 my_space.yaml name=mine training.epochs=4
    """
    from launch.sweep.sweep import sweep_recipe

    sweep_recipe(recipe, space, overrides or [], debug)
