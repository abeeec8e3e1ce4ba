"""What a sweep is: recipe, space, trials, folder."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.cluster.environment import settle_paths
from launch.errors import UsageError
from launch.sweep.space import SpaceConfig, Trial, load_space, trials
from trainer.config.errors import RecipeError
from trainer.config.recipe import apply_overrides, load_recipe
from trainer.config.run_config import RunConfig, check_parallel
from trainer.metrics.main_metric import choosing_mode
from trainer.run_folder import SWEEP, read_json, write_json
from trainer.training.early_stopping import KEY

logger = logging.getLogger("fleximoe")


@dataclass(frozen=True)
class Sweep:
    """A space around a recipe, and the runs that it is made of.

    Attributes:
        config: of the whole; its run_dir is the sweep's folder. runs: the run of each trial.
    """

    config: RunConfig
    space: SpaceConfig
    metric: str
    mode: str
    trials: list[Trial]
    runs: list[RunConfig]


def plan_sweep(recipe: str, space_name: str, overrides: Sequence[str]) -> Sweep:
    """Everything about a sweep before anything is started; mistakes in any trial's recipe are found here."""
    space = load_space(space_name)
    named = any(word.startswith("name=") for word in overrides)
    default = f"name={Path(recipe).stem}-{Path(space_name).stem}"
    config = settle_paths(load_recipe(recipe, [*([] if named else [default]), *overrides]))
    # One metric compares all trials, whatever a preset would choose for each.
    config = config.model_copy(update={"unnamed": [key for key in config.unnamed if key != f"{KEY}metric"]})
    stopping = config.training.early_stopping
    metric = space.metric or stopping.metric
    # The recipe's mode is of the recipe's metric.
    said = space.mode or (stopping.mode if metric == stopping.metric else None)
    try:
        mode = choosing_mode(metric, said, "" if space.metric or space.mode else KEY)
    except ValueError as error:
        raise RecipeError(str(error)) from None
    found = trials(space, config)
    runs = []
    for trial in found:
        name = f"name={config.name}-{trial.number:03d}"
        run = apply_overrides(config, [*trial.overrides, name])
        run.training.storage = config.run_dir
        run.tracking.json_lines = True  # how a trial is followed
        run.tracking.spool = None
        run = settle_paths(run)
        check_parallel(run)
        runs.append(run)
    return Sweep(config, space, metric, mode, found, runs)


def claim(sweep: Sweep) -> None:
    """Write down what this sweep is, or see that the folder holds this very sweep."""
    recipe = sweep.config.model_dump(mode="json", exclude={"tracking", "cluster", "evaluation"})
    words = [list(trial.overrides) for trial in sweep.trials]
    mine = {"metric": sweep.metric, "mode": sweep.mode, "trials": words, "recipe": recipe}
    known = read_json(sweep.config.run_dir, SWEEP)
    if known is None:
        write_json(sweep.config.run_dir, SWEEP, mine)
    elif known != mine:
        raise UsageError(
            f"{sweep.config.run_dir} holds a sweep of another recipe or space: give this one another name="
        )
    else:
        logger.info("continuing sweep %s", sweep.config.name)
