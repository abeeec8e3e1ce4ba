"""The verbs `submit`, `stop`, `status`, `logs` and `list`: runs as Ray jobs."""

from __future__ import annotations

import signal
import sys
from typing import Annotated, Any

import typer

from launch.verbs.options import Debug

app = typer.Typer(rich_markup_mode=None)

Cluster = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="Ray's dashboard; default: RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265 (a tunnel)."
    ),
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the run (its newest job), or id of a job.")]
STOPPED = 128 + signal.SIGTERM


@app.command()
def submit(
    recipe: Annotated[str, typer.Argument(help="Name of a shipped recipe, or a YAML file in this folder.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[SECTION.KEY=VALUE]...")] = None,
    cluster: Cluster = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Follow the job to its end, or return at once.")
    ] = True,
    debug: Debug = False,
) -> None:
    """Train on a cluster as a Ray job, follow what it prints, and leave with its exit code.

    The same `name=` continues a run. Ctrl-C stops following, not the job.

    \b
    python -m launch submit digits name=first data.url=$PWD/data/digits training.storage=$PWD/runs
    python -m launch submit icu_physionet2012 data.url=s3://bucket/icu training.storage=s3://bucket/runs --no-wait
    """
    from launch.cluster.job_board import JobBoard
    from launch.cluster.job_log import what_it_said
    from launch.output.tables import print_json_line

    board = JobBoard(cluster)
    job = board.submit(recipe, overrides or [])
    if not wait:
        print_json_line(job.as_dict())
        return
    job = _follow(board, job, sys.stderr)
    print_json_line({**job.as_dict(), **what_it_said(board.logs(job))})
    _leave(job)


@app.command()
def stop(
    name: Name,
    cluster: Cluster = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the checkpoint.")] = 600.0,
    debug: Debug = False,
) -> None:
    """Stop a run: wait until it has written a checkpoint, and say at which step."""
    from launch.cluster.job_board import JobBoard
    from launch.cluster.job_log import what_it_said
    from launch.output.tables import people, print_json_line

    board = JobBoard(cluster)
    job = board.stop(board.find(name), timeout)
    log = board.logs(job)
    said = what_it_said(log)
    result = said.get("result") or {}
    print_json_line({"id": job.id, "run": job.run, "status": job.status, **said})
    if result.get("status") == "stopped":
        people.print(f"run {job.run} stopped at step {result['step']} with checkpoint {result['checkpoint']}")
    elif result or job.status != "STOPPED":
        people.print(f"run {job.run} had ended by itself: {job.status}")
    elif "interrupted" in log:
        people.print(f"run {job.run} stopped before its first step")
    else:
        people.print(
            f"run {job.run} was killed before it had written a checkpoint: it keeps the one before. "
            "cluster.stop_timeout_s gives it more time"
        )
        raise typer.Exit(1)


@app.command()
def status(name: Name, cluster: Cluster = None, debug: Debug = False) -> None:
    """Show how a run is doing: its job, its step, its MLflow run."""
    from launch.cluster.job_board import JobBoard, when
    from launch.cluster.job_log import what_it_said
    from launch.output.tables import print_json_line, print_table

    board = JobBoard(cluster)
    job = board.find(name)
    said = what_it_said(board.logs(job))
    shown: dict[str, Any] = {**job.as_dict(), "metadata": None, **job.metadata, **said, "result": None}
    shown |= {"started": when(job.started), "ended": when(job.ended)}
    rows = [(key.replace("_", " "), str(value)) for key, value in shown.items() if value not in (None, "")]
    print_table(f"run {job.run}", ("what", "value"), rows)
    print_json_line({**job.as_dict(), **said})


@app.command()
def logs(
    name: Name,
    cluster: Cluster = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    debug: Debug = False,
) -> None:
    """Print what a run's job has printed; with --follow leave with its exit code."""
    from launch.cluster.job_board import JobBoard

    board = JobBoard(cluster)
    job = board.find(name)
    if follow:
        _leave(_follow(board, job, sys.stdout))
    else:
        sys.stdout.write(board.logs(job))


@app.command("list")
def list_jobs(cluster: Cluster = None, debug: Debug = False) -> None:
    """List the jobs of a cluster, the newest first."""
    from launch.cluster.job_board import JobBoard, when
    from launch.output.tables import print_json_line, print_table

    board = JobBoard(cluster)
    jobs = board.all()
    rows = [(job.run, job.id, job.status, job.exit_code, when(job.started), when(job.ended)) for job in jobs]
    print_table(board.url, ("run", "job", "status", "exit code", "started (UTC)", "ended"), rows)
    print_json_line({"jobs": [job.as_dict() for job in jobs]})


def _follow(board: Any, job: Any, stream: Any) -> Any:
    """Copy the job's output to `stream` until it ends; returns the job as it ended."""
    from launch.errors import RunFailedError

    def write(text: str) -> None:
        stream.write(text)
        stream.flush()

    try:
        return board.follow(job, write)
    except KeyboardInterrupt:
        raise RunFailedError(
            f"job {job.id} goes on: `python -m launch logs {job.run} --follow`, `python -m launch stop {job.run}`",
            stopped_by=signal.SIGINT,
        ) from None


def _leave(job: Any) -> None:
    """Leave with the exit code of the job's command; Ray keeps none for a job that was stopped."""
    if job.status == "STOPPED":
        raise typer.Exit(STOPPED)
    if job.exit_code is None and job.status == "FAILED":
        from launch.errors import RunFailedError

        raise RunFailedError(f"job {job.id} did not get as far as its command: {job.message}")
    if job.exit_code:
        raise typer.Exit(job.exit_code)
