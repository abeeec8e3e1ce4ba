"""What a sweep tries: a space as a YAML file, and the trials that it stands for, in a fixed order.

    metric: val/auroc            # default: training.early_stopping.metric of the recipe; mode: by the metric
    seeds: 3                     # every variant with this many seeds
    scheduler: asha              # or none; default: asha for one seed, none for several
    fixed: {training.epochs: 4}
    grid: {model.moe.gate: [softmax, laplace, gaussian]}
    random: {optim.lr: {low: 1.0e-4, high: 1.0e-2, log: true}}
    samples: 8                   # random draws for each point of the grid

The trials are a function of the file alone, so a sweep that is started again knows which of them it has done.
"""

from __future__ import annotations

import difflib
import itertools
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field, ValidationError, model_validator

from data_shards.errors import YamlError
from data_shards.paths import absolute_path
from data_shards.yaml_file import read_yaml, to_yaml
from launch.versions import ROOT
from trainer.config.errors import RecipeError, unknown_key, validation_sentence
from trainer.config.run_config import RunConfig
from trainer.config.section import Section

SPACES = ROOT / "launch" / "spaces"


class Range(Section):
    """Random values between two numbers."""

    low: float = Field(description="smallest value")
    high: float = Field(description="largest value")
    log: bool = Field(False, description="equal chances per factor instead of per difference")
    integer: bool = Field(False, description="whole numbers only")

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(f"low={self.low} must be less than high={self.high}, and above 0 with log")
        return self

    def draw(self, rng: np.random.Generator) -> float | int:
        """One value."""
        if self.log:
            value = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = rng.uniform(self.low, self.high)
        return round(value) if self.integer else float(f"{value:.6g}")


class SpaceConfig(Section):
    """A space of runs around a recipe."""

    metric: str | None = Field(None, description="validation metric that ranks trials; null = the recipe's")
    mode: Literal["min", "max"] | None = Field(
        None, description="whether less or more is better; null = as the metric has it"
    )
    seeds: int = Field(1, ge=1, description="seeds of every variant: of weights, dropout and data order")
    scheduler: Literal["asha", "none"] | None = Field(
        None,
        description="asha: stop trials early that are behind others; none: let all end; null = asha, and none with "
        "several seeds, as a mean over the seeds that survived would flatter",
    )
    grace: int = Field(1, ge=1, description="evaluations that every trial gets (asha)")
    reduction: int = Field(3, ge=2, description="one of so many trials goes on to the next rung (asha)")
    fixed: dict[str, Any] = Field(default_factory=dict, description="recipe keys that are set in every trial")
    grid: dict[str, list[Any]] = Field(default_factory=dict, description="recipe keys and all values to combine")
    random: dict[str, Range] = Field(default_factory=dict, description="recipe keys and the range to draw from")
    samples: int = Field(1, ge=1, description="random draws for each point of the grid")
    seed: int = Field(0, ge=0, description="seed of the random draws")

    @model_validator(mode="after")
    def _not_empty(self) -> SpaceConfig:
        if any(not values for values in self.grid.values()):
            raise ValueError("a key of grid has no value")
        twice = (
            set(self.grid) & set(self.random) | set(self.grid) & set(self.fixed) | set(self.random) & set(self.fixed)
        )
        if twice:
            raise ValueError(f"{', '.join(sorted(twice))}: give a key in one of fixed, grid and random only")
        if self.samples > 1 and not self.random:
            raise ValueError("samples draws nothing without random")
        return self

    @property
    def stops_early(self) -> bool:
        """Whether trials may be stopped before their end."""
        return (self.scheduler or ("asha" if self.seeds == 1 else "none")) == "asha"


@dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
        number: its place among all trials. variant: what is tried, without the seed. overrides: `key=value` words.
    """

    number: int
    variant: str
    seed: int
    overrides: tuple[str, ...]


def known_spaces() -> list[str]:
    """Names of the shipped spaces."""
    return sorted(path.stem for path in SPACES.glob("*.yaml"))


def load_space(space: str) -> SpaceConfig:
    """The space of this name or YAML path. Raises RecipeError."""
    is_path = space.endswith((".yaml", ".yml")) or "/" in space
    path = absolute_path(space) if is_path else SPACES / f"{space}.yaml"
    if not path.is_file():
        near = difflib.get_close_matches(space, known_spaces(), n=1)
        hint = f", did you mean {near[0]}?" if near else ""
        raise RecipeError(f"there is no space {space!r}{hint}; shipped spaces: {', '.join(known_spaces())}")
    try:
        tree = read_yaml(path, "space")
        for key in tree if isinstance(tree, dict) else ():
            if key not in SpaceConfig.model_fields:
                raise RecipeError(f"space {path.name}: {unknown_key(str(key), SpaceConfig)}")
        return SpaceConfig.model_validate(tree)
    except YamlError as error:
        raise RecipeError(str(error)) from None
    except ValidationError as error:
        raise RecipeError(f"space {path.name}: {validation_sentence(error, SpaceConfig)}") from None


def trials(space: SpaceConfig, config: RunConfig) -> list[Trial]:
    """All trials, variant by variant; seeds count up from the recipe's own."""
    rng = np.random.default_rng(space.seed)
    found: list[Trial] = []
    for point in itertools.product(*space.grid.values()):
        for _ in range(space.samples):
            values = dict(zip(space.grid, point, strict=True))
            values |= {key: entry.draw(rng) for key, entry in space.random.items()}
            label = ", ".join(f"{key.rsplit('.', 1)[-1]}={value}" for key, value in values.items()) or "as it is"
            for step in range(space.seeds):
                seed = config.training.seed + step
                seeds = [f"training.seed={seed}", f"data.seed={config.data.seed + step}"]
                words = [f"{key}={_word(value)}" for key, value in {**space.fixed, **values}.items()]
                found.append(Trial(len(found), label, seed, (*words, *(seeds if space.seeds > 1 else []))))
    return found


def _word(value: Any) -> str:
    """A value as an override takes it."""
    return to_yaml(value, one_line=True).strip().removesuffix("...").strip()
