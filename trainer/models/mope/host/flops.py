"""How much arithmetic prompts on a FuseMoE host ask for: the host's own count; frozen, half of its backward pass."""

from __future__ import annotations

from torch import Tensor

from data_shards import DatasetSchema
from data_shards.records.statistics import SplitStatistics
from trainer.models.encoders.own.pretrained import encoder_costs
from trainer.models.flops import FORWARD_AND_BACKWARD, FlopCounter
from trainer.models.fusemoe.activations import expected_features
from trainer.models.mope.host.model import PromptedFuseMoE


class FrozenFlops(FlopCounter):
    """The same arithmetic with gradients of activations only."""

    def step_flops(self, features_X: Tensor | list[float]) -> float:
        """FLOPs of forward and backward."""
        return super().step_flops(features_X) * (FORWARD_AND_BACKWARD - 1) / FORWARD_AND_BACKWARD


def host_counter(model: PromptedFuseMoE, schema: DatasetSchema, heads: dict[str, int]) -> FlopCounter:
    """The counter of a prompted host; `heads` are logits by task."""
    kind = FlopCounter if model.trained else FrozenFlops
    own = encoder_costs(model.backbone)
    return kind(schema, heads, model.architecture, model.backbone.attention, own)


def expected_flops(
    model: PromptedFuseMoE, schema: DatasetSchema, heads: dict[str, int], statistics: SplitStatistics
) -> float:
    """Of one record of average presence and length, forward and backward."""
    counter = host_counter(model, schema, heads)
    return counter.step_flops(expected_features(counter, statistics, 1))
