"""Pretrained encoders of pictures and of text: found, loaded, checked, and read out.

A tower comes from a folder in the format of `transformers`, from a name on its hub (the local cache first), from a run
of job=tower, or, without a source, as random weights of a given architecture. Weights are read from safetensors only,
and no code that comes with a model is ever run.

Shapes: B samples, C channels, N tokens, D width.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from data_shards.statistics import ModalityStatistics
from trainer.models.mope.sites import KINDS, Site, find_sites, pooled, register_attention
from trainer.models.mope.tokens import VOCABULARY, ByteTokenizer, FolderTokenizer, Tokenizer
from trainer.models.standardise import Constant
from trainer.mope_sections import TowerConfig

if TYPE_CHECKING:
    from trainer.checkpoint import Checkpoint

PICTURES = ("vit", "swin", "clip_vision_model", "dinov2")
CLIP_PART = {"image": "clip_vision_model", "text": "clip_text_model"}


class BackboneError(ValueError):
    """A backbone is missing, cannot be loaded, or is another one than it should be. The text is one sentence."""


@dataclass
class Loaded:
    """A model of transformers, and what came with it."""

    model: nn.Module
    family: str
    tokenizer: Any = None
    mean: list[float] | None = None
    std: list[float] | None = None
    run_id: str | None = None


class Tower(nn.Module):
    """One encoder: pictures or texts of a batch -> hidden states -> one vector.

    Args:
        what: image or text. loaded: the model. config: readout, longest text.
        statistics: of the modality, for pictures whose source has no normalisation of its own.
    """

    def __init__(self, what: str, loaded: Loaded, config: TowerConfig, statistics: ModalityStatistics | None) -> None:
        super().__init__()
        self.what, self.family, self.readout = what, loaded.family, config.readout
        self.model, self.run_id = loaded.model, loaded.run_id
        self.sites: list[Site] = find_sites(loaded.model, loaded.family)
        self.tokenizer: Tokenizer | None = None
        self.mean = self.scale = None
        if what == "text":
            self.tokenizer = _tokenizer(loaded, config)
        else:
            mean, std = loaded.mean, loaded.std
            if config.normalise == "data" or mean is None or std is None:
                assert statistics is not None
                mean, std = list(statistics.mean), list(statistics.std)
            self.mean = Constant(torch.tensor(mean)[:, None, None])
            self.scale = Constant(1 / torch.tensor(std).clamp_min(1e-6)[:, None, None])
        self.trained = False

    @property
    def width(self) -> int:
        """D of the vector that is read out."""
        return self.sites[-1].width

    def train(self, mode: bool = True) -> Tower:
        """A frozen tower stays in evaluation mode: no dropout, no dropped path, no statistics that move."""
        return super().train(mode and self.trained)

    def pictures(self, values_BCHW: Tensor) -> Tensor:
        """Raw pictures (B, C, H, W) -> hidden states (B, N, D)."""
        assert self.mean is not None and self.scale is not None
        x_BCHW = (values_BCHW.float() - self.mean()) * self.scale()
        hidden_BND: Tensor = self.model(pixel_values=x_BCHW.to(self.dtype)).last_hidden_state
        return hidden_BND

    def feature_maps(self, values_BCHW: Tensor) -> list[Tensor]:
        """Raw pictures -> maps (B, D, H, W) after each stage, of a tower whose stages shrink the picture (swin)."""
        assert self.mean is not None and self.scale is not None
        x_BCHW = ((values_BCHW.float() - self.mean()) * self.scale()).to(self.dtype)
        output = self.model(pixel_values=x_BCHW, output_hidden_states=True)
        return list(output.reshaped_hidden_states[1:])

    def texts(self, texts: list[bytes], device: torch.device) -> tuple[Tensor, Tensor]:
        """Token numbers (B, N) and which of them are the text's own."""
        assert self.tokenizer is not None
        numbers_BN, valid_BN = self.tokenizer(texts)
        return numbers_BN.to(device), valid_BN.to(device)

    def encode_tokens(self, numbers_BN: Tensor, valid_BN: Tensor) -> Tensor:
        """Hidden states (B, N, D) of texts."""
        hidden_BND: Tensor = self.model(input_ids=numbers_BN, attention_mask=valid_BN.long()).last_hidden_state
        return hidden_BND

    def read(self, hidden_BND: Tensor, valid_BN: Tensor | None, tail_BPD: Tensor | None = None) -> Tensor:
        """(B, D); prompts that were tokens in the last layer (`tail_BPD`) count among the tokens of a mean."""
        if self.readout == "cls":
            if self.family == "clip_text_model":
                assert valid_BN is not None
                return hidden_BND[torch.arange(len(hidden_BND), device=hidden_BND.device), valid_BN.sum(1) - 1]
            return hidden_BND[:, 0]
        if tail_BPD is not None:
            hidden_BND = torch.cat([hidden_BND, tail_BPD], 1)
            if valid_BN is not None:
                valid_BN = torch.cat([valid_BN, valid_BN.new_ones(tail_BPD.shape[:2])], 1)
        return pooled(hidden_BND, valid_BN)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    @property
    def picture_shape(self) -> tuple[int, int, int]:
        """(C, H, W) that the architecture takes."""
        config: Any = self.model.config
        side = config.image_size
        height, width = (side, side) if isinstance(side, int) else side
        return int(config.num_channels), int(height), int(width)

    @property
    def patches(self) -> int:
        """Tokens of a picture in the first layer."""
        config: Any = self.model.config
        _, height, width = self.picture_shape
        return (height // int(config.patch_size)) * (width // int(config.patch_size))


def _tokenizer(loaded: Loaded, config: TowerConfig) -> Tokenizer:
    settings: Any = loaded.model.config
    longest = min(config.max_tokens, int(settings.max_position_embeddings))
    if config.tokenizer not in ("auto", "bytes"):
        return FolderTokenizer(_from_pretrained("tokenizer", "text", config.tokenizer), longest)
    if config.tokenizer == "auto" and loaded.tokenizer is not None:
        return FolderTokenizer(loaded.tokenizer, longest)
    if int(settings.vocab_size) < VOCABULARY:
        raise BackboneError(
            f"tower text has a vocabulary of {settings.vocab_size} tokens, and bytes need {VOCABULARY}: give its "
            "tokenizer's folder in mope.text.tokenizer, or vocab_size in mope.text.config"
        )
    return ByteTokenizer(longest)


def load_tower(what: str, config: TowerConfig, statistics: ModalityStatistics | None = None) -> Tower:
    """The tower `what` (image or text). Raises BackboneError."""
    register_attention()
    loaded = _random(what, config) if config.source is None else _from_source(what, config.source)
    if loaded.family not in KINDS or (loaded.family in PICTURES) != (what == "image"):
        fit = [name for name in KINDS if (name in PICTURES) == (what == "image")]
        raise BackboneError(f"tower {what}: family {loaded.family!r} is none of {', '.join(fit)}")
    return Tower(what, loaded, config, statistics)


def _random(what: str, config: TowerConfig) -> Loaded:
    from transformers import AutoConfig, AutoModel

    if config.family is None:
        raise BackboneError(f"tower {what} has neither mope.{what}.source nor mope.{what}.family: give one of them")
    try:
        settings = AutoConfig.for_model(config.family, **config.config)
        model = AutoModel.from_config(settings, attn_implementation=register_attention())
    except (TypeError, ValueError) as error:
        raise BackboneError(f"tower {what}: mope.{what}.config does not make a {config.family}: {error}") from error
    return Loaded(model, config.family)


def _from_source(what: str, source: str) -> Loaded:
    folder = Path(source)
    ours = (folder / "checkpoints").is_dir() or (folder / "COMMIT").is_file()
    if folder.is_dir() and not ours:
        return _from_hub(what, source)
    if "://" in source or ours:
        return _from_run(what, source)
    if source.startswith(("/", ".", "~")) or source.count("/") > 1:
        raise BackboneError(f"tower {what}: folder {source} does not exist")
    return _from_hub(what, source)


def _from_hub(what: str, source: str) -> Loaded:
    """A folder in transformers' format, or a name."""
    from transformers import AutoConfig

    settings: Any = _from_pretrained("configuration", what, source, AutoConfig)
    family = CLIP_PART[what] if settings.model_type == "clip" else str(settings.model_type)
    if family not in KINDS:
        raise BackboneError(
            f"tower {what}: {source} is a model of type {family}; those known here are {', '.join(KINDS)}"
        )
    model = _from_pretrained("model", what, source, _class_of(family))
    loaded = Loaded(model, family)
    if what == "text":
        loaded.tokenizer = _from_pretrained("tokenizer", what, source)
    elif (Path(source) / "preprocessor_config.json").is_file():
        facts = json.loads((Path(source) / "preprocessor_config.json").read_text(encoding="utf-8"))
        if facts.get("do_normalize", True) and "image_mean" in facts:
            loaded.mean = [255 * float(value) for value in facts["image_mean"]]
            loaded.std = [255 * float(value) for value in facts["image_std"]]
    return loaded


def _class_of(family: str) -> Any:
    import transformers

    special = {"clip_vision_model": "CLIPVisionModel", "clip_text_model": "CLIPTextModel"}
    return getattr(transformers, special.get(family, "AutoModel"))


def _from_pretrained(part: str, what: str, source: str, kind: Any = None) -> Any:
    """Configuration, model or tokenizer: from the folder or the local cache, else from the hub."""
    from transformers import AutoTokenizer

    options: dict[str, Any] = {}
    found: Any
    if part == "model":
        options = {"use_safetensors": True, "attn_implementation": register_attention(), "output_loading_info": True}
    try:
        try:
            found = (kind or AutoTokenizer).from_pretrained(source, local_files_only=True, **options)
        except OSError:
            if Path(source).is_dir():
                raise
            found = (kind or AutoTokenizer).from_pretrained(source, **options)
    except (OSError, ValueError, KeyError) as error:
        raise BackboneError(_why_not(part, what, source, error)) from error
    if part != "model":
        return found
    model, info = found
    lost = [name for name in info["missing_keys"] if "pooler" not in name]
    if lost:
        raise BackboneError(f"tower {what}: {source} has no weights for {len(lost)} parameters, e.g. {sorted(lost)[0]}")
    return model


def _why_not(part: str, what: str, source: str, error: Exception) -> str:
    if Path(source).is_dir():
        reason = " ".join(str(error).split())[:200]
        return f"tower {what}: {source} holds no usable {part} (it needs config.json and model.safetensors): {reason}"
    return (
        f"tower {what}: {source!r} is not a folder, is not in the local cache of the Hugging Face hub, and could not "
        f"be fetched ({type(error).__name__}): give a folder with config.json and model.safetensors, or fetch it once "
        f"where there is a network (hf download {source})"
    )


def _from_run(what: str, source: str) -> Loaded:
    """A tower that `train` made: its recipe says the architecture, its checkpoint holds the weights."""
    from trainer.checkpoint import CheckpointError, open_checkpoint
    from trainer.describe import statistics_from_json
    from trainer.export import checkpoint_weights

    try:
        checkpoint = open_checkpoint(source)
    except (CheckpointError, FileNotFoundError) as error:
        raise BackboneError(f"tower {what}: {error}, and no config.json of transformers") from error
    recipe = checkpoint.meta["config"]
    part = (recipe.get("mope") or {}).get(what)
    if part is None or recipe["job"] != "tower":
        raise BackboneError(
            f"tower {what}: run {source} trained job={recipe['job']} and has no {what} tower; train one with job: "
            f"tower and a section mope.{what}"
        )
    loaded = _random(what, TowerConfig.model_validate({**part, "source": None}))
    prefix = f"towers.{what}.model."
    weights = {
        name.removeprefix(prefix): value
        for name, value in checkpoint_weights(checkpoint).items()
        if name.startswith(prefix)
    }
    missing = set(dict(loaded.model.named_parameters())) - set(weights)
    if missing:
        raise BackboneError(f"tower {what}: {checkpoint.path} has no weight {sorted(missing)[0]}")
    loaded.model.load_state_dict(weights, strict=False)
    loaded.run_id = run_of(checkpoint)
    if what == "image":
        name = part["modality"] or _only(checkpoint.meta["schema"], "image")
        table = statistics_from_json(checkpoint.meta["statistics"]).modalities[name]
        loaded.mean, loaded.std = list(table.mean), list(table.std)
    return loaded


def _only(schema: dict[str, Any], kind: str) -> str:
    return next(str(spec["name"]) for spec in schema["modalities"] if spec["kind"] == kind)


def run_of(checkpoint: Checkpoint) -> str | None:
    """The MLflow run that wrote a checkpoint: as the checkpoint says, or as the run's folder does.

    A run that was started without a driver has its first checkpoints before the server has named it.
    """
    from trainer.tracking import RUN_FILE

    stored = checkpoint.meta["mlflow_run_id"]
    path = f"{checkpoint.path.rsplit('/', 2)[0]}/{RUN_FILE}"
    if stored is None and checkpoint.fs.exists(path):
        stored = json.loads(checkpoint.fs.cat_file(path))["run_id"]
    return stored  # type: ignore[no-any-return]


def digest_of(weights: dict[str, Tensor]) -> str:
    """SHA-256 of names, shapes and fp32 values."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name}|{tuple(value.shape)}|".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()
