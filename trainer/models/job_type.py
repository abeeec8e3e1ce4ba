"""What a type of job gives; everything else (data, engine, loop, checkpoints, tracking, evaluation) is the same code.

Files that define a type import nothing heavy at the top: a recipe is read, checked and submitted without torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from trainer.config.job_types import FUSEMOE, find_job_type
from trainer.config.run_config import RunConfig
from trainer.config.section import Section

if TYPE_CHECKING:
    from torch import nn

    from data_shards import Batch, DatasetSchema, TaskSpec, TokenWeights
    from data_shards.records.statistics import SplitStatistics
    from parallel import Dispatcher
    from trainer.models.flops import Counter
    from trainer.models.output import Fused
    from trainer.tracking.tracker import Tracker


class PartObserver(Protocol):
    """Looks at every batch of a part, and says at the end what there was to see."""

    def add(self, batch: Batch, output: Fused) -> None:
        """One batch of this rank, without gradients."""

    def report(self, tracker: Tracker) -> None:
        """Collective; only the first rank's tracker keeps anything."""


@dataclass(frozen=True)
class RecordCost:
    """What a record of average length asks of the model in one step, for `plan`.

    Attributes:
        flops: forward and backward. activations: elements that are kept for the backward pass.
        width: of the products that most of the arithmetic is in; narrow ones do not reach a device's peak.
    """

    flops: float
    activations: float
    width: int


class JobType(ABC):
    """A type of job: its section of the recipe, its model, and the few places where types differ.

    Attributes:
        name: value of `job` in a recipe, and the name of its section, where it has one.
        section: that section; None for types whose sections every recipe has (`model`, `mope`).
        verb: the command that runs it.
        recomputes: whether the model knows `training.activation_checkpointing`.
        spreads_experts: whether its experts are trained and spread over ranks, so that `plan` compares layouts.
        no_decay: parts of names of parameters whose size means something by itself, beside biases and norms.
    """

    name: ClassVar[str]
    section: ClassVar[type[Section] | None] = None
    verb: ClassVar[Literal["train", "finetune"]] = "train"
    recomputes: ClassVar[bool] = False
    spreads_experts: ClassVar[bool] = False
    no_decay: ClassVar[tuple[str, ...]] = ("bias",)

    def resolve(self, config: RunConfig) -> RunConfig:
        """The recipe with what a backbone decides. Raises ValueError: a setting that this type lacks."""
        if config.training.activation_checkpointing and not self.recomputes:
            raise ValueError(
                f"training.activation_checkpointing works for job={FUSEMOE}, not for job={self.name}: set it to "
                "false, and raise training.accumulation if memory is short"
            )
        return config

    def sized(
        self, config: RunConfig, schema: DatasetSchema, statistics: SplitStatistics, parts: Mapping[str, int]
    ) -> RunConfig:
        """The recipe of a new run with what its training part decides; the checkpoint keeps it.

        `parts`: samples of each part of the split.
        """
        return config

    def check(self, config: RunConfig, schema: DatasetSchema) -> None:  # noqa: B027
        """Raise ValueError for what can be refused before workers start; loads no weights."""

    def schema(self, config: RunConfig, schema: DatasetSchema) -> DatasetSchema:
        """The data's schema with modalities and channels in the order that the model has; most take the data's own."""
        return schema

    def tasks(self, config: RunConfig, schema: DatasetSchema) -> list[TaskSpec]:
        """What the model's heads learn. Raises ValueError: an unknown task, or none."""
        found = [schema.task(name) for name in config.training.tasks or schema.task_names]
        if not found:
            raise ValueError(f"data set {schema.name} declares no task, so there is nothing to learn")
        return found

    @abstractmethod
    def build(
        self,
        config: RunConfig,
        schema: DatasetSchema,
        tasks: list[str],
        statistics: SplitStatistics,
        dispatcher: Dispatcher,
        weights: bool = True,
    ) -> nn.Module:
        """The model of a resolved recipe, with initial weights: takes a `Batch`, gives a `Fused`.

        Without `weights`, a backbone has the shapes that its configuration says, and its weights are not read.
        Raises ValueError where recipe and data do not fit.
        """

    def look_first(self, model: Any, batches: Iterable[Batch]) -> list[nn.Parameter]:
        """Let a model with initial weights set what it sets by training records; returns those parameters.

        `batches`: of training records in the order of the first epoch, on the model's device; no more are read than
        asked for. Empty on all ranks but the first, whose values all get.
        """
        return []

    def learning_rate(self, config: RunConfig, name: str) -> float | None:
        """Peak learning rate of the parameter of this name; None = `optim.lr`."""
        return None

    @abstractmethod
    def counter(self, config: RunConfig, schema: DatasetSchema, tasks: list[TaskSpec], model: Any) -> Counter:
        """Counts the arithmetic of the model's batches."""

    @abstractmethod
    def cost(self, config: RunConfig, schema: DatasetSchema, statistics: SplitStatistics, model: Any) -> RecordCost:
        """Of one record, by a model that may have shapes only; for types that do not spread experts."""

    def token_weights(self, config: RunConfig, schema: DatasetSchema, model: Any) -> TokenWeights | None:
        """What a record asks of the model, by modality, so that ranks are given equal work; None = each the same."""
        return None

    def routed_tokens(self, config: RunConfig, schema: DatasetSchema, statistics: SplitStatistics, model: Any) -> float:
        """Tokens of a record of average length that reach a layer's router; 0 where nothing is routed."""
        return 0.0

    def needed_modalities(self, model: Any) -> list[str]:
        """Modalities that every record must have."""
        return []

    def prepare(self, config: RunConfig, model: Any, batches: Iterable[Batch], records: int) -> bool:
        """Before the first step: look at the training part's `batches` if the recipe asks for it. Collective.

        Returns whether it did.
        """
        return False

    def observer(self, tasks: list[TaskSpec], rank: int) -> PartObserver | None:
        """Looks at the test part after training."""
        return None


def job_type(name: str) -> JobType:
    """The type of this name. Raises ValueError: there is none."""
    found: JobType = find_job_type(name)
    return found


def exempt_from_decay(no_decay: tuple[str, ...], name: str, parameter: nn.Parameter) -> bool:
    """Biases, norms, and what a type names: parameters that weight decay would pull from what they mean."""
    return parameter.ndim < 2 or "norm" in name or any(part in name for part in no_decay)
