"""The verb `baseline`."""

from __future__ import annotations

from typing import Annotated

import typer

from launch.verbs.options import Debug

app = typer.Typer(rich_markup_mode=None)


@app.command()
def baseline(
    data: Annotated[str, typer.Argument(help="Folder or URL of a packed data set.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SECTION.KEY=VALUE]...",
            help="Of a recipe's keys: name, data.*, tracking.*, training.storage, training.tasks, training.seed.",
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Named split of the data set.")] = "default",
    model: Annotated[str, typer.Option(help="trees (boosted), linear, or both.")] = "both",
    debug: Debug = False,
) -> None:
    """What anybody should see before training: boosted trees and a linear model on whole-record statistics.

    A record becomes one row of numbers: of a series its count, mean, extremes, trend, ... by channel, vectors as they
    are, counts of codes, hashed words, thumbnails and edges of pictures, band powers of waveforms, and what is there.
    Settings are chosen on the validation part. Minutes on two cores; each is a run that `compare` takes.

    \b
    python -m launch baseline data/digits
    python -m launch baseline data/physionet2012 --split split1 name=p12
    python -m launch compare runs/NAME runs/p12-trees
    """
    from launch.runs.baseline import learn_baseline

    learn_baseline(data, split, model, overrides or [])
