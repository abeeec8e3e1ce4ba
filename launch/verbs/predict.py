"""The verbs `predict` and `serve`."""

from __future__ import annotations

from typing import Annotated

import typer

from launch.verbs.options import Debug, Overrides

app = typer.Typer(rich_markup_mode=None)


@app.command()
def predict(
    checkpoint: Annotated[str, typer.Argument(help="Folder or URL of a checkpoint, or of a run.")],
    out: Annotated[
        str, typer.Option(help="Parquet file or URL to write; with a / at its end a folder of files, for large data.")
    ],
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

    One process by default, over Ray with parallel.workers=N; the file is the same. Into a folder each worker writes
    whole files of its own; a command that was killed goes on behind those that are complete.

    \b
    python -m launch predict runs/NAME --data data/new --out predictions.parquet
    python -m launch predict runs/NAME --part test --out s3://bucket/test.parquet --explain parallel.workers=8
    python -m launch predict runs/NAME --data s3://bucket/all --out s3://bucket/said/ parallel.workers=64
    """
    from launch.runs.prediction.predict import predict_records

    wishes = (encode or [], overrides or [], overwrite, debug, embeddings)
    predict_records(checkpoint, data, out, part, explain, calibrated, *wishes)


@app.command()
def serve(
    model: Annotated[
        str, typer.Argument(help="Folder or URL of a run, a checkpoint, or an export; or models:/NAME of MLflow.")
    ],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    replicas: Annotated[int, typer.Option(min=1, help="Copies of the model.")] = 1,
    batch_ms: Annotated[float, typer.Option(min=0, help="Most that a request waits for others, in ms.")] = 5.0,
    batch_records: Annotated[int, typer.Option(min=1, help="Records at which a batch waits no longer.")] = 64,
    max_mb: Annotated[int, typer.Option(min=1, help="Most MiB of a request.")] = 16,
    max_records: Annotated[int, typer.Option(min=1, help="Most records of a request.")] = 1000,
    max_megapixels: Annotated[int, typer.Option(min=1, help="Most pixels of a request's pictures, in millions.")] = 50,
    max_megasamples: Annotated[int, typer.Option(min=1, help="Most samples of a request's sounds, in millions.")] = 50,
    allow_url: Annotated[
        list[str] | None,
        typer.Option(metavar="PREFIX", help="Fetch pictures and sounds whose URL is below this; may be repeated."),
    ] = None,
    follow: Annotated[
        float, typer.Option(min=0, help="Seconds after which a newer version is looked for; 0: never.")
    ] = 0,
    token_file: Annotated[str | None, typer.Option(help="File with the token; default: one is made.")] = None,
    certificate: Annotated[str | None, typer.Option(help="Certificate of TLS, a PEM file.")] = None,
    key: Annotated[str | None, typer.Option(help="Its key, a PEM file.")] = None,
    export: Annotated[
        str | None, typer.Option(help="Where the models of runs are exported to; default: a temporary folder.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Answer requests with predictions of a model: /predict, /explain, /schema, /healthz, /metrics. Ctrl-C ends it.

    Needs the extra `serve`. Every request but /healthz brings the token; a browser asks for it at /.

    \b
    python -m launch serve runs/NAME
    curl -H "Authorization: Bearer TOKEN" http://127.0.0.1:8000/schema
    python -m launch serve models:/NAME --follow 30
    """
    from launch.serving.limits import Limits
    from launch.serving.prefix import Prefix
    from launch.serving.start import Service, serve_until_stopped

    prefixes = tuple(Prefix.of(url) for url in allow_url or ())
    limits = Limits(max_mb << 20, max_records, max_megapixels * 1_000_000, max_megasamples * 1_000_000, prefixes)
    ways = (replicas, batch_ms, batch_records, limits, token_file, certificate, key, export, follow)
    serve_until_stopped(Service(model, host, port, *ways), debug)
