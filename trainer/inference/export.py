"""A trained model as plain files: no DeepSpeed, no Ray, no MLflow, no pickle. `inference.exported` opens them.

An export is a folder with `model.safetensors` (every parameter under its logical name, all experts in global order)
and `model.json` (recipe, schema, statistics, tasks, where it comes from). How its chances held on the test part goes
along, where its run has left that. Beside them lie the vocabularies of modalities of codes, so that records can be read
without the training data.
"""

from __future__ import annotations

import json
import logging
from typing import Any

import fsspec
import safetensors.torch
import torch
from torch import nn

from data_shards import DatasetSchema, open_manifest
from data_shards.errors import PathError
from data_shards.lease.lease import take
from data_shards.paths import absolute_url
from data_shards.records.vocabulary import Vocabulary
from trainer.checkpoints.adapter import ORIGIN
from trainer.checkpoints.checkpoint import Checkpoint, checkpoint_weights
from trainer.checkpoints.description import outdated
from trainer.checkpoints.find import open_checkpoint
from trainer.checkpoints.pieces import CheckpointError
from trainer.config.run_config import RunConfig
from trainer.inference.exported import ABOUT, FORMAT, WEIGHTS, filled, vocabulary_file
from trainer.inference.stored_calibration import stored_calibration

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
        fs.pipe_file(f"{root}/{WEIGHTS}", data)
        for name, vocabulary in vocabularies.items():
            fs.makedirs(f"{root}/vocabularies", exist_ok=True)
            fs.pipe_file(f"{root}/{vocabulary_file(name)}", vocabulary.digested())
        lease.confirm()
        fs.pipe_file(f"{root}/{ABOUT}", json.dumps(about, indent=1).encode())
    return {
        "model": out_url,
        "checkpoint": checkpoint.url,
        "step": checkpoint.step,
        "parameters": sum(weights[name].numel() for name in checkpoint.meta["parameters"]),
        "bytes": len(data),
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
    return filled(config, checkpoint.meta, checkpoint_weights(checkpoint), checkpoint.path).to(device)
