"""The type `fusemoe`: a FuseMoE model (arXiv 2402.03226) is trained, its experts spread over ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from trainer.config.job_types import FUSEMOE
from trainer.config.run_config import RunConfig
from trainer.models.job_type import JobType, RecordCost

if TYPE_CHECKING:
    from torch import nn

    from data_shards import Batch, DatasetSchema, TaskSpec, TokenWeights
    from data_shards.records.statistics import SplitStatistics
    from parallel import Dispatcher
    from trainer.models.flops import FlopCounter
    from trainer.models.fusemoe.model import FuseMoE


class FuseMoEJob(JobType):
    """Sections `model` and `model.moe`."""

    name = FUSEMOE
    recomputes = True
    spreads_experts = True
    no_decay = (
        *("bias", "w3", "phase", "frequency", "missing.weight", "modality.weight", "bin.weight", "position"),
        *("empty.weight", "table.weight", "scale_in", "scale_out", "shift"),
    )

    def sized(
        self, config: RunConfig, schema: DatasetSchema, statistics: SplitStatistics, parts: Mapping[str, int]
    ) -> RunConfig:
        from trainer.models.encoders.build import sized
        from trainer.models.fusemoe.fitted import Facts, fitted

        if config.unnamed:
            tasks = self.tasks(config, schema)
            config = fitted(config, Facts.of(schema, tasks, statistics, parts), tasks)
        return config.model_copy(update={"model": sized(config.model, schema, statistics)})

    def check(self, config: RunConfig, schema: DatasetSchema) -> None:
        if config.model.moe.router == "disjoint":
            from parallel import expert_pools

            expert_pools(config.model.moe.experts, len(schema.modalities), config.model.moe.top_k)

    def build(
        self,
        config: RunConfig,
        schema: DatasetSchema,
        tasks: list[str],
        statistics: SplitStatistics,
        dispatcher: Dispatcher,
        weights: bool = True,
    ) -> FuseMoE:
        from trainer.models.fusemoe.model import FuseMoE

        balanced = config.training.class_weighting == "balanced"
        return FuseMoE(schema, tasks, statistics, config.model, dispatcher, config.training.seed, balanced, weights)

    def look_first(self, model: FuseMoE, batches: Iterable[Batch]) -> list[nn.Parameter]:
        from trainer.models.fusemoe.first_look import first_look

        return first_look(model, batches)

    def learning_rate(self, config: RunConfig, name: str) -> float | None:
        from trainer.models.encoders.own.pretrained import own_learning_rate

        return own_learning_rate(config.model.encoders, name)

    def counter(self, config: RunConfig, schema: DatasetSchema, tasks: list[TaskSpec], model: Any) -> FlopCounter:
        from trainer.models.encoders.own.pretrained import encoder_costs
        from trainer.models.flops import FlopCounter

        logits, own = {task.name: task.dim for task in tasks}, encoder_costs(model)
        return FlopCounter(schema, logits, config.model, model.attention, own)

    def token_weights(self, config: RunConfig, schema: DatasetSchema, model: Any) -> TokenWeights:
        from trainer.models.fusemoe.token_weights import token_weights

        return token_weights(self.counter(config, schema, [], model))

    def cost(self, config: RunConfig, schema: DatasetSchema, statistics: SplitStatistics, model: Any) -> RecordCost:
        from trainer.models.fusemoe.activations import activation_elements, expected_features

        counter = self.counter(config, schema, self.tasks(config, schema), model)
        features = expected_features(counter, statistics, 1)
        block, outside = activation_elements(counter, features)
        return RecordCost(counter.step_flops(features), block * config.model.layers + outside, config.model.dim)

    def routed_tokens(self, config: RunConfig, schema: DatasetSchema, statistics: SplitStatistics, model: Any) -> float:
        from trainer.models.fusemoe.activations import expected_features

        counter = self.counter(config, schema, self.tasks(config, schema), model)
        features = expected_features(counter, statistics, 1)
        return counter.count_tokens(dict(zip(counter.features, features, strict=True)))
