"""The verbs. Each is one short function that reads its arguments and hands over; heavy imports happen inside.

Exit codes: 0 done, 1 the run failed, 2 wrong usage or a wrong recipe, 128 + n stopped by signal n after a checkpoint.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from launch import checkpoints, cluster_verbs, job_verbs, machine_verbs
from launch.errors import exit_code, one_sentence

HELP = """Train multimodal mixture-of-experts models on records with missing modalities and irregular times.

Pack data once, look at it, train a recipe, evaluate what came out:

\b
    python -m launch pack digits --out data/digits
    python -m launch inspect data/digits
    python -m launch train digits
    python -m launch evaluate runs/NAME --drop image

Tables and log lines go to stderr. The last line on stdout is one JSON object, for scripts; `inspect` prints
its tables there, and with --json the object.
"""

app = typer.Typer(
    help=HELP, no_args_is_help=True, rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False
)

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[SECTION.KEY=VALUE]...", help="Changes to the recipe, e.g. model.moe.experts=64."),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show stack traces, and what Ray and other libraries log.")]


@app.command()
def pack(
    source: Annotated[str, typer.Argument(help="Where records come from: digits, physionet2012, tables, ...")],
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
    workers: Annotated[int, typer.Option(min=0, help="Processes that read and encode; 0 = one per CPU.")] = 0,
    shard_mb: Annotated[int, typer.Option(min=1, help="Size at which a shard is closed, in MiB.")] = 64,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a data set that is there.")] = False,
    debug: Debug = False,
) -> None:
    """Turn original data into shards: WebDataset tars with a manifest. Done once per data set.

    \b
    python -m launch pack digits --out data/digits
    python -m launch pack physionet2012 --source DIR --out data/physionet2012 --splits DIR/raindrop_splits.csv
    python -m launch pack tables --source mapping.yaml --out data/mine
    python -m launch pack synthetic --out data/made_up -o records=2000 -o modalities=series:20,image:4
    """
    from launch.data import pack_source

    pack_source(source, folder, out, splits, option or [], workers, shard_mb, overwrite)


@app.command()
def inspect(
    url: Annotated[str, typer.Argument(help="Folder or URL of a packed data set.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
    html: Annotated[
        str | None, typer.Option(metavar="FILE", help="Also write a page with pictures; it shows no record.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Show what a packed data set holds: presence, sampling, lengths, labels, values, and what looks like leakage.

    \b
    python -m launch inspect data/digits --html digits.html
    """
    from launch.data import inspect_data

    inspect_data(url, as_json, html)


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="Name of a shipped recipe (launch/recipes), or a YAML file.")],
    overrides: Overrides = None,
    debug: Debug = False,
) -> None:
    """Train on Ray: the one at cluster.address or RAY_ADDRESS, else a local one for this command only.

    The same `name=` continues a run where its newest checkpoint ended. Ctrl-C or SIGTERM writes a checkpoint first.

    \b
    python -m launch train digits
    python -m launch train icu_physionet2012 data.url=s3://bucket/icu training.epochs=5
    python -m launch train digits name=wide model.dim=128 parallel.workers=4 parallel.expert_parallel=4
    RAY_AUTH_MODE=token ray job submit --working-dir . -- \\
        python -m launch train digits data.url=$PWD/data/digits training.storage=$PWD/runs
    """
    from launch.run import train_recipe

    train_recipe(recipe, overrides or [], debug)


@app.command()
def finetune(
    recipe: Annotated[str, typer.Argument(help="Name of a shipped recipe with job: mope, or a YAML file.")],
    overrides: Overrides = None,
    debug: Debug = False,
) -> None:
    """Prompt a frozen backbone with a mixture of prompt experts, on Ray like train.

    The backbone is a run of train (mope.host), or two encoders (mope.image, mope.text). What is compared with is a
    value of mope.method: head, late_fusion, static, mapped, dynamic, mope_no_static, mope, lora, full.

    \b
    python -m launch finetune mope_easy_vqa
    python -m launch finetune mope_icu mope.host=runs/icu mope.method=static
    """
    from launch.run import finetune_recipe

    finetune_recipe(recipe, overrides or [], debug)


