"""A FuseMoE model that `train` made, as a host: its architecture, its weights, and whether it fits the data."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from data_shards import DatasetSchema
from data_shards.records.statistics import SplitStatistics
from parallel import MoELayer
from parallel.tables.table import spread_tables
from trainer.checkpoints.checkpoint import Checkpoint, checkpoint_weights
from trainer.checkpoints.description import outdated, schema_difference, statistics_from_json
from trainer.checkpoints.find import open_checkpoint
from trainer.checkpoints.pieces import CheckpointError
from trainer.config.job_types import FUSEMOE
from trainer.config.sections import ModelConfig
from trainer.models.encoders.build import declared_positions
from trainer.models.pretrained.loading.backbone import BackboneError, digest_of


@dataclass(frozen=True)
class Host:
    """Weights by logical name (all experts in global order), without the heads of the host's own tasks; what its
    pretrained encoders were."""

    weights: dict[str, Tensor]
    statistics: SplitStatistics
    digest: str
    run_id: str | None
    encoders: dict[str, Any]

    def put_into(self, model: nn.Module) -> None:
        """Load the weights; of the experts and the rows of large tables, those that this rank holds."""
        local: dict[str, Tensor] = dict(self.weights)
        for prefix, layer in model.named_modules():
            if isinstance(layer, MoELayer):
                ids = layer.experts.ids
                for name, _ in layer.experts.named_parameters():
                    full = f"{prefix}.experts.{name}"
                    local[full] = local[full][ids.start : ids.stop]
        for name, table in spread_tables(model).items():
            local[name] = local[name][table.ids.start : table.ids.stop]
        # What was frozen in the host comes from where the host had it.
        missing = {name for name, parameter in model.named_parameters() if parameter.requires_grad} - set(local)
        if missing:
            raise BackboneError(f"the host's checkpoint has no weight {sorted(missing)[0]}")
        model.load_state_dict(local, strict=False)


def host_architecture(url: str, own: ModelConfig) -> ModelConfig:
    """The section `model` that the host was trained with; only what is hidden while training is the fine-tuning's own.

    Balance losses are switched off: a frozen router cannot follow them, and prompts should not.
    """
    about = _open(url).meta
    model = ModelConfig.model_validate(about["config"]["model"])
    if model.text.positions is None:
        declared = declared_positions(DatasetSchema.from_json(json.dumps(about["schema"])).modalities, model)
        model = model.model_copy(update={"text": model.text.model_copy(update={"positions": declared})})
    moe = model.moe.model_copy(update={"balance": 0.0, "entropy": 0.0, "z": 0.0})
    hidden = {"modality_dropout": own.modality_dropout, "time_dropout": own.time_dropout}
    return model.model_copy(update={"moe": moe, **hidden})


def load_host(url: str, schema: DatasetSchema, weights: bool = True) -> Host:
    """The host's weights, or, without `weights`, their shapes.

    Raises BackboneError: not there, damaged, or of other modalities than `schema`.
    """
    checkpoint = _open(url)
    ordered = _fitting(checkpoint, schema)
    if weights and _order(ordered) != _order(schema):
        # The weights know modalities and channels by their numbers.
        raise BackboneError(f"data set {schema.name} has the modalities of host {checkpoint.path} in another order")
    statistics = statistics_from_json(checkpoint.meta["statistics"])
    encoders = checkpoint.meta.get("encoders") or {}
    if not weights:
        shapes = {name: torch.empty(size, device="meta") for name, size in checkpoint.meta["parameters"].items()}
        return Host(_without_heads(shapes), statistics, "", checkpoint.run_id, encoders)
    try:
        found = checkpoint_weights(checkpoint)
    except CheckpointError as error:
        raise BackboneError(f"mope.host: {error}") from error
    kept = _without_heads(found)
    return Host(kept, statistics, digest_of(kept), checkpoint.run_id, encoders)


def in_order_of_host(url: str, schema: DatasetSchema) -> DatasetSchema:
    """The schema with modalities and channels in the order of the host. Raises BackboneError: they are others."""
    return _fitting(_open(url), schema)


def _fitting(checkpoint: Checkpoint, schema: DatasetSchema) -> DatasetSchema:
    trained_on = DatasetSchema.from_json(json.dumps(checkpoint.meta["schema"]))
    difference = schema_difference(trained_on, schema, tasks=False)
    if difference:
        raise BackboneError(f"data set {schema.name} does not fit host {checkpoint.path}: {difference}")
    return replace(schema, modalities=trained_on.modalities)


def _order(schema: DatasetSchema) -> list[tuple[str, tuple[str, ...]]]:
    return [(spec.name, spec.channels) for spec in schema.modalities]


def _without_heads(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in weights.items() if not name.startswith("heads.")}


def _open(url: str) -> Checkpoint:
    try:
        checkpoint = open_checkpoint(url)
    except (CheckpointError, FileNotFoundError) as error:
        raise BackboneError(f"mope.host: {error}") from error
    job = checkpoint.meta["config"]["job"]
    if job != FUSEMOE:
        raise BackboneError(f"mope.host={url} was trained with job={job}; a host is a checkpoint of job={FUSEMOE}")
    if problem := outdated(checkpoint.meta["parameters"]):
        raise BackboneError(f"mope.host: {checkpoint.path} {problem}")
    return checkpoint
