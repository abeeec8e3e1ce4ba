"""What one record keeps for the backward pass of prompts on a FuseMoE host: modelled, for `plan`."""

from __future__ import annotations

from data_shards import DatasetSchema
from data_shards.records.statistics import SplitStatistics
from trainer.models.encoders.own.pretrained import encoder_costs
from trainer.models.flops import FlopCounter
from trainer.models.fusemoe.activations import activation_elements, expected_features
from trainer.models.mope.host.model import PromptedFuseMoE


def kept_elements(model: PromptedFuseMoE, schema: DatasetSchema, statistics: SplitStatistics) -> float:
    """Elements of one record of average presence and length."""
    if not (model.trained or model.config.prompts or model.config.method == "lora"):
        return 0.0  # nothing below the head is asked for a gradient
    counter = FlopCounter(schema, {}, model.architecture, model.backbone.attention, encoder_costs(model.backbone))
    features = expected_features(counter, statistics, 1)
    block, outside = activation_elements(counter, features)
    values = dict(zip(counter.features, features, strict=True))
    # A token reads keys and values of its own pair, which are kept for each token.
    read = counter.count_tokens(values) * 2 * model.config.rows * model.architecture.dim
    layers = model.architecture.layers
    return (block + read) * layers + (outside if model.trained else 0.0)