@app.command()
def evaluate(
    checkpoint: Annotated[str, typer.Argument(help="Folder or URL of a checkpoint, or of a run.")],
    overrides: Overrides = None,
    data: Annotated[
        str | None, typer.Option(help="Other data of the same schema; default: what it was trained on.")
    ] = None,
    part: Annotated[str, typer.Option(help="Part of the split that is evaluated.")] = "test",
    drop: Annotated[
        list[str] | None, typer.Option(metavar="MODALITY", help="Hide a modality, as if never recorded; repeatable.")
    ] = None,
    missing_curve: Annotated[
        bool, typer.Option("--missing-curve", help="Also without each modality, and with 0 to 70 % of them missing.")
    ] = False,
    temperature: Annotated[
        bool, typer.Option("--temperature", help="Fit temperatures on the validation part; see predict --calibrated.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Measure a checkpoint, also without some of its modalities.

    One process by default; with parallel.workers=N it runs on Ray like training, with the same result.

    \b
    python -m launch evaluate runs/NAME
    python -m launch evaluate runs/NAME --drop image --drop text
    python -m launch evaluate runs/NAME --missing-curve --temperature
    """
    from launch.run import evaluate_checkpoint

    wishes = {"missing_curve": missing_curve, "temperature": temperature}
    evaluate_checkpoint(checkpoint, data, part, drop or [], overrides or [], debug, **wishes)


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
        bool, typer.Option("--explain", help="Add what each prediction rests on: shares of modalities and experts.")
    ] = False,
    calibrated: Annotated[
        bool, typer.Option("--calibrated", help="Divide logits by the temperatures of `evaluate --temperature`.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
    debug: Debug = False,
) -> None:
    """Predict every record of a data set and write one Parquet file; it appears whole or not at all.

    One process by default, over Ray with parallel.workers=N; the file is the same.

    \b
    python -m launch predict runs/NAME --data data/new --out predictions.parquet
    python -m launch predict runs/NAME --part test --out s3://bucket/test.parquet --explain parallel.workers=8
    """
    from launch.predict import predict_records

    predict_records(checkpoint, data, out, part, explain, calibrated, overrides or [], overwrite, debug)


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
    from launch.compare import compare_runs

    compare_runs(runs or [], experiment, metric, html, uri)


@app.command()
def sweep(
    recipe: Annotated[str, typer.Argument(help="Name of a shipped recipe (launch/recipes), or a YAML file.")],
    space: Annotated[str, typer.Argument(help="Name of a shipped space (launch/spaces), or a YAML file.")],
    overrides: Overrides = None,
    debug: Debug = False,
) -> None:
    """Run a recipe over a space of settings and seeds, as many trials at once as there are resources.

    The same command again continues a sweep that was killed. Every trial is a child of one MLflow run.

    \b
    python -m launch sweep digits experts parallel.workers=1 parallel.expert_parallel=1
    python -m launch sweep icu_physionet2012 my_space.yaml name=mine training.epochs=4
    """
    from launch.sweep import sweep_recipe

    sweep_recipe(recipe, space, overrides or [], debug)


@app.command()
def plan(
    recipe: Annotated[str, typer.Argument(help="Name of a shipped recipe (launch/recipes), or a YAML file.")],
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
    from launch.plan import plan_recipe

    plan_recipe(recipe, overrides or [], gpus, gpu, schema, presence)


app.add_typer(job_verbs.app)
app.add_typer(machine_verbs.app)
app.add_typer(cluster_verbs.app, name="cluster")
app.add_typer(checkpoints.app, name="checkpoint")


def main() -> None:
    """Run a verb and leave with its exit code; errors become one sentence unless --debug is given."""
    debug = "--debug" in sys.argv
    from trainer.worker.console import show_logs

    show_logs(debug=debug)
    try:
        app()
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            raise
        prefix = "" if exit_code(error) > 128 else "error: "  # stopped on request
        print(f"{prefix}{one_sentence(error)}", file=sys.stderr)
        sys.exit(exit_code(error))
