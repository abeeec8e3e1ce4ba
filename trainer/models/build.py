"""What a job trains, by its type: the model, which of its parameters never decay, and how its arithmetic is counted.

Everything else (data, engine, loop, checkpoints, tracking, evaluation) is the same code for every type.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from data_shards import DatasetSchema, TaskSpec
from data_shards.records.statistics import SplitStatistics
from parallel import Dispatcher
from trainer.config.run_config import RunConfig
from trainer.models.flops import Counter, FlopCounter
from trainer.models.fusemoe.model import FuseMoE

NO_DECAY = {
    "fusemoe": ("bias", "w3", "phase", "frequency", "missing.weight", "modality.weight", "bin.weight", "position"),
    "mope": ("bias", "static_", "experts_KLD", "experts_MKLD", "gate", "identity", "null", "absent", "missing"),
}


def resolve(config: RunConfig) -> RunConfig:
    """The recipe with what the backbone decides: a FuseMoE host's architecture takes the place of `model`.

    Raises BackboneError: the host is missing or is no model of job=fusemoe. ValueError: a setting that the job lacks.
    """
    if config.model_job == "mope" and config.mope is None:
        raise ValueError("job=mope needs a section mope: what is prompted, and how")
    if config.model_job != "fusemoe" and config.training.activation_checkpointing:
        raise ValueError(
            f"training.activation_checkpointing works for job=fusemoe, not for job={config.model_job}: set it to "
            "false, and raise training.accumulation if memory is short"
        )
    if config.model_job != "mope" or config.mope is None or config.mope.host is None:
        return config
    from trainer.models.mope.host.backbone import host_architecture

    model = host_architecture(config.mope.host, config.model.modality_dropout)
    return config.model_copy(update={"model": model})


def build_model(
    config: RunConfig,
    schema: DatasetSchema,
    tasks: list[str],
    statistics: SplitStatistics,
    dispatcher: Dispatcher,
    weights: bool = True,
) -> nn.Module:
    """The model of a resolved recipe, with initial weights. Raises ValueError where recipe and data do not fit.

    Without `weights`, a backbone has the shapes that its configuration says, and its weights are not read.
    """
    seed = config.training.seed
    if config.model_job == "fusemoe":
        return FuseMoE(schema, tasks, statistics, config.model, dispatcher, seed)
    if config.mope is None:
        raise ValueError(f"job={config.model_job} needs a section mope: which tower is trained")
    if config.mope.host is not None:
        from trainer.models.mope.host.backbone import load_host
        from trainer.models.mope.host.model import PromptedFuseMoE

        host = load_host(config.mope.host, schema, weights)
        return PromptedFuseMoE(schema, tasks, statistics, host, config.model, config.mope, dispatcher, seed)
    from trainer.models.mope.towers.model import TowerModel

    if config.mope.mask is not None:
        from trainer.models.mope.towers.segmentation import PromptedSegmenter

        return PromptedSegmenter(schema, statistics, config.mope, seed, weights)
    pretraining = config.model_job == "tower"
    return TowerModel(schema, tasks, statistics, config.mope, seed, pretraining, weights)


def exempt_from_decay(job: str, name: str, parameter: nn.Parameter) -> bool:
    """Biases, norms, embeddings, time frequencies, prompts: parameters whose size means something by itself."""
    parts = NO_DECAY["fusemoe"] if job == "fusemoe" else NO_DECAY["fusemoe"] + NO_DECAY["mope"]
    return parameter.ndim < 2 or "norm" in name or any(part in name for part in parts)


def flop_counter(config: RunConfig, schema: DatasetSchema, tasks: list[TaskSpec], model: Any) -> Counter:
    """The counter of a job's model."""
    heads = {task.name: task.dim for task in tasks}
    if isinstance(model, FuseMoE):
        return FlopCounter(schema, heads, config.model, model.attention)
    if hasattr(model, "flop_counter"):
        return model.flop_counter(schema, heads)  # type: ignore[no-any-return]
    from trainer.models.mope.towers.flops import RecordFlops, record_flops

    return RecordFlops(record_flops(model))
