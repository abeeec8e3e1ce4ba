"""What is predicted, by which checkpoint, on which data."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace

from data_shards import DatasetSchema, TaskSpec, open_manifest
from data_shards.shards.manifest import Manifest
from trainer.checkpoints.checkpoint import Checkpoint
from trainer.checkpoints.description import schema_difference
from trainer.checkpoints.pieces import CheckpointError
from trainer.config.run_config import RunConfig


@dataclass(frozen=True)
class Request:
    """What is predicted, by which checkpoint, and how. Plain values: it travels to other processes.

    Attributes:
        config: the checkpoint's recipe as `evaluation_config` gives it, with one data set in `data`.
        member: which data set of a mixture that is; empty for models of one data set.
        part: of the split in `data`; None = every record of the data set.
        temperatures: task -> number that its logits are divided by; tasks that are not named are left as they are.
    """

    config: RunConfig
    part: str | None = None
    member: str = ""
    explain: bool = False
    temperatures: dict[str, float] = field(default_factory=dict)

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
    difference = schema_difference(_own_part(schema, member), manifest.schema, tasks=False)
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
    schema, found = checkpoint_schema(checkpoint), open_manifest(url, config.data.storage_options).schema
    differences = {name: schema_difference(_own_part(schema, name), found, tasks=False) for name in mixture}
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


def _own_part(schema: DatasetSchema, member: str) -> DatasetSchema:
    """Modalities of one data set of a mixture under their own names; everything where there is no mixture."""
    if not member:
        return schema
    prefix = f"{member}-"
    own = [spec for spec in schema.modalities if spec.name.startswith(prefix)]
    return DatasetSchema(member, tuple(replace(spec, name=spec.name.removeprefix(prefix)) for spec in own), ())
