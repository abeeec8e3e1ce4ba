"""A whole run as one typed value, read from a YAML recipe and `section.key=value` overrides.

Recipes are the files of `launch/recipes`; both `python -m launch train` and `torchrun -m trainer` read them here.
A mistake is reported as a `RecipeError`: one sentence that names the key, the value and what would be right.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator

from data_shards.config import DataConfig
from parallel.config import MoEConfig, ParallelConfig
from parallel.mesh import MeshSpec
from trainer.mope_sections import MopeConfig
from trainer.recipe_errors import section_of, unknown_key, validation_sentence
from trainer.sections import (
    CheckpointConfig,
    ClusterConfig,
    EarlyStoppingConfig,
    EvaluationConfig,
    ImageEncoderConfig,
    ModelConfig,
    OptimConfig,
    Section,
    SeriesEncoderConfig,
    TextEncoderConfig,
    TrackingConfig,
    TrainingConfig,
    VectorEncoderConfig,
    WaveformEncoderConfig,
)

__all__ = [
    "CheckpointConfig",
    "ClusterConfig",
    "DataConfig",
    "EarlyStoppingConfig",
    "EvaluationConfig",
    "ImageEncoderConfig",
    "MoEConfig",
    "ModelConfig",
    "MopeConfig",
    "OptimConfig",
    "ParallelConfig",
    "RecipeError",
    "RunConfig",
    "SeriesEncoderConfig",
    "TextEncoderConfig",
    "TrackingConfig",
    "TrainingConfig",
    "VectorEncoderConfig",
    "WaveformEncoderConfig",
    "absolute_paths",
    "apply_overrides",
    "check_parallel",
    "is_local",
    "known_recipes",
    "load_recipe",
]

RECIPES = Path(__file__).resolve().parent.parent / "launch" / "recipes"


class RecipeError(ValueError):
    """A recipe or an override is wrong. The text is one sentence for the user."""


class RunConfig(Section):
    """Everything that defines a run. Equal values (and equal data) give equal runs."""

    job: Literal["fusemoe", "mope", "tower", "evaluate"] = Field(
        "fusemoe",
        description="what is done: a FuseMoE model is trained, prompts on a frozen backbone are, an encoder of one "
        "modality is; or something of these is evaluated",
    )
    name: str = Field(
        description="the run's folder; the same name continues the run; default: the recipe and the time of day",
    )
    data: DataConfig = Field(description="shards, split, order and loading")
    model: ModelConfig = Field(default_factory=ModelConfig, description="architecture")
    mope: MopeConfig | None = Field(None, description="backbone and prompts; of job=mope and job=tower")
    optim: OptimConfig = Field(default_factory=OptimConfig, description="optimiser and schedule")
    training: TrainingConfig = Field(default_factory=TrainingConfig, description="length, portions, tasks, storage")
    parallel: ParallelConfig = Field(default_factory=ParallelConfig, description="workers and expert parallelism")
    tracking: TrackingConfig = Field(default_factory=TrackingConfig, description="metrics, parameters, figures")
    cluster: ClusterConfig = Field(default_factory=ClusterConfig, description="Ray")
    evaluation: EvaluationConfig | None = Field(None, description="checkpoint and part; set by the evaluate command")

    @field_validator("name")
    @classmethod
    def _name_is_a_folder(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise ValueError(f"name={name!r} cannot be a folder: use letters, digits, dots, dashes and underscores")
        return name

    @property
    def model_job(self) -> str:
        """The type of job that the model belongs to, also where it is only evaluated."""
        return self.evaluation.of if self.job == "evaluate" and self.evaluation is not None else self.job

    @property
    def run_dir(self) -> str:
        """Folder or URL of this run."""
        return f"{self.training.storage.rstrip('/')}/{self.name}"


def load_recipe(recipe: str, overrides: Sequence[str] = ()) -> RunConfig:
    """The recipe of this name (or YAML path) with overrides `section.key=value` applied in order.

    Raises RecipeError: unknown recipe (lists the known ones), unknown key (names the nearest one), wrong value
    (names the key, the value and what it takes).
    """
    path = _find(recipe)
    tree = _parse(path.read_text(encoding="utf-8"), f"recipe {path}")
    if not isinstance(tree, dict):
        raise RecipeError(f"recipe {path} must be a mapping of sections, not {type(tree).__name__}")
    tree.setdefault("name", f"{path.stem}-{datetime.now():%Y%m%d-%H%M%S}")
    _refuse_unknown_keys(tree, RunConfig, "", f"recipe {path}")
    return _validated(tree, overrides, f"recipe {path.name}")


def apply_overrides(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """The run with overrides `section.key=value` applied in order. Raises RecipeError."""
    return _validated(config.model_dump(mode="json"), overrides, f"run {config.name}")


def known_recipes() -> list[str]:
    """Names of the shipped recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def is_local(url: str) -> bool:
    """Whether a URL or path is a path of this machine's file system."""
    return "://" not in url or url.startswith(("file://", "local://"))


