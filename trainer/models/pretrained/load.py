"""The encoder of a modality, loaded."""

from __future__ import annotations

import torch

from data_shards import ModalitySpec
from trainer.config.encoders import PretrainedConfig
from trainer.models.pretrained.encoder import PretrainedEncoder
from trainer.models.pretrained.loading.backbone import BackboneError
from trainer.models.pretrained.loading.families import FAMILIES, SPEECH, families_of, register_attention
from trainer.models.pretrained.loading.sources import Asked, Loaded, load_source
from trainer.models.pretrained.pictures import PretrainedPictures
from trainer.models.pretrained.sounds import PretrainedSpectrogram, PretrainedSpeech
from trainer.models.pretrained.texts import PretrainedTexts

READ = ("text", "image", "waveform")


def load_encoder(spec: ModalitySpec, config: PretrainedConfig, weights: bool = True) -> PretrainedEncoder:
    """The encoder that `model.encoders.NAME` asks for, of a text, picture or waveform.

    Without `weights`, of its source only the configuration is read.
    The model that is built around it is drawn as if it were not there.

    Raises:
        BackboneError: it cannot be had, or does not fit the modality; one sentence.
    """
    if spec.kind not in READ:
        raise BackboneError(no_encoder(spec))
    label, key = f"encoder of {spec.name}", f"model.encoders.{spec.name}"
    try:
        attention = register_attention()
    except ImportError as error:
        raise BackboneError(f"{key} needs transformers: pip install 'fleximoe[hf]'") from error
    asked = Asked(label, key, spec.kind, families_of(spec.kind), attention)
    with torch.random.fork_rng(devices=[]):
        return _made(asked, load_source(asked, config.source, weights), config, spec)


def no_encoder(spec: ModalitySpec) -> str:
    """What is said of a modality that pretrained encoders do not read."""
    return (
        f"model.encoders.{spec.name}: pretrained encoders read texts, pictures and waveforms, and modality {spec.name} "
        f"is of kind {spec.kind}: leave it out"
    )


def _made(asked: Asked, loaded: Loaded, config: PretrainedConfig, spec: ModalitySpec) -> PretrainedEncoder:
    if loaded.family not in FAMILIES or FAMILIES[loaded.family].kind != spec.kind:
        raise BackboneError(
            f"{asked.label}: {config.source} is a model of type {loaded.family}; those known here are "
            f"{', '.join(asked.families)}"
        )
    if spec.kind == "text":
        return PretrainedTexts(asked, loaded, config)
    if spec.kind == "image":
        return PretrainedPictures(asked, loaded, config, spec)
    kind = PretrainedSpeech if loaded.family == SPEECH else PretrainedSpectrogram
    return kind(asked, loaded, config, spec)
