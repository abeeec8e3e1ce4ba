"""The verbs `init`, `pack`, `embed`, `inspect`, `verify`, `copy` and `drop-version`."""

from __future__ import annotations

from typing import Annotated

import typer

from launch.verbs.options import Debug, source_names

app = typer.Typer(rich_markup_mode=None)


@app.command()
def init(
    folder: Annotated[str, typer.Argument(help="Folder with tables: CSV, Parquet or JSON lines.")],
    out: Annotated[str | None, typer.Option(metavar="DIR", help="Folder for both files; default: FOLDER.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    debug: Debug = False,
) -> None:
    """Write a first mapping and recipe from a folder of tables: types, times and keys are guessed.

    Every guess that should be looked at is marked in the mapping with `# sure?`.

    \b
    fleximoe init ward/
    fleximoe pack tables --source ward/mapping.yaml --out data/ward
    fleximoe train ward/recipe.yaml
    """
    from launch.draft.init import draft_folder

    draft_folder(folder, out, overwrite)


@app.command()
def pack(
    source: Annotated[
        str,
        typer.Argument(help="Where records come from: digits, physionet2012, tables, ...", autocompletion=source_names),
    ],
    out: Annotated[str, typer.Option(help="Folder or URL (s3://, gs://, ...) of the new data set.")],
    folder: Annotated[
        str | None,
        typer.Option("--source", metavar="PATH", help="The original files: a folder, or the mapping file of tables."),
    ] = None,
    splits: Annotated[
        str | None, typer.Option(metavar="FILE", help="Table of named splits, e.g. raindrop_splits.csv.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", "-o", metavar="KEY=VALUE", help="Any other option of the source.")
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that work; 0 = one per CPU, of all nodes.")] = 0,
    address: Annotated[
        str | None,
        typer.Option(
            help="Pack on this Ray, e.g. auto; in a submitted job it is the default, else this machine alone."
        ),
    ] = None,
    shard_mb: Annotated[int, typer.Option(min=1, help="Size at which a shard is closed, in MiB.")] = 64,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a data set that is there.")] = False,
    append: Annotated[
        bool, typer.Option("--append", help="Add these records to the data set that is there, as its next version.")
    ] = False,
    lease_s: Annotated[
        float, typer.Option("--lease-s", min=0.5, help="Seconds after which a pack that hangs may be followed.")
    ] = 60,
    debug: Debug = False,
) -> None:
    """Turn original data into shards: WebDataset tars with a manifest. Done once per data set.

    The result is the same, byte by byte, whoever works and however often it is killed: the same command goes on behind
    what is complete. On a cluster all nodes must see the original files (and the scratch folder of tables).

    \b
    python -m launch pack digits --out data/digits
    python -m launch pack physionet2012 --source DIR --out data/physionet2012 --splits DIR/raindrop_splits.csv
    python -m launch pack tables --source mapping.yaml --out data/mine
    python -m launch pack synthetic --out data/made_up -o records=2000 -o modalities=series:20,image:4
    python -m launch pack tables --source s/mapping.yaml -o scratch=/shared/tmp --out s3://bucket/mine --address auto
    """
    from launch.datasets.pack import PackSettings
    from launch.runs.pack import pack_data

    settings = PackSettings(out, workers, shard_mb, overwrite, append, lease_s)
    pack_data(source, folder, splits, option or [], settings, address, debug)


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


@app.command()
def inspect(
    url: Annotated[str, typer.Argument(help="Folder or URL of a packed data set.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
    html: Annotated[
        str | None, typer.Option(metavar="FILE", help="Also write a page with pictures; it shows no record.")
    ] = None,
    records: Annotated[
        int, typer.Option(min=0, help="Of a larger data set, shards with about so many records are looked at; 0 = all.")
    ] = 2_000_000,
    versions: Annotated[
        bool, typer.Option("--versions", help="List the versions of a data set that has grown, and what opens each.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Show what a packed data set holds: presence, sampling, lengths, labels, values, and what looks like leakage.

    \b
    python -m launch inspect data/digits --html digits.html
    """
    from launch.datasets.inspect import inspect_data, list_versions

    if versions:
        list_versions(url, as_json)
        return
    inspect_data(url, as_json, html, records)


@app.command()
def verify(
    url: Annotated[str, typer.Argument(metavar="DATA", help="Folder or URL of a packed data set.")],
    deep: Annotated[bool, typer.Option("--deep", help="Read every byte and decode every record.")] = False,
    log: Annotated[
        str | None, typer.Option(metavar="FILE", help="Note each shard here; the same command goes on behind those.")
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that look; 0 = one per CPU, of all nodes.")] = 0,
    address: Annotated[
        str | None,
        typer.Option(
            help="Look from this Ray, e.g. auto; in a submitted job it is the default, else this machine alone."
        ),
    ] = None,
    debug: Debug = False,
) -> None:
    """Compare a data set with its manifest, and list what is damaged and which records are gone.

    Every file's length and every index; with --deep every byte, digest, chunk and record. It ends with 1 if anything is
    damaged.
    """
    from launch.runs.upkeep import verify_data

    if not verify_data(url, deep, log, workers, address, debug):
        raise typer.Exit(1)


@app.command()
def copy(
    url: Annotated[str, typer.Argument(metavar="DATA", help="Folder or URL of a packed data set, or of a version.")],
    out: Annotated[str, typer.Argument(metavar="TO", help="Folder or URL (s3://, gs://, ...) of the copy.")],
    versions: Annotated[
        bool, typer.Option("--versions", help="All versions of a data set that has grown; what they share, once.")
    ] = False,
    workers: Annotated[int, typer.Option(min=0, help="Processes that copy; 0 = one per CPU, of all nodes.")] = 0,
    address: Annotated[
        str | None,
        typer.Option(
            help="Copy from this Ray, e.g. auto; in a submitted job it is the default, else this machine alone."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a data set that is there.")] = False,
    lease_s: Annotated[
        float, typer.Option("--lease-s", min=0.5, help="Seconds after which a copy that hangs may be followed.")
    ] = 60,
    debug: Debug = False,
) -> None:
    """Copy a data set, with every file compared before and after; if it is stopped, the same command goes on.

    One version is copied, the newest unless DATA is the file of an earlier head (`inspect --versions`); with --versions
    all that are kept.
    """
    from launch.runs.upkeep import copy_data

    copy_data(url, out, versions, workers, address, overwrite, lease_s, debug)


@app.command()
def drop_version(
    url: Annotated[str, typer.Argument(metavar="DATA", help="Folder or URL of a packed data set.")],
    version: Annotated[
        str, typer.Argument(help="Its number, or the first digits of its digest: `inspect --versions`.")
    ],
    lease_s: Annotated[
        float, typer.Option("--lease-s", min=0.5, help="Seconds after which one that hangs may be followed.")
    ] = 60,
    debug: Debug = False,
) -> None:
    """Forget an earlier version of a data set that has grown, with the files that no other version uses."""
    from launch.runs.upkeep import drop_data_version

    drop_data_version(url, version, lease_s)
