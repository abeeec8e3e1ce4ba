"""Where pretrained encoders come from, and what is said when one cannot be had.

A folder in the format of `transformers`, a name on its hub (the local cache first), a run of job=tower, or, without a
source, random weights of a given architecture. Weights are read from safetensors only, and no code that comes with a
model is ever run.

The library would take the type of numbers from a file: what is stored in half precision would be computed in it, or
meet what is not. Here every model is float32, whatever its files say; the recipe alone says what is computed in, and a
value that was stored in fewer bits is the same in float32.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer.checkpoints.description import statistics_from_json
from trainer.checkpoints.pieces import CheckpointError
from trainer.config.job_types import TOWER
from trainer.config.mope import TowerConfig
from trainer.models.pretrained.loading.backbone import BackboneError
from trainer.models.pretrained.loading.families import FAMILIES
from trainer.models.pretrained.loading.library import from_pretrained, preprocessing
from trainer.run_folder import CHECKPOINTS

CLIP_PART = {"image": "clip_vision_model", "text": "clip_text_model"}
CLASSES = {"clip_vision_model": "CLIPVisionModel", "clip_text_model": "CLIPTextModel"}
DTYPES = ("dtype", "torch_dtype")


@dataclass(frozen=True)
class Asked:
    """What is to be loaded.

    Attributes:
        label: what it is called in sentences. key: of the recipe, where it is asked for.
        kind: image, text or waveform. families: architectures that the caller can use, in the order they are told.
        attention: implementation in transformers' table; None = the library's choice.
    """

    label: str
    key: str
    kind: str
    families: Collection[str]
    attention: str | None = None


@dataclass
class Loaded:
    """A model of transformers, and what came with it.

    Attributes:
        mean, std: of pixels as they are stored here, 0 to 255; None where the source does not say.
        facts: what the source says about its inputs. run_id: of the run that made it.
    """

    model: nn.Module
    family: str
    tokenizer: Any = None
    mean: list[float] | None = None
    std: list[float] | None = None
    facts: dict[str, Any] | None = None
    run_id: str | None = None
    shapes_only: bool = False


def random_model(asked: Asked, family: str | None, settings: dict[str, Any]) -> Loaded:
    """Random weights of the family and settings that a recipe gives. Raises BackboneError."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    if family is None:
        raise BackboneError(f"{asked.label} has neither {asked.key}.source nor {asked.key}.family: give one of them")
    given = [name for name in DTYPES if name in settings]
    if given:
        raise BackboneError(
            f"{asked.label}: {asked.key}.config.{given[0]} is not for a recipe to say: towers are float32, and "
            "parallel.precision says what is computed in"
        )
    try:
        model = _from_config(AutoConfig.for_model(family, **settings), asked.attention)
    except (TypeError, ValueError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BackboneError(f"{asked.label}: {asked.key}.config does not make a {family}: {reason}") from error
    return Loaded(model, family)


def load_source(asked: Asked, source: str, weights: bool = True) -> Loaded:
    """A folder, a name or a run; without `weights`, of its configuration only, with random ones.

    Raises BackboneError.
    """
    folder = Path(source)
    ours = (folder / CHECKPOINTS).is_dir() or (folder / "COMMIT").is_file()
    if folder.is_dir() and not ours:
        return _from_hub(asked, source, weights)
    if "://" in source or ours:
        return _from_run(asked, source, weights)
    if source.startswith(("/", ".", "~")) or source.count("/") > 1:
        raise BackboneError(f"{asked.label}: folder {source} does not exist")
    return _from_hub(asked, source, weights)


def _from_hub(asked: Asked, source: str, weights: bool) -> Loaded:
    """A folder in transformers' format, or a name."""
    import transformers

    settings: Any = from_pretrained("configuration", asked.label, source, transformers.AutoConfig)
    family = CLIP_PART.get(asked.kind, "clip") if settings.model_type == "clip" else str(settings.model_type)
    if family not in asked.families:
        raise BackboneError(
            f"{asked.label}: {source} is a model of type {family}; those known here are {', '.join(asked.families)}"
        )
    if getattr(settings, "quantization_config", None) is not None:
        raise BackboneError(
            f"{asked.label}: {source} is quantised, and its weights are no plain numbers: give the model that it was "
            "made from"
        )
    attention = asked.attention if family not in FAMILIES or FAMILIES[family].plain else None
    if not weights:
        part = getattr(settings, {"image": "vision_config", "text": "text_config"}.get(asked.kind, ""), settings)
        return Loaded(_from_config(part, attention), family, shapes_only=True)
    kind = getattr(transformers, CLASSES.get(family, "AutoModel"))
    loaded = Loaded(from_pretrained("model", asked.label, source, kind, attention), family)
    if asked.kind == "text":
        loaded.tokenizer = from_pretrained("tokenizer", asked.label, source)
        return loaded
    loaded.facts = facts = preprocessing(source)
    if facts.get("do_normalize", True) and "image_mean" in facts:
        # Mean and deviation are of rescaled pixels; here pixels are 0 to 255.
        step = float(facts.get("rescale_factor", 1 / 255)) if facts.get("do_rescale", True) else 1.0
        loaded.mean = [float(value) / step for value in facts["image_mean"]]
        loaded.std = [float(value) / step for value in facts["image_std"]]
    return loaded


def _from_config(settings: Any, attention: str | None) -> Any:
    """A model with random weights, in float32 whatever its configuration says."""
    from transformers import AutoModel

    return AutoModel.from_config(settings, attn_implementation=attention, dtype=torch.float32, trust_remote_code=False)


def _from_run(asked: Asked, source: str, weights: bool) -> Loaded:
    """A tower that `train` made: its recipe says the architecture, its checkpoint holds the weights."""
    # An export of a model without towers is opened without what reads checkpoints.
    from trainer.checkpoints.checkpoint import checkpoint_weights
    from trainer.checkpoints.find import open_checkpoint

    try:
        checkpoint = open_checkpoint(source)
    except (CheckpointError, FileNotFoundError) as error:
        raise BackboneError(f"{asked.label}: {error}, and no config.json of transformers") from error
    recipe, kind = checkpoint.meta["config"], asked.kind
    part = (recipe.get("mope") or {}).get(kind)
    if part is None or recipe["job"] != TOWER:
        raise BackboneError(
            f"{asked.label}: run {source} trained job={recipe['job']} and has no {kind} tower; train one with job: "
            f"tower and a section mope.{kind}"
        )
    config = TowerConfig.model_validate({**part, "source": None})
    loaded = random_model(asked, config.family, config.config)
    loaded.run_id = checkpoint.run_id
    if not weights:
        return loaded
    prefix = f"towers.{kind}.model."
    found = {
        name.removeprefix(prefix): value
        for name, value in checkpoint_weights(checkpoint).items()
        if name.startswith(prefix)
    }
    missing = set(dict(loaded.model.named_parameters())) - set(found)
    if missing:
        raise BackboneError(f"{asked.label}: {checkpoint.path} has no weight {sorted(missing)[0]}")
    # Not strict: parameters have been compared above, and checkpoints leave the buffers of a tower out.
    loaded.model.load_state_dict(found, strict=False)
    if kind == "image":
        name = part["modality"] or _only(checkpoint.meta["schema"], "image")
        table = statistics_from_json(checkpoint.meta["statistics"]).modalities[name]
        loaded.mean, loaded.std = list(table.mean), list(table.std)
    return loaded


def _only(schema: dict[str, Any], kind: str) -> str:
    return next(str(spec["name"]) for spec in schema["modalities"] if spec["kind"] == kind)
