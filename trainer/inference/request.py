"""What is predicted, by which checkpoint, on which data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from data_shards import DatasetSchema, TaskSpec, open_manifest
from data_shards.shards.lineage import Embedded
from data_shards.shards.manifest import Manifest
from trainer.checkpoints.checkpoint import Checkpoint
from trainer.checkpoints.description import embedded_from_json, schema_difference
from trainer.checkpoints.pieces import CheckpointError
from trainer.config.encoders import PretrainedConfig
from trainer.config.run_config import RunConfig
from trainer.models.pretrained.encoder import PretrainedEncoder
from trainer.models.pretrained.load import load_encoder
from trainer.models.pretrained.loading.backbone import BackboneError


@dataclass(frozen=True)
class Request:
    """What is predicted, by which checkpoint, and how. Plain values: it travels to other processes.

    Attributes:
        config: the checkpoint's recipe as `evaluation_config` gives it, with one data set in `data`.
        member: which data set of a mixture that is; empty for models of one data set.
        part: of the split in `data`; None = every record of the data set.
        temperatures: task -> number that its logits are divided by; tasks that are not named are left as they are.
        encoders: modality of the data -> the pretrained encoder that makes vectors of it, as the model was trained on.
        embeddings: add the pooled vector of each record, and its tokens by modality.
    """

    config: RunConfig
    part: str | None = None
    member: str = ""
    explain: bool = False
    temperatures: dict[str, float] = field(default_factory=dict)
    encoders: dict[str, PretrainedConfig] = field(default_factory=dict)
    embeddings: bool = False

    @property
    def checkpoint(self) -> str:
        """Folder or URL."""
        assert self.config.evaluation is not None
        return self.config.evaluation.checkpoint

    @property
    def batch_size(self) -> int:
        """Records of one forward pass."""
        return self.config.training.eval_batch_size or self.config.training.batch_size


def checkpoint_schema(checkpoint: Checkpoint) -> DatasetSchema:
    """Modalities and tasks that the model was trained on."""
    return DatasetSchema.from_json(json.dumps(checkpoint.meta["schema"]))


def model_tasks(checkpoint: Checkpoint, manifest: Manifest, member: str = "") -> list[TaskSpec]:
    """The tasks that a checkpoint answers for a data set (of a mixture: in the place of `member`).

    Raises CheckpointError if it was trained on other modalities.
    """
    schema = checkpoint_schema(checkpoint)
    difference = _difference(checkpoint, manifest.schema, member)
    if difference:
        raise CheckpointError(f"{manifest.url} does not fit checkpoint {checkpoint.path}: {difference}")
    tasks = [schema.task(name) for name in checkpoint.meta["config"]["training"]["tasks"] or schema.task_names]
    return [task for task in tasks if not member or task.name.startswith(f"{member}-")]


def choose_data(config: RunConfig, checkpoint: Checkpoint, url: str | None) -> tuple[RunConfig, str]:
    """The recipe of a model of a mixture with one data set in it, and which one of the mixture that stands for.

    Args:
        config: an evaluation of `checkpoint`.
        url: packed data; they stand for the data set of this place, or else for the only one with their modalities.

    Raises:
        CheckpointError: no URL, data that fit none of the mixture, or more than one.
    """
    if not config.data.mixture:
        return config, ""
    mixture = config.data.mixture
    if url is None:
        places = " or ".join(f"--data {entry.url} ({name})" for name, entry in mixture.items())
        raise CheckpointError(
            f"{checkpoint.path} was trained on a mixture, and predictions are made of one data set at a time: give "
            f"{places}, or new data with the modalities of one of them"
        )
    found = open_manifest(url, config.data.storage_options).schema
    differences = {name: _difference(checkpoint, found, name) for name in mixture}
    fitting = [name for name, difference in differences.items() if difference is None]
    named = [name for name in fitting if mixture[name].url == url]
    if not fitting:
        reasons = "; ".join(f"{name}: {difference}" for name, difference in differences.items())
        raise CheckpointError(f"{url} fits no data set of the mixture of {checkpoint.path} ({reasons})")
    if len(named or fitting) > 1:
        raise CheckpointError(
            f"{url} has the modalities of {' and of '.join(fitting)}: say which one it stands for with "
            f"data.mixture.{fitting[0]}.url={url}"
        )
    member = (named or fitting)[0]
    data = config.data.model_copy(update={"url": url, "split": mixture[member].split, "mixture": {}})
    return config.model_copy(update={"data": data}), member


def needed_encoders(
    checkpoint: Checkpoint, schema: DatasetSchema, member: str, given: Mapping[str, str]
) -> dict[str, PretrainedConfig]:
    """Modality -> the encoder that must run before the model, where data hold what it was trained on vectors of.

    Args:
        schema: of the data. given: modality -> folder or name of its encoder; else it is where it was.

    Raises CheckpointError: an encoder is given for a modality that needs none.
    """
    was = _unembedded(checkpoint, schema, member)
    for name in given:
        if name not in was:
            needed = f"those that do are {', '.join(was)}" if was else "none of the data does"
            raise CheckpointError(f"--encode {name}: this modality needs no encoder; {needed}")
    return {
        name: PretrainedConfig(
            source=given.get(name, own.source),
            tokens=own.tokens,
            dtype=own.dtype,  # type: ignore[arg-type]
            max_tokens=own.max_tokens,
            max_seconds=own.max_seconds,
        )
        for name, own in was.items()
    }


def load_needed(checkpoint: Checkpoint, schema: DatasetSchema, request: Request) -> dict[str, PretrainedEncoder]:
    """Modality -> its encoder. Raises CheckpointError: it cannot be had, or is another one than was trained with."""
    found, was = {}, _unembedded(checkpoint, schema, request.member)
    for name, config in request.encoders.items():
        wanted = was[name].digest
        advice = (
            f"the model reads vectors that encoder {wanted[:12]} ({was[name].source}) made of {name}: give its folder "
            f"with --encode {name}=FOLDER"
        )
        try:
            encoder = load_encoder(schema.modalities[schema.numbers[name]], config)
        except BackboneError as error:
            raise CheckpointError(f"{error}; {advice}") from error
        if encoder.digest != wanted:
            raise CheckpointError(f"{config.source} is another encoder ({str(encoder.digest)[:12]}); {advice}")
        found[name] = encoder.eval()
    return found


def _unembedded(checkpoint: Checkpoint, schema: DatasetSchema, member: str) -> dict[str, Embedded]:
    """Modality of the data -> what the model's vectors were, for each that the data hold as it was."""
    prefix = f"{member}-" if member else ""
    every = embedded_from_json(checkpoint.meta.get("embedded"))
    own = {name.removeprefix(prefix): found for name, found in every.items() if name.startswith(prefix)}
    raw = {spec.name for spec in schema.modalities if not spec.encoder and spec.kind != "vector"}
    return {name: found for name, found in own.items() if name in raw}


def _difference(checkpoint: Checkpoint, found: DatasetSchema, member: str) -> str | None:
    """As `schema_difference`, of data that may hold what an encoder is to make vectors of first."""
    was = _unembedded(checkpoint, found, member)
    own = _own_part(checkpoint_schema(checkpoint), member)
    specs = [was[spec.name].was if spec.name in was else spec for spec in own.modalities]
    return schema_difference(replace(own, modalities=tuple(specs)), found, tasks=False)


def _own_part(schema: DatasetSchema, member: str) -> DatasetSchema:
    """Modalities of one data set of a mixture under their own names; everything where there is no mixture."""
    if not member:
        return schema
    prefix = f"{member}-"
    own = [spec for spec in schema.modalities if spec.name.startswith(prefix)]
    return DatasetSchema(member, tuple(replace(spec, name=spec.name.removeprefix(prefix)) for spec in own), ())
