"""The types `mope` (prompts on a frozen backbone, arXiv 2403.10568) and `tower` (an encoder of one modality)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from trainer.config.job_types import MOPE, TOWER
from trainer.config.mope import MopeConfig
from trainer.config.run_config import RunConfig
from trainer.models.fusemoe.job_type import FuseMoEJob
from trainer.models.job_type import JobType, PartObserver, RecordCost

if TYPE_CHECKING:
    from torch import nn

    from data_shards import Batch, DatasetSchema, TaskSpec, TokenWeights
    from data_shards.records.statistics import SplitStatistics
    from parallel import Dispatcher
    from trainer.models.flops import Counter

PROMPTS = ("static_", "experts_KLD", "experts_MKLD", "gate", "identity", "null", "absent", "missing")


class TowerJob(JobType):
    """Section `mope`: one tower of it, with a head."""

    name = TOWER
    no_decay = (*FuseMoEJob.no_decay, *PROMPTS)

    def build(
        self,
        config: RunConfig,
        schema: DatasetSchema,
        tasks: list[str],
        statistics: SplitStatistics,
        dispatcher: Dispatcher,
        weights: bool = True,
    ) -> nn.Module:
        from trainer.models.mope.towers.model import TowerModel

        return TowerModel(schema, tasks, statistics, self.settings(config), config.training.seed, True, weights)

    def settings(self, config: RunConfig) -> MopeConfig:
        """The section. Raises ValueError: it is not there."""
        if config.mope is None:
            raise ValueError(f"job={self.name} needs a section mope: which tower is trained")
        return config.mope

    def counter(self, config: RunConfig, schema: DatasetSchema, tasks: list[TaskSpec], model: Any) -> Counter:
        from trainer.models.mope.towers.flops import RecordFlops, record_flops

        return RecordFlops(record_flops(model))

    def cost(self, config: RunConfig, schema: DatasetSchema, statistics: SplitStatistics, model: Any) -> RecordCost:
        from trainer.models.mope.towers.activations import kept_elements
        from trainer.models.mope.towers.flops import record_flops

        width = max(site.width for what in model.towers for site in model.tower(what).sites)
        return RecordCost(record_flops(model), kept_elements(model), width)

    def needed_modalities(self, model: Any) -> list[str]:
        found: list[str] = model.needed_modalities()
        return found


class MopeJob(TowerJob):
    """Section `mope`: prompts on a FuseMoE host (`mope.host`), or on towers (`mope.image`, `mope.text`)."""

    name = MOPE
    verb = "finetune"

    def settings(self, config: RunConfig) -> MopeConfig:
        if config.mope is None:
            raise ValueError("job=mope needs a section mope: what is prompted, and how")
        return config.mope

    def resolve(self, config: RunConfig) -> RunConfig:
        """A FuseMoE host's architecture takes the place of `model`. Raises BackboneError: no host, or no FuseMoE."""
        mope, config = self.settings(config), super().resolve(config)
        if mope.host is None:
            return config
        from trainer.models.mope.host.backbone import host_architecture

        model = host_architecture(mope.host, config.model)
        return config.model_copy(update={"model": model})

    def schema(self, config: RunConfig, schema: DatasetSchema) -> DatasetSchema:
        """In the order of the host, whose parameters know modalities by their numbers."""
        mope = self.settings(config)
        if mope.host is None:
            return schema
        from trainer.models.mope.host.backbone import in_order_of_host

        return in_order_of_host(mope.host, schema)

    def tasks(self, config: RunConfig, schema: DatasetSchema) -> list[TaskSpec]:
        """None where pixels are marked: the masks are a modality."""
        return [] if self.settings(config).mask is not None else super().tasks(config, schema)

    def build(
        self,
        config: RunConfig,
        schema: DatasetSchema,
        tasks: list[str],
        statistics: SplitStatistics,
        dispatcher: Dispatcher,
        weights: bool = True,
    ) -> nn.Module:
        mope, seed = self.settings(config), config.training.seed
        if mope.host is not None:
            from trainer.models.mope.host.backbone import load_host
            from trainer.models.mope.host.model import PromptedFuseMoE

            host = load_host(mope.host, schema, weights)
            return PromptedFuseMoE(schema, tasks, statistics, host, config.model, mope, dispatcher, seed)
        if mope.mask is not None:
            from trainer.models.mope.towers.segmentation import PromptedSegmenter

            return PromptedSegmenter(schema, statistics, mope, seed, weights)
        from trainer.models.mope.towers.model import TowerModel

        return TowerModel(schema, tasks, statistics, mope, seed, False, weights)

    def counter(self, config: RunConfig, schema: DatasetSchema, tasks: list[TaskSpec], model: Any) -> Counter:
        if self.settings(config).host is None:
            return super().counter(config, schema, tasks, model)
        from trainer.models.mope.host.flops import host_counter

        return host_counter(model, schema, {task.name: task.dim for task in tasks})

    def cost(self, config: RunConfig, schema: DatasetSchema, statistics: SplitStatistics, model: Any) -> RecordCost:
        if self.settings(config).host is None:
            return super().cost(config, schema, statistics, model)
        from trainer.models.mope.host.activations import kept_elements
        from trainer.models.mope.host.flops import expected_flops

        flops = expected_flops(model, schema, {task.name: task.dim for task in self.tasks(config, schema)}, statistics)
        return RecordCost(flops, kept_elements(model, schema, statistics), model.architecture.dim)

    def token_weights(self, config: RunConfig, schema: DatasetSchema, model: Any) -> TokenWeights | None:
        """Of a host as of a FuseMoE model; towers take the same of every record."""
        if self.settings(config).host is None:
            return None
        from trainer.models.fusemoe.token_weights import token_weights
        from trainer.models.mope.host.flops import host_counter

        return token_weights(host_counter(model, schema, {}))

    def prepare(self, config: RunConfig, model: Any, batches: Iterable[Batch], records: int) -> bool:
        """What frozen towers say about the training records, once, where the recipe asks for it."""
        mope = self.settings(config)
        if not mope.cache or mope.host is not None:
            return False
        model.prepare(batches, records)
        return True

    def observer(self, tasks: list[TaskSpec], rank: int) -> PartObserver | None:
        # Imported late: a worker that starts has no time for a plotting library.
        from trainer.models.mope.prompt_experts import PromptExperts

        return PromptExperts(tasks, rank)
