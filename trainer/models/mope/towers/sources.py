"""Where pretrained encoders come from, and what is said when one cannot be had.

A folder in the format of `transformers`, a name on its hub (the local cache first), a run of job=tower, or, without a
source, random weights of a given architecture. Weights are read from safetensors only, and no code that comes with a
model is ever run.

The library would take the type of numbers from a file: what is stored in half precision would be computed in it, or
meet what is not. Here every tower is float32, whatever its files say; `parallel.precision` alone says what is computed
in, and a value that was stored in fewer bits is the same in float32.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainer.checkpoints.checkpoint import checkpoint_weights
from trainer.checkpoints.description import statistics_from_json
from trainer.checkpoints.find import open_checkpoint
from trainer.checkpoints.pieces import CheckpointError
from trainer.config.job_types import TOWER
from trainer.config.mope import TowerConfig
from trainer.models.mope.prompts.frozen_backbone import BackboneError
from trainer.models.mope.towers.sites import KINDS, register_attention
from trainer.run_folder import CHECKPOINTS

PICTURES = ("vit", "swin", "clip_vision_model", "dinov2")
CLIP_PART = {"image": "clip_vision_model", "text": "clip_text_model"}
DTYPES = ("dtype", "torch_dtype")


@dataclass
class Loaded:
    """A model of transformers, and what came with it."""

    model: nn.Module
    family: str
    tokenizer: Any = None
    mean: list[float] | None = None
    std: list[float] | None = None
    run_id: str | None = None
    shapes_only: bool = False


def random_tower(what: str, config: TowerConfig) -> Loaded:
    """Random weights of the family and settings that a recipe gives."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    if config.family is None:
        raise BackboneError(f"tower {what} has neither mope.{what}.source nor mope.{what}.family: give one of them")
    given = [name for name in DTYPES if name in config.config]
    if given:
        raise BackboneError(
            f"tower {what}: mope.{what}.config.{given[0]} is not for a recipe to say: towers are float32, and "
            "parallel.precision says what is computed in"
        )
    try:
        settings = AutoConfig.for_model(config.family, **config.config)
        model = _from_config(settings)
    except (TypeError, ValueError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BackboneError(f"tower {what}: mope.{what}.config does not make a {config.family}: {reason}") from error
    return Loaded(model, config.family)


def tower_from(what: str, source: str, weights: bool = True) -> Loaded:
    """A folder, a name or a run; without `weights`, of its configuration only, with random ones."""
    folder = Path(source)
    ours = (folder / CHECKPOINTS).is_dir() or (folder / "COMMIT").is_file()
    if folder.is_dir() and not ours:
        return _from_hub(what, source, weights)
    if "://" in source or ours:
        return _from_run(what, source, weights)
    if source.startswith(("/", ".", "~")) or source.count("/") > 1:
        raise BackboneError(f"tower {what}: folder {source} does not exist")
    return _from_hub(what, source, weights)


def _from_hub(what: str, source: str, weights: bool) -> Loaded:
    """A folder in transformers' format, or a name."""
    from transformers import AutoConfig

    settings: Any = from_pretrained("configuration", what, source, AutoConfig)
    family = CLIP_PART[what] if settings.model_type == "clip" else str(settings.model_type)
    if family not in KINDS:
        raise BackboneError(
            f"tower {what}: {source} is a model of type {family}; those known here are {', '.join(KINDS)}"
        )
    if getattr(settings, "quantization_config", None) is not None:
        raise BackboneError(
            f"tower {what}: {source} is quantised, and its weights are no plain numbers: give the model that it was "
            "made from"
        )
    if not weights:
        part = getattr(settings, {"image": "vision_config", "text": "text_config"}[what], settings)
        return Loaded(_from_config(part), family, shapes_only=True)
    loaded = Loaded(from_pretrained("model", what, source, _class_of(family)), family)
    if what == "text":
        loaded.tokenizer = from_pretrained("tokenizer", what, source)
    else:
        facts = _preprocessing(source)
        if facts.get("do_normalize", True) and "image_mean" in facts:
            # Mean and deviation are of rescaled pixels; here pixels are 0 to 255.
            step = float(facts.get("rescale_factor", 1 / 255)) if facts.get("do_rescale", True) else 1.0
            loaded.mean = [float(value) / step for value in facts["image_mean"]]
            loaded.std = [float(value) / step for value in facts["image_std"]]
    return loaded


def _from_config(settings: Any) -> Any:
    """A model with random weights, in float32 whatever its configuration says."""
    from transformers import AutoModel

    return AutoModel.from_config(
        settings, attn_implementation=register_attention(), dtype=torch.float32, trust_remote_code=False
    )


def _preprocessing(source: str) -> dict[str, Any]:
    """What a picture model's source says about its pixels, where it says anything."""
    from transformers.utils.hub import cached_file

    causes = ("gated_repo", "missing_entries", "connection_errors")
    optional: dict[str, Any] = {f"_raise_exceptions_for_{cause}": False for cause in causes}
    found = cached_file(source, "preprocessor_config.json", **optional)
    return {} if found is None else dict(json.loads(Path(found).read_text(encoding="utf-8")))


def _class_of(family: str) -> Any:
    import transformers

    special = {"clip_vision_model": "CLIPVisionModel", "clip_text_model": "CLIPTextModel"}
    return getattr(transformers, special.get(family, "AutoModel"))


def from_pretrained(part: str, what: str, source: str, kind: Any = None) -> Any:
    """Configuration, model or tokenizer: from the folder or the local cache, else from the hub."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers import AutoTokenizer

    # Said each time, where None would ask a person on a terminal.
    options: dict[str, Any] = {"trust_remote_code": False}
    found: Any
    if part == "model":
        options |= {"use_safetensors": True, "attn_implementation": register_attention(), "dtype": torch.float32}
        options["output_loading_info"] = True
    try:
        with _quiet():
            try:
                found = (kind or AutoTokenizer).from_pretrained(source, local_files_only=True, **options)
            except OSError:
                if Path(source).is_dir():
                    raise
                _ask_hub()
                found = (kind or AutoTokenizer).from_pretrained(source, **options)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        raise BackboneError(_why_not(part, what, source, error)) from error
    if part != "model":
        return found
    model, info = found
    lost = [name for name in info["missing_keys"] if "pooler" not in name]
    if lost:
        raise BackboneError(f"tower {what}: {source} has no weights for {len(lost)} parameters, e.g. {sorted(lost)[0]}")
    other = sorted(name for name, value in model.named_parameters() if value.dtype != torch.float32)
    assert not other, f"{other[0]} is not float32 although the library was told so"
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """What is wrong is said by us, in a sentence, and not by the library in tables."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _ask_hub() -> None:
    """Raise ConnectionError at once if nobody answers: the library itself would try for half a minute, file by file."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=10)
    except Exception as error:  # which one depends on the HTTP client that the library has chosen
        raise ConnectionError(f"{constants.ENDPOINT} cannot be reached: {error}") from error


def _why_not(part: str, what: str, source: str, error: Exception) -> str:
    if "mismatch" in str(error):
        return (
            f"tower {what}: {source} has weights of other shapes than its config.json says: one of the two was changed"
        )
    if Path(source).is_dir():
        reason = " ".join(str(error).split())[:200]
        return f"tower {what}: {source} holds no usable {part} (it needs config.json and model.safetensors): {reason}"
    return (
        f"tower {what}: {source!r} is not a folder (of a model, or of a run of job=tower), is not in the local cache "
        f"of the Hugging Face hub, and could not be fetched ({type(error).__name__}): give a folder with config.json "
        f"and model.safetensors, or fetch it once where there is a network (hf download {source})"
    )


def _from_run(what: str, source: str, weights: bool) -> Loaded:
    """A tower that `train` made: its recipe says the architecture, its checkpoint holds the weights."""
    try:
        checkpoint = open_checkpoint(source)
    except (CheckpointError, FileNotFoundError) as error:
        raise BackboneError(f"tower {what}: {error}, and no config.json of transformers") from error
    recipe = checkpoint.meta["config"]
    part = (recipe.get("mope") or {}).get(what)
    if part is None or recipe["job"] != TOWER:
        raise BackboneError(
            f"tower {what}: run {source} trained job={recipe['job']} and has no {what} tower; train one with job: "
            f"tower and a section mope.{what}"
        )
    loaded = random_tower(what, TowerConfig.model_validate({**part, "source": None}))
    loaded.run_id = checkpoint.run_id
    if not weights:
        return loaded
    prefix = f"towers.{what}.model."
    found = {
        name.removeprefix(prefix): value
        for name, value in checkpoint_weights(checkpoint).items()
        if name.startswith(prefix)
    }
    missing = set(dict(loaded.model.named_parameters())) - set(found)
    if missing:
        raise BackboneError(f"tower {what}: {checkpoint.path} has no weight {sorted(missing)[0]}")
    # Not strict: parameters have been compared above, and checkpoints leave the buffers of a tower out.
    loaded.model.load_state_dict(found, strict=False)
    if what == "image":
        name = part["modality"] or _only(checkpoint.meta["schema"], "image")
        table = statistics_from_json(checkpoint.meta["statistics"]).modalities[name]
        loaded.mean, loaded.std = list(table.mean), list(table.std)
    return loaded


def _only(schema: dict[str, Any], kind: str) -> str:
    return next(str(spec["name"]) for spec in schema["modalities"] if spec["kind"] == kind)
