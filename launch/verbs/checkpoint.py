"""The verbs `checkpoint ls`, `checkpoint verify` and `checkpoint export`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look at, check and export a run's checkpoints.")


class Format(StrEnum):
    """What an export is written as."""

    safetensors = "safetensors"
    pt2 = "pt2"
    onnx = "onnx"


Run = Annotated[str, typer.Argument(metavar="RUN", help="Folder or URL of a run, or of one of its checkpoints.")]


@app.command("ls")
def list_command(run: Run) -> None:
    """List a run's checkpoints: step, score, size, and why one cannot be used."""
    _show(run, verify=False)


@app.command("verify")
def verify_command(run: Run) -> None:
    """Read every byte and compare it with its digest. Leaves with 1 if any checkpoint is damaged."""
    if not _show(run, verify=True):
        raise typer.Exit(1)


@app.command("export")
def export_command(
    run: Run,
    out: Annotated[str, typer.Option(help="Folder or URL of the exported model.")],
    format_: Annotated[
        Format, typer.Option("--format", help="safetensors, or one graph: pt2 for torch alone, onnx for ONNX Runtime.")
    ] = Format.safetensors,
) -> None:
    """Write the model (of a run: its best) for `fleximoe.load(OUT)`: as safetensors with recipe and schema, or as one
    graph, which is compared with the model first."""
    from launch.output.tables import print_json_line, print_metrics
    from trainer.ensemble.export import export_run

    report = export_run(run, out, format_.value)
    names = ("step", "members", "parameters", "bytes", "records", "difference")
    sizes: dict[str, Any] = {key: report[key] for key in names if key in report}
    print_metrics(f"{report['checkpoint']} -> {report['model']}", sizes)
    print_json_line(report)


def _show(run: str, verify: bool) -> bool:
    """Table and JSON line; whether all are usable."""
    from dataclasses import asdict

    from data_shards.paths import absolute_url
    from launch.output.tables import print_json_line, print_table
    from trainer.checkpoints.listing import list_checkpoints

    listed = list_checkpoints(absolute_url(run), verify)
    word = "verified" if verify else "committed"
    rows = [[item.step, item.epoch, item.score, round(item.bytes / 2**20, 2), item.problem or word] for item in listed]
    print_table(run, ["step", "epoch", "score", "MiB", "state"], rows)
    print_json_line({"checkpoints": [asdict(item) for item in listed]})
    return all(item.problem is None for item in listed)
