"""A trained model as plain files, and back: no DeepSpeed, no Ray, no MLflow, no pickle.

An export is a folder with `model.safetensors` (every parameter under its logical name, all experts in global order)
and `model.json` (recipe, schema, statistics, tasks, where it comes from). `load_model` rebuilds the model from it.
How its chances held on the test part goes along, where its run has left that. Beside them lie the vocabularies of
modalities of codes, so that records can be read without the training data.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

import fsspec
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from data_shards import DatasetSchema, open_manifest
from data_shards.errors import PathError
from data_shards.lease.lease import take
from data_shards.paths import absolute_url
from data_shards.records.vocabulary import Vocabulary
from parallel import LocalDispatcher
from parallel.moe.initial import check_filled, undrawn
from trainer.checkpoints.adapter import ORIGIN
from trainer.checkpoints.checkpoint import Checkpoint, checkpoint_weights
from trainer.checkpoints.description import outdated, statistics_from_json
from trainer.checkpoints.find import open_checkpoint
from trainer.checkpoints.pieces import CheckpointError
from trainer.config.run_config import RunConfig
from trainer.inference.stored_calibration import stored_calibration
from trainer.models.job_type import job_type
from trainer.models.pretrained.lineage import check_frozen

FORMAT = "fleximoe-model-1"

logger = logging.getLogger(__name__)


def export_model(checkpoint_url: str, out_url: str) -> dict[str, Any]:
    """Write the model of a checkpoint (or of a run's best one) to a folder; `model.json` last.

    Raises:
        CheckpointError: no such checkpoint, a damaged one, or one whose weights mean something else by now.
        LeaseHeldError: another export is writing there.
    """
    out_url = absolute_url(out_url)
    checkpoint = open_checkpoint(absolute_url(checkpoint_url))
    if problem := outdated(checkpoint.meta["parameters"]):
        raise CheckpointError(f"{checkpoint.path} {problem}")
    weights = checkpoint_weights(checkpoint)
    data = safetensors.torch.save(weights, metadata={"format": FORMAT})
    keys = (*ORIGIN, "backbone", "encoders")
    about = {"format": FORMAT, "checkpoint": checkpoint.url, **{key: checkpoint.meta.get(key) for key in keys}}
    vocabularies = _vocabularies(checkpoint)
    about["calibration"] = stored_calibration(checkpoint)
    about["vocabularies"] = {name: vocabulary.rows for name, vocabulary in vocabularies.items()}
    fs, root = fsspec.url_to_fs(out_url)
    with take(out_url, "export of a model", "export to another folder") as lease:
        fs.makedirs(root, exist_ok=True)
        fs.pipe_file(f"{root}/model.safetensors", data)
        for name, vocabulary in vocabularies.items():
            fs.makedirs(f"{root}/vocabularies", exist_ok=True)
            fs.pipe_file(f"{root}/vocabularies/{name}.parquet", vocabulary.to_bytes())
        lease.confirm()
        fs.pipe_file(f"{root}/model.json", json.dumps(about, indent=1).encode())
    return {
        "model": out_url,
        "checkpoint": checkpoint.url,
        "step": checkpoint.step,
        "parameters": sum(weights[name].numel() for name in checkpoint.meta["parameters"]),
        "bytes": len(data),
    }


def load_model(url: str, device: torch.device | str = "cpu") -> nn.Module:
    """The model of an export folder, in evaluation mode, with all its experts on one device.

    A fine-tuned model finds its backbone where its recipe says.

    Raises:
        CheckpointError: not an export, or one whose parameters do not fit its own recipe.
        ValueError: the backbone is missing, or another one.
    """
    return exported(url, device)[2]


def exported(url: str, device: torch.device | str = "cpu") -> tuple[dict[str, Any], RunConfig, nn.Module]:
    """What an export says of itself, its recipe, and its model as of `load_model`. Raises as that does."""
    fs, root = fsspec.url_to_fs(absolute_url(url))
    try:
        about = json.loads(fs.cat_file(f"{root}/model.json"))
        if about.get("format") != FORMAT:
            raise CheckpointError(f"{url} has format {about.get('format')!r}; this version reads {FORMAT!r}")
        data = fs.cat_file(f"{root}/model.safetensors")
    except FileNotFoundError:
        raise CheckpointError(f"{url} holds no exported model: make one with `checkpoint export`") from None
    config = RunConfig.of(about["config"])
    return about, config, _filled(config, about, _tensors(data, url), url).to(device)


def exported_vocabularies(url: str, about: Mapping[str, Any]) -> dict[str, Vocabulary]:
    """Modality of codes -> its vocabulary; none of an export that was made without the training data."""
    fs, root = fsspec.url_to_fs(absolute_url(url))
    return {
        name: Vocabulary.from_bytes(fs.cat_file(f"{root}/vocabularies/{name}.parquet"), rows)
        for name, rows in (about.get("vocabularies") or {}).items()
    }


def _vocabularies(checkpoint: Checkpoint) -> dict[str, Vocabulary]:
    """Of the training data, if they are still where they were; a word about it if not."""
    schema = DatasetSchema.from_json(json.dumps(checkpoint.meta["schema"]))
    data = RunConfig.of(checkpoint.meta["config"]).data
    wanted = {spec.name: spec.vocabulary for spec in schema.modalities if spec.kind == "codes"}
    if not wanted or data.mixture:
        return {}
    try:
        manifest = open_manifest(data.url, data.storage_options)
        found = {name: manifest.vocabulary(name) for name in wanted}
    except (PathError, OSError, ValueError, KeyError) as error:
        logger.warning(
            "the export has no vocabulary of %s, as %s cannot be read (%s): it takes no plain records with codes",
            ", ".join(wanted), data.url, error,
        )  # fmt: skip
        return {}
    other = [name for name, vocabulary in found.items() if vocabulary.digest != wanted[name]]
    if other:
        logger.warning(
            "the export has no vocabularies, as %s holds another one of %s by now than the model was trained with: "
            "it takes no plain records with codes",
            data.url, ", ".join(other),
        )  # fmt: skip
        return {}
    return found


def _tensors(data: bytes, url: str) -> dict[str, Tensor]:
    """Tensors of an export, in float32 whatever type they were stored in since. Raises CheckpointError."""
    try:
        stored = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{url}/model.safetensors is damaged: {error}") from None
    return {name: value.float() if value.is_floating_point() else value for name, value in stored.items()}


def checkpoint_model(
    checkpoint: Checkpoint, device: torch.device | str = "cpu", config: RunConfig | None = None
) -> nn.Module:
    """The model of a checkpoint in evaluation mode, all its experts on one device, without an engine around it.

    Args:
        config: its recipe with other places of the backbone, for one that was moved.

    Raises:
        CheckpointError: damaged, or its parameters do not fit its own recipe.
        ValueError: the backbone is missing, or another one.
    """
    config = config or RunConfig.of(checkpoint.meta["config"])
    return _filled(config, checkpoint.meta, checkpoint_weights(checkpoint), checkpoint.path).to(device)


def _filled(config: RunConfig, about: dict[str, Any], weights: dict[str, Tensor], where: str) -> nn.Module:
    """The model with the recipe, schema and statistics that a checkpoint or an export describes, and its weights."""
    if problem := outdated(weights):
        raise CheckpointError(f"{where} {problem}")
    schema = DatasetSchema.from_json(json.dumps(about["schema"]))
    job = job_type(config.model_job)
    tasks = [task.name for task in job.tasks(config, schema)]
    # What a recipe draws and then freezes is in no checkpoint: it is drawn again, as when the run was built.
    with torch.random.fork_rng(), undrawn():
        torch.manual_seed(config.training.seed)
        statistics = statistics_from_json(about["statistics"])
        model = job.build(job.resolve(config), schema, tasks, statistics, LocalDispatcher())
    check_frozen(where, about, model)
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    expected = {name for name in model.state_dict() if name not in parameters}  # buffers
    expected |= {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name in sorted(expected ^ weights.keys()):
        raise CheckpointError(
            f"{where} does not fit its own recipe: {name} is only in the {'model' if name in expected else 'file'}"
        )
    model.load_state_dict(weights, strict=False)
    check_filled(model)
    return model.eval()
