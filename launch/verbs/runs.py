"""The verb `runs`."""

from __future__ import annotations

from typing import Annotated

import typer

from launch.verbs.options import Debug

app = typer.Typer(rich_markup_mode=None)


@app.command("runs")
def runs(
    storage: Annotated[
        str, typer.Option(metavar="URL", help="training.storage of the runs: the folder that theirs are in.")
    ] = "runs",
    mlflow: Annotated[
        str | None,
        typer.Option(
            metavar="URI", help="tracking.uri of the runs; default: MLFLOW_TRACKING_URI, else mlflow.db of this folder."
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """List runs, the newest first: state, data, main metric, size and age, from their folders and from MLflow.

    \b
    fleximoe runs
    fleximoe runs --storage s3://bucket/runs --mlflow http://head:5000
    """
    from launch.runs.listing import show_runs

    show_runs(storage, mlflow)
