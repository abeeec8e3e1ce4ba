"""A trained model as plain files, and back: no DeepSpeed, no Ray, no MLflow, no pickle.

An export is a folder with `model.safetensors` (every parameter under its logical name, all experts in global order)
and `model.json` (recipe, schema, statistics, tasks, where it comes from). `load_model` rebuilds the model from it.
"""

from __future__ import annotations

import json
from typing import Any

import fsspec
import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from data_shards import DatasetSchema
from parallel import LocalDispatcher
from trainer.checkpoint import Checkpoint, CheckpointError, open_checkpoint
from trainer.config import RunConfig
from trainer.describe import statistics_from_json
from trainer.models.fusemoe import FuseMoE

FORMAT = "fleximoe-model-1"


def checkpoint_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Every parameter of a checkpoint as one float32 tensor under its logical name, and the persistent buffers.

    Raises CheckpointError.
    """
    reader = checkpoint.reader()
    weights = {
        name: reader.read(name, "master", 0, int(np.prod(shape))).view(tuple(shape))
        for name, shape in checkpoint.meta["parameters"].items()
    }
    return weights | {name: torch.tensor(value) for name, value in checkpoint.meta.get("buffers", {}).items()}


def export_model(checkpoint_url: str, out_url: str) -> dict[str, Any]:
    """Write the model of a checkpoint (or of a run's best one) to a folder; `model.json` last.

    Raises:
        CheckpointError: no such checkpoint, or a damaged one.
    """
    checkpoint = open_checkpoint(checkpoint_url)
    weights = checkpoint_weights(checkpoint)
    data = safetensors.torch.save(weights, metadata={"format": FORMAT})
    keys = ("config", "schema", "statistics", "schema_digest", "data_digest", "mlflow_run_id", "step")
    about = {"format": FORMAT, "checkpoint": checkpoint.path, **{key: checkpoint.meta[key] for key in keys}}
    fs, root = fsspec.url_to_fs(out_url)
    fs.makedirs(root, exist_ok=True)
    fs.pipe_file(f"{root}/model.safetensors", data)
    fs.pipe_file(f"{root}/model.json", json.dumps(about, indent=1).encode())
    return {
        "model": out_url,
        "checkpoint": checkpoint.path,
        "step": checkpoint.step,
        "parameters": sum(weights[name].numel() for name in checkpoint.meta["parameters"]),
        "bytes": len(data),
    }


def load_model(url: str, device: torch.device | str = "cpu") -> FuseMoE:
    """The model of an export folder, in evaluation mode, with all its experts on one device.

    Raises:
        CheckpointError: not an export, or one whose parameters do not fit its own recipe.
    """
    fs, root = fsspec.url_to_fs(url)
    try:
        about = json.loads(fs.cat_file(f"{root}/model.json"))
        data = fs.cat_file(f"{root}/model.safetensors")
    except FileNotFoundError:
        raise CheckpointError(f"{url} holds no exported model: make one with `checkpoint export`") from None
    if about.get("format") != FORMAT:
        raise CheckpointError(f"{url} has format {about.get('format')!r}; this version reads {FORMAT!r}")
    model = model_of(about)
    missing, unexpected = model.load_state_dict(safetensors.torch.load(data), strict=False)
    if missing or unexpected:
        raise CheckpointError(f"{url} does not fit its own recipe: parameter {[*missing, *unexpected][0]}")
    return model.to(device).eval()


def checkpoint_model(checkpoint: Checkpoint, device: torch.device | str = "cpu") -> FuseMoE:
    """The model of a checkpoint in evaluation mode, all its experts on one device, without an engine around it.

    Raises:
        CheckpointError: damaged, or its parameters do not fit its own recipe.
    """
    model = model_of(checkpoint.meta)
    missing, unexpected = model.load_state_dict(checkpoint_weights(checkpoint), strict=False)
    if missing or unexpected:
        raise CheckpointError(f"{checkpoint.path} does not fit its own recipe: parameter {[*missing, *unexpected][0]}")
    return model.to(device).eval()


def model_of(about: dict[str, Any]) -> FuseMoE:
    """An untrained model with the recipe, schema and statistics that a checkpoint or an export describes."""
    config = RunConfig.model_validate(about["config"])
    schema = DatasetSchema.from_json(json.dumps(about["schema"]))
    tasks = config.training.tasks or list(schema.task_names)
    statistics = statistics_from_json(about["statistics"])
    return FuseMoE(schema, tasks, statistics, config.model, LocalDispatcher(), config.training.seed)
