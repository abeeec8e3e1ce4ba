"""Runs made from Python: a recipe, what differs from it, and a process that trains; an ensemble; a baseline."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from data_shards.yaml_file import to_yaml
from launch.api.child import run_apart
from launch.api.data import Data
from launch.api.run import Run
from launch.cluster.environment import settle_paths
from launch.errors import UsageError
from launch.runs.checks import check
from launch.runs.train import refuse_stopped
from trainer.config.recipe import load_recipe, recipe_of
from trainer.config.run_config import RunConfig
from trainer.models.job_type import job_type

# As for `evaluate` and `predict`: one process, unless the call asks for more.
ONE = ["parallel.workers=1", "parallel.expert_parallel=1"]


def fit(data: Any, recipe: Any, progress: bool, debug: bool, overrides: Mapping[str, Any]) -> Run:
    """See `fleximoe.fit`."""
    if data is None and not isinstance(overrides.get("data", {}), Mapping):
        data, overrides = overrides["data"], {key: own for key, own in overrides.items() if key != "data"}
    config = settle_paths(recipe_for(data, recipe, overrides))
    check(job_type(config.job).resolve(config))  # what is refused needs no process
    result = run_apart(config, progress, debug)
    refuse_stopped(config, result)
    return Run(config.run_dir)


def ensemble(runs: Sequence[Any], blend: Any, overrides: Mapping[str, Any]) -> Run:
    """See `fleximoe.ensemble`."""
    from launch.runs.ensemble import make_ensemble

    if isinstance(runs, str | Run):
        raise UsageError("ensemble takes a list of runs: ensemble([first, second])")
    changes = [f"{key}={text}" for key, text in flat(overrides)]
    second = None if blend is None else str(blend)
    return Run(make_ensemble([str(run) for run in runs], second, changes)["run_dir"])


def baseline(data: Any, family: str, split: str, overrides: Mapping[str, Any]) -> Run:
    """See `fleximoe.baseline`."""
    from launch.runs.baseline import make_baselines
    from trainer.baseline.learners.families import FAMILIES

    if family not in FAMILIES:
        raise UsageError(f"there is no family {family}; there are {' and '.join(FAMILIES)}")
    url = place_of(data)
    if url is None:
        raise UsageError("nothing to learn from: give the packed data, what pack() returns or its folder")
    (result,) = make_baselines(url, split, family, [f"{key}={text}" for key, text in flat(overrides)])
    return Run(result["run_dir"])


def recipe_for(data: Any, recipe: Any, overrides: Mapping[str, Any]) -> RunConfig:
    """The run that a call means. Raises RecipeError, UsageError."""
    changes = [f"{key}={text}" for key, text in flat(overrides)]
    url = place_of(data)
    if url is not None:
        changes.insert(0, f"data.url={_text(url)}")
    changes = [*ONE, *changes]
    if isinstance(recipe, str | PurePath):
        return load_recipe(str(recipe), changes)
    if recipe is not None and not isinstance(recipe, Mapping):
        raise UsageError(f"recipe is a {type(recipe).__name__}; give the name of a shipped one, a YAML file, or a dict")
    tree = json.loads(json.dumps(dict(recipe or {}), default=_plain))
    if url is None and "data" not in tree and "data" not in overrides:
        raise UsageError("nothing to learn from: give the packed data, what pack() returns or its folder")
    tree.setdefault("data", {"url": url} if url else {})
    return recipe_of(tree, changes, _stem(url), "recipe")


def place_of(data: Any) -> str | None:
    """The URL of packed data. Raises UsageError: they are not packed."""
    if data is None or isinstance(data, str):
        return data
    if isinstance(data, Data | PurePath):
        return str(data)
    raise UsageError(f"a {type(data).__name__} is not packed data: pack it first, data = fleximoe.pack(records=...)")


def flat(overrides: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(section.key, value as YAML) of nested sections; a key may be dotted itself."""
    for key, value in overrides.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", _text(value)


def _text(value: Any) -> str:
    return to_yaml(json.loads(json.dumps(value, default=_plain)), one_line=True).strip().removesuffix("\n...")


def _plain(value: Any) -> Any:
    """What JSON has no word for: paths, numbers of numpy. Raises UsageError."""
    if isinstance(value, PurePath | Data):
        return str(value)
    if hasattr(value, "tolist") and not isinstance(value, Sequence):
        return value.tolist()
    raise UsageError(f"{value!r} is no value of a recipe: numbers, text, true or false, lists and sections are")


def _stem(url: str | None) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", PurePath(url or "run").name).strip("-._") or "run"
