"""An exported model as it lies in its folder, opened again: what `inference.export` has written.

A folder of this machine needs torch, safetensors, numpy and pydantic alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from data_shards import DatasetSchema
from data_shards.records.vocabulary import Vocabulary
from parallel import LocalDispatcher
from parallel.moe.initial import check_filled, undrawn
from trainer.checkpoints.description import outdated, statistics_from_json
from trainer.checkpoints.pieces import CheckpointError
from trainer.config.run_config import RunConfig
from trainer.models.job_type import job_type
from trainer.models.pretrained.lineage import check_frozen
from trainer.run_folder import read_bytes

FORMAT = "fleximoe-model-1"
ABOUT, WEIGHTS = "model.json", "model.safetensors"


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
    try:
        about = json.loads(read_bytes(url, ABOUT))
        if about.get("format") != FORMAT:
            raise CheckpointError(f"{url} has format {about.get('format')!r}; this version reads {FORMAT!r}")
        data = read_bytes(url, WEIGHTS)
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"{url} holds no exported model: make one with `checkpoint export`") from None
    config = RunConfig.of(about["config"])
    return about, config, filled(config, about, _tensors(data, url), url).to(device)


def export_recipe(url: str) -> RunConfig:
    """The recipe that an export was trained by, without loading its weights. Raises OSError: there is none."""
    return RunConfig.of(json.loads(read_bytes(url, ABOUT))["config"])


def vocabulary_file(name: str) -> str:
    """Of a modality of codes: what its digest in the schema is of (`Vocabulary.digested`)."""
    return f"vocabularies/{name}.json"


def exported_vocabularies(url: str, about: Mapping[str, Any]) -> dict[str, Vocabulary]:
    """Modality of codes -> its vocabulary; none of an export that was made without the training data.

    Raises:
        CheckpointError: a file of one is missing, or another vocabulary than the model was trained with.
    """
    digests = {own["name"]: own.get("vocabulary") for own in about["schema"]["modalities"]}
    found = {}
    for name, rows in (about.get("vocabularies") or {}).items():
        try:
            found[name] = _vocabulary(url, name, rows)
        except (FileNotFoundError, ValueError) as error:
            raise CheckpointError(f"{url}: the vocabulary of {name} cannot be read ({error})") from None
        if found[name].digest != digests.get(name):
            raise CheckpointError(
                f"{url}: the vocabulary of {name} is not the one that the model was trained with; export the run again"
            )
    return found


def _vocabulary(url: str, name: str, rows: int) -> Vocabulary:
    try:
        return Vocabulary.of_digested(read_bytes(url, vocabulary_file(name)))
    except FileNotFoundError:  # of an earlier version
        return Vocabulary.from_bytes(read_bytes(url, f"vocabularies/{name}.parquet"), rows)


def _tensors(data: bytes, url: str) -> dict[str, Tensor]:
    """Tensors of an export, in float32 whatever type they were stored in since. Raises CheckpointError."""
    try:
        stored = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{url}/{WEIGHTS} is damaged: {error}") from None
    return {name: value.float() if value.is_floating_point() else value for name, value in stored.items()}


def filled(config: RunConfig, about: dict[str, Any], weights: dict[str, Tensor], where: str) -> nn.Module:
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
