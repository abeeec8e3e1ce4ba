"""A whole run as one typed value, read from a YAML recipe and `section.key=value` overrides.

Recipes are the files of `launch/recipes`; both `python -m launch train` and `torchrun -m trainer` read them here.
A mistake is reported as a `RecipeError`: one sentence that names the key, the value and what would be right.
"""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from data_shards.config import DataConfig
from parallel.config import ParallelConfig
from parallel.mesh import MeshSpec
from trainer.config.errors import RecipeError
from trainer.config.mope import MopeConfig
from trainer.config.sections import (
    ClusterConfig,
    EvaluationConfig,
    ModelConfig,
    OptimConfig,
    Section,
    TrackingConfig,
    TrainingConfig,
)


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
