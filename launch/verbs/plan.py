"""The verb `plan`."""

from __future__ import annotations

from typing import Annotated

import typer

from launch.verbs.options import Debug, Overrides, Recipe

app = typer.Typer(rich_markup_mode=None)


@app.command()
def plan(
    recipe: Recipe,
    overrides: Overrides = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="Devices; default: parallel.workers.")] = None,
    gpu: Annotated[str, typer.Option(help="Kind, e.g. h200, a100, l40s, or cpu (measured here).")] = "h100",
    schema: Annotated[
        str | None, typer.Option(metavar="FILE", help="Schema as JSON, for data that is not packed yet.")
    ] = None,
    presence: Annotated[float, typer.Option(help="With --schema: share of records that have a modality.")] = 1.0,
    debug: Debug = False,
) -> None:
    """Predict memory, traffic and speed of a run without running it, on up to thousands of GPUs.

    \b
    python -m launch plan digits
    python -m launch plan digits model.dim=4096 model.layers=24 parallel.expert_parallel=8 --gpus 64 --gpu h100
    """
    from launch.plan.plan import plan_recipe

    plan_recipe(recipe, overrides or [], gpus, gpu, schema, presence)