def check_parallel(config: RunConfig) -> None:
    """Raise RecipeError if numbers of workers, expert parallelism, experts and top_k do not fit each other."""
    parallel, moe = config.parallel, config.model.moe
    try:
        MeshSpec(parallel.workers, parallel.expert_parallel, moe.experts, moe.top_k).validate()
    except ValueError as error:
        raise RecipeError(str(error)) from None
    if (config.cluster.min_workers or 0) > parallel.workers:
        raise RecipeError(
            f"cluster.min_workers={config.cluster.min_workers} is more than parallel.workers={parallel.workers}, the "
            "most there can be: lower the one or raise the other"
        )


def absolute_paths(config: RunConfig, root: Path) -> RunConfig:
    """The same run with every relative local path taken from `root`, as workers run in another folder.

    The MLflow store is filled in as well: MLFLOW_TRACKING_URI (MLflow's own setting) or `mlflow.db` beside a local
    `training.storage`.
    """
    config = config.model_copy(deep=True)
    if config.data.url:
        config.data.url = absolute_url(config.data.url, root)
    for entry in config.data.mixture.values():
        entry.url = absolute_url(entry.url, root)
    config.training.storage = absolute_url(config.training.storage, root)
    if config.evaluation:
        config.evaluation.checkpoint = absolute_url(config.evaluation.checkpoint, root)
    if config.mope is not None:
        _settle_backbones(config.mope, root)
    if config.data.cache_dir:
        config.data.cache_dir = absolute_url(config.data.cache_dir, root)
    storage, tracking = config.training.storage, config.tracking
    if tracking.uri is None:
        beside = Path(storage).parent if is_local(storage) else root
        tracking.uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{beside / 'mlflow.db'}"
    elif tracking.uri.startswith("sqlite:///"):
        tracking.uri = "sqlite:///" + absolute_url(tracking.uri.removeprefix("sqlite:///"), root)
    spool = f"{config.run_dir}/mlflow_spool" if is_local(storage) else f"mlflow_spool/{config.name}"
    tracking.spool = absolute_url(tracking.spool or spool, root)
    return config


def _settle_backbones(mope: MopeConfig, root: Path) -> None:
    """A host is a path; a tower's source is one only if there is such a folder, else it may be a name."""
    if mope.host is not None:
        mope.host = absolute_url(mope.host, root)
    for tower in (mope.image, mope.text):
        if tower is None:
            continue
        if tower.source is not None and "://" not in tower.source and (root / tower.source).is_dir():
            tower.source = absolute_url(tower.source, root)
        if tower.tokenizer not in ("auto", "bytes") and (root / tower.tokenizer).is_dir():
            tower.tokenizer = absolute_url(tower.tokenizer, root)


def _validated(tree: dict[str, Any], overrides: Sequence[str], where: str) -> RunConfig:
    for override in overrides:
        _apply(tree, override)
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(f"{where}: {validation_sentence(error, RunConfig)}") from None


def absolute_url(url: str, root: Path) -> str:
    """A local path taken from `root`; any other URL as it is."""
    if "://" in url or re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", url):  # also `pipe:...`, for storage to refuse by its name
        return url.removeprefix("file://") if url.startswith("file:///") else url
    return str(root / Path(url).expanduser())


def _find(recipe: str) -> Path:
    is_path = recipe.endswith((".yaml", ".yml")) or "/" in recipe
    path = Path(recipe) if is_path else RECIPES / f"{recipe}.yaml"
    if path.is_file():
        return path
    known = ", ".join(known_recipes())
    if is_path:
        raise RecipeError(f"recipe file {recipe} does not exist; shipped recipes: {known}")
    near = difflib.get_close_matches(recipe, known_recipes(), n=1)
    hint = f", did you mean {near[0]}?" if near else ""
    raise RecipeError(f"unknown recipe {recipe!r}{hint}; shipped recipes: {known}")


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from None


def _apply(tree: dict[str, Any], override: str) -> None:
    """Set one `section.key=value` in the tree; the value is YAML, so lists and null work."""
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise RecipeError(f"override {override!r} has no value: write section.key=value, e.g. optim.lr=0.001")
    _refuse_unknown_path(key.split("."), override)
    value = _parse(text, f"value of override {override!r}")
    *sections, last = key.split(".")
    for section in sections:
        child = tree.setdefault(section, {})
        if not isinstance(child, dict):
            raise RecipeError(f"override {override!r}: {section} is {child!r} in the recipe, not a section")
        tree = child
    tree[last] = value


def _refuse_unknown_path(parts: list[str], where: str) -> None:
    model: Any = RunConfig
    for depth, part in enumerate(parts):
        if model is None:
            raise RecipeError(f"override {where!r}: {'.'.join(parts[:depth])} is a value and has no keys of its own")
        if model is dict:
            return
        if part not in model.model_fields:
            raise RecipeError(f"override {where!r}: {unknown_key('.'.join(parts), RunConfig)}")
        model = section_of(model.model_fields[part].annotation)


def _refuse_unknown_keys(tree: dict[Any, Any], model: type[BaseModel], prefix: str, where: str) -> None:
    for key, value in tree.items():
        if key not in model.model_fields:
            raise RecipeError(f"{where}: {unknown_key(f'{prefix}{key}', RunConfig)}")
        section = section_of(model.model_fields[key].annotation)
        if isinstance(section, type) and issubclass(section, BaseModel) and isinstance(value, dict):
            _refuse_unknown_keys(value, section, f"{prefix}{key}.", where)
