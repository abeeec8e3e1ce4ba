"""The verb `predict`."""

from __future__ import annotations

from typing import Annotated

import typer

from launch.verbs.options import Debug, Overrides

app = typer.Typer(rich_markup_mode=None)


@app.command()
def predict(
    checkpoint: Annotated[str, typer.Argument(help="Folder or URL of a checkpoint, or of a run.")],
    out: Annotated[str, typer.Option(help="Parquet file or URL to write.")],
    overrides: Overrides = None,
    data: Annotated[
        str | None, typer.Option(help="Data with the same modalities; default: what it was trained on.")
    ] = None,
    part: Annotated[
        str | None, typer.Option(help="Only this part of the split, e.g. test; default: every record.")
    ] = None,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="Add what each prediction rests on: shares of modalities, objects, experts."),
    ] = False,
    embeddings: Annotated[
        bool, typer.Option("--embeddings", help="Add the pooled vector of each record, and its tokens by modality.")
    ] = False,
    calibrated: Annotated[
        bool, typer.Option("--calibrated", help="Divide logits by the temperatures of `evaluate --temperature`.")
    ] = False,
    encode: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODALITY=SOURCE",
            help="Of a model of embedded data, for original data: where the encoder is now; default: where it was.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
    debug: Debug = False,
) -> None:
    """Predict every record of a data set and write one Parquet file; it appears whole or not at all.

    One process by default, over Ray with parallel.workers=N; the file is the same.

    \b
    python -m launch predict runs/NAME --data data/new --out predictions.parquet
    python -m launch predict runs/NAME --part test --out s3://bucket/test.parquet --explain parallel.workers=8
    """
    from launch.runs.predict import predict_records

    wishes = (encode or [], overrides or [], overwrite, debug, embeddings)
    predict_records(checkpoint, data, out, part, explain, calibrated, *wishes)
