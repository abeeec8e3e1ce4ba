"""A whole run as one typed value, and the degrees that must fit each other."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import Field, create_model, field_validator

from data_shards.config import DataConfig
from parallel.config import ParallelConfig
from parallel.mesh import MeshSpec
from trainer.config.errors import RecipeError
from trainer.config.job_types import EVALUATE, FUSEMOE, find_job_type
from trainer.config.mope import MopeConfig
from trainer.config.preset import Preset, recorded
from trainer.config.section import Section
from trainer.config.sections import (
    ClusterConfig,
    EvaluationConfig,
    ModelConfig,
    OptimConfig,
    TrackingConfig,
    TrainingConfig,
)


class RunConfig(Section):
    """Everything that defines a run. Equal values (and equal data) give equal runs."""

    job: str = Field(
        FUSEMOE,
        description="what is done: fusemoe (a FuseMoE model is trained), mope (prompts on a frozen backbone are), "
        "tower (an encoder of one modality is), a type that an installed package adds; or evaluate (a model of these "
        "is measured)",
    )
    name: str = Field(
        description="the run's folder; the same name continues the run; default: the recipe and the time of day",
    )
    preset: Preset = Field(
        "none",
        description="who chooses the keys of docs/defaults.md that a recipe does not name: none = the "
        "defaults of this page; "
        "good = rules that look at the training part; fast = the same with a smaller model and a third of the steps; "
        "best = with a larger model and twice the steps. Of job=fusemoe",
    )
    unnamed: list[str] = Field(
        default_factory=list,
        description="not to be given: keys that the recipe leaves to its preset, until the training part is known",
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

    @field_validator("job")
    @classmethod
    def _job_is_known(cls, job: str) -> str:
        if job != EVALUATE:
            find_job_type(job)
        return job

    @staticmethod
    def of(tree: Mapping[str, Any]) -> RunConfig:
        """A run from plain values, with the section of its type of job. Raises pydantic's ValidationError."""
        return run_config_class(tree).model_validate(tree)

    def __reduce__(self) -> tuple[Any, ...]:
        # A class with a section of its own is made anew where it is needed: other processes cannot import it.
        return RunConfig.of, (self.model_dump(mode="json"),)

    @property
    def evaluates(self) -> bool:
        """Whether a checkpoint is evaluated, and nothing is trained."""
        return self.job == EVALUATE

    @property
    def model_job(self) -> str:
        """The type of job that the model belongs to, also where it is only evaluated."""
        return self.evaluation.of if self.evaluates and self.evaluation is not None else self.job

    @property
    def run_dir(self) -> str:
        """Folder or URL of this run."""
        return f"{self.training.storage.rstrip('/')}/{self.name}"


def run_config_class(tree: Mapping[str, Any]) -> type[RunConfig]:
    """`RunConfig`, with one more section where the tree's type of job has one. Raises ValueError: no such type."""
    job = tree.get("job", FUSEMOE)
    if job == EVALUATE:
        job = (tree.get("evaluation") or {}).get("of", FUSEMOE)
    return _with_section(job) if isinstance(job, str) else RunConfig


@cache
def _with_section(job: str) -> type[RunConfig]:
    section = find_job_type(job).section
    if section is None:
        return RunConfig
    field = Field(default_factory=section, description=f"of job={job}")
    own: dict[str, Any] = {job: (section, field)}
    return create_model("RunConfig", __base__=RunConfig, **own)


def with_values(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """The run with values of `section.key`, of which none is left open any more. Raises pydantic's ValidationError."""
    tree = config.model_dump(mode="json")
    for key, value in values.items():
        section = tree
        *path, last = key.split(".")
        for part in path:
            section = section[part]
        section[last] = value
    tree["unnamed"] = [key for key in config.unnamed if key not in values]
    return RunConfig.of(tree)


def as_recorded(config: RunConfig, before: Mapping[str, Any] | None) -> RunConfig:
    """The recipe of a run that goes on: what it leaves open stays as it was chosen, also by earlier versions.

    Args:
        before: the recipe in the run's checkpoint. Without the key its pictures were read as patches, and what its
            version did not choose has the defaults.
    """
    if before is None:
        return config
    values = recorded(before, config.unnamed)
    if config.model.image.network is None:
        values["model.image.network"] = before["model"].get("image", {}).get("network") or "patches"
    return with_values(config, values).model_copy(update={"unnamed": []}) if values or config.unnamed else config


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
