"""Verbs about runs that are there: `runs`, `report`, `compare`, `ensemble`."""

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
def report(
    run: Annotated[
        str, typer.Argument(help="Folder or URL of a run or a sweep, a name in runs/, or MLflow's id or name of a run.")
    ],
    out: Annotated[str | None, typer.Option(metavar="FILE", help="The page; default: NAME.html.")] = None,
    sample: Annotated[
        int,
        typer.Option(metavar="N", help="Samples of the test part for what the run does not keep; 0 computes nothing."),
    ] = 256,
    uri: Annotated[
        str | None, typer.Option(help="MLflow; default: MLFLOW_TRACKING_URI, else mlflow.db in this folder.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Write a run as one HTML page: data, curves, test metrics with intervals, calibration, what absent modalities
    cost, what answers rest on, experts, cost, lineage. Of a sweep: settings against scores, and best by budget.

    Everything is read from what the run keeps; the missing-modality curve, if `evaluate` has left none, and the shares
    of modalities and time are computed on a sample, and the page says of how many.

    \b
    fleximoe report runs/NAME
    fleximoe report runs/mysweep --out sweep.html
    """
    from launch.api.run import open_run
    from launch.output.tables import print_json_line

    print_json_line({"html": str(open_run(run, "runs", uri).report(out, sample=sample))})


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


@app.command()
def ensemble(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN... [SECTION.KEY=VALUE]...",
            help="Folders or URLs of runs, or of a sweep: the seeds of its best variant; then changes, e.g. name=five.",
        ),
    ],
    blend: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="A baseline or another run that counts by a weight that validation chooses."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Several runs as one model: the mean of their chances, as a run that is predicted, evaluated and compared.

    Runs count equally; a blend counts by a weight for each task, of 0, .05, ... 1, that is best on validation. All must
    have learned from the same split of the same data. Members stay where they are.

    \b
    python -m launch ensemble runs/seed0 runs/seed1 runs/seed2 name=three
    python -m launch ensemble runs/mysweep --blend runs/baseline-trees name=best
    python -m launch predict runs/best --data data/new --out predictions.parquet
    """
    from launch.runs.ensemble import show_ensemble

    show_ensemble(runs, blend)
