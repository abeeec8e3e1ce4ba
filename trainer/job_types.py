"""What a job trains, by its type: the model, which of its parameters never decay, and how its arithmetic is counted.

Everything else (data, engine, loop, checkpoints, tracking, evaluation) is the same code for every type.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from data_shards import Batch, DatasetSchema, Manifest, TaskSpec
from data_shards.inspection.presence import first_without
from data_shards.records.statistics import SplitStatistics
from parallel import Dispatcher
from trainer.collectives import broadcast_json
from trainer.config import RunConfig
from trainer.flops import FlopCounter
from trainer.models.fusemoe import FuseMoE
from trainer.models.mope.base import FrozenBackbone

if TYPE_CHECKING:
    from trainer.models.mope.fusemoe_host import PromptedFuseMoE
    from trainer.models.mope.tower_model import TowerModel
    from trainer.session import Session

NO_DECAY = {
    "fusemoe": ("bias", "w3", "phase", "frequency", "missing.weight", "modality.weight", "bin.weight", "position"),
    "mope": ("bias", "static_", "experts_KLD", "experts_MKLD", "gate", "identity", "null", "absent", "missing"),
}


class Counter(Protocol):
    """Counts the arithmetic of batches."""

    features: tuple[str, ...]

    def measure(self, batch: Batch) -> Tensor:
        """Features (X,) of a batch, float64."""

    def step_flops(self, features_X: Tensor) -> float:
        """FLOPs of forward and backward for these features."""


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
    from trainer.models.mope.host_checkpoint import host_architecture

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
        from trainer.models.mope.fusemoe_host import PromptedFuseMoE
        from trainer.models.mope.host_checkpoint import load_host

        host = load_host(config.mope.host, schema, weights)
        return PromptedFuseMoE(schema, tasks, statistics, host, config.model, config.mope, dispatcher, seed)
    from trainer.models.mope.tower_model import TowerModel

    if config.mope.mask is not None:
        from trainer.models.mope.segmentation import PromptedSegmenter

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
    return model.flop_counter(schema, heads)  # type: ignore[no-any-return]


def backbone_of(model: nn.Module) -> dict[str, Any] | None:
    """Digest, runs and size of the frozen backbone; None where there is none."""
    described: TowerModel | PromptedFuseMoE = model  # type: ignore[assignment]
    if getattr(model, "backbone_digest", None) is None:
        return None
    return described.describe_backbone()


def check_backbone(where: str, stored: dict[str, Any] | None, model: nn.Module) -> None:
    """Raise ValueError if what `where` holds was trained on another backbone than the model's."""
    own = backbone_of(model)
    if stored is None or own is None or stored["digest"] == own["digest"]:
        return
    raise ValueError(
        f"{where} was trained on a backbone with digest {stored['digest'][:12]}, and the one that was loaded has "
        f"{own['digest'][:12]}: give the backbone that it was trained on (mope.host, or mope.image.source and "
        "mope.text.source)"
    )


def check_records(session: Session) -> None:
    """Before anything is trained or written: has every record what the model cannot do without? Collective.

    Raises ValueError: a record of any part has not.
    """
    model, manifest, split = session.engine.module, session.manifest, session.config.data.split
    needed = model.needed_modalities() if isinstance(model, FrozenBackbone) else []
    if not needed or not isinstance(manifest, Manifest):
        return  # of a mixture, a record says so itself when it is met
    problem = None
    for part, modality in itertools.product(manifest.splits[split], needed) if session.context.rank == 0 else ():
        found = first_without(manifest, split, part, modality)
        if found is not None and problem is None:
            problem = (
                f"{found[1]} records of part {part}, the first is {found[0]}, have no {modality}, which a tower reads: "
                "leave them out when packing, or set mope.missing=learned"
            )
    problem = broadcast_json(problem, session.device)
    if problem is not None:
        raise ValueError(problem)
