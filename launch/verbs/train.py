"""The verbs `train`, `finetune` and `evaluate`."""

from __future__ import annotations

from typing import Annotated

import typer

from launch.verbs.options import Debug, Overrides, Recipe

app = typer.Typer(rich_markup_mode=None)


@app.command()
def train(
    recipe: Recipe,
    overrides: Overrides = None,
    under: Annotated[str | None, typer.Option(hidden=True)] = None,
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
    from launch.runs.train import train_recipe

    train_recipe(recipe, overrides or [], debug, under)


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
    from launch.runs.train import finetune_recipe

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
        bool,
        typer.Option(
            "--missing-curve", help="Also without each modality, with 0 to 70 % of them missing, and with time hidden."
        ),
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
    from launch.runs.train import evaluate_run

    wishes = {"missing_curve": missing_curve, "temperature": temperature}
    evaluate_run(checkpoint, data, part, drop or [], overrides or [], debug, **wishes)
