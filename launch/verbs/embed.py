"""The verb `embed`."""

from __future__ import annotations

from typing import Annotated

import typer

from launch.verbs.options import Debug

app = typer.Typer(rich_markup_mode=None)


@app.command()
def embed(
    url: Annotated[str, typer.Argument(metavar="DATA", help="Folder or URL of a packed data set.")],
    encode: Annotated[
        list[str],
        typer.Option(
            metavar="MODALITY=SOURCE",
            help="A text, picture or waveform modality, and its encoder: a folder with config.json and "
            "model.safetensors, a name on the Hugging Face hub, or a run of job=tower. Give it once a modality.",
        ),
    ],
    out: Annotated[str, typer.Option(help="Folder or URL (s3://, gs://, ...) of the new data set.")],
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            "-o",
            metavar="MODALITY.KEY=VALUE",
            help="tokens=N: N tokens of an object in place of one; dtype=bfloat16: half the memory; max_tokens=N and "
            "max_seconds=X: how much of a text or signal is read. As in model.encoders of a recipe.",
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes over Ray, each with a CPU or GPU; 1 = no Ray.")] = 1,
    address: Annotated[
        str | None, typer.Option(help="The Ray to use, e.g. auto; default: RAY_ADDRESS, else a local one.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what is there: a data set, or the beginning of another.")
    ] = False,
    lease_s: Annotated[
        float, typer.Option("--lease-s", min=0.5, help="Seconds after which an embedding that hangs may be followed.")
    ] = 60,
    debug: Debug = False,
) -> None:
    """Let pretrained encoders read texts, pictures or sounds of a packed data set once, for all runs to come.

    A new data set results: each object is a vector, at its time as before, and all else is as it was. Runs on it learn
    what runs with the same frozen encoder inside (model.encoders) learn, and pay nothing for the encoder. If it is
    stopped, the same command goes on behind the shards that are complete; the result is the same bytes, whatever the
    number of workers. `predict` runs the encoder on original data for a model of embedded ones.

    \b
    python -m launch embed data/icu --encode notes=encoders/ClinicalBERT --out data/icu_embedded
    python -m launch embed data/icu --encode notes=NAME -o notes.tokens=4 --encode cxr=DIR --out s3://bucket/icu --workers 8
    """  # noqa: E501 - a command is one line
    from launch.runs.embed import embed_data

    embed_data(url, encode, option or [], out, workers, address, overwrite, lease_s, debug)
