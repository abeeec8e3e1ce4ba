"""The verbs `runs` and `compare`."""

from __future__ import annotations

from typing import Annotated

import typer

from launch.verbs.options import Debug

app = typer.Typer(rich_markup_mode=None)


@app.command()
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


@app.command()
def compare(
    runs: Annotated[list[str] | None, typer.Argument(help="Folders, MLflow ids or names of runs.")] = None,
    experiment: Annotated[str | None, typer.Option(help="All runs of this MLflow experiment.")] = None,
    metric: Annotated[
        str | None, typer.Option(help="Test metric that ranks them, e.g. auprc; default: by task.")
    ] = None,
    html: Annotated[str | None, typer.Option(metavar="FILE", help="Also write a report as one HTML file.")] = None,
    uri: Annotated[
        str | None, typer.Option(help="MLflow; default: MLFLOW_TRACKING_URI, else mlflow.db in this folder.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Compare runs: intervals over test records, paired tests over seeds, and a report with figures.

    Runs that differ in their seed only count as one variant.

    \b
    python -m launch compare runs/a runs/b
    python -m launch compare --experiment gates --html gates.html
    """
    from launch.compare.compare import compare_runs

    compare_runs(runs or [], experiment, metric, html, uri)
