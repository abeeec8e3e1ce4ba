"""Which encoders, and which backbone, a model was trained on: what a checkpoint says, and what is refused later."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from trainer.models.pretrained.encoder import PretrainedEncoder
from trainer.models.pretrained.loading.backbone import backbone_of

FEATURES = ("tokens", "dtype", "max_tokens", "max_seconds")


def encoders_of(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Modality -> what its pretrained encoder is: digest, family, source, and what decides about its features."""
    encoders = [module for module in model.modules() if isinstance(module, PretrainedEncoder)]
    return {encoder.modality: encoder.describe() for encoder in encoders}


def encoder_counts(model: nn.Module) -> dict[str, dict[str, int]]:
    """Modality -> objects that its pretrained encoder has read, cut and known, of this rank."""
    encoders = [module for module in model.modules() if isinstance(module, PretrainedEncoder)]
    return {encoder.modality: encoder.counts for encoder in encoders}


def check_frozen(where: str, about: Mapping[str, Any], model: nn.Module) -> None:
    """Raise ValueError if what `where` holds, and describes by `about`, was trained on other encoders, or on another
    backbone, than the model's."""
    own, stored = backbone_of(model), about.get("backbone")
    if stored is not None and own is not None and stored["digest"] != own["digest"]:
        raise ValueError(
            f"{where} was trained on a backbone with digest {stored['digest'][:12]}, and the one that was loaded has "
            f"{own['digest'][:12]}: give the backbone that it was trained on (mope.host, or mope.image.source and "
            "mope.text.source)"
        )
    loaded = encoders_of(model)
    for name, before in (about.get("encoders") or {}).items():
        now = loaded.get(name)
        if now is None:
            continue
        if now["digest"] != before["digest"]:
            raise ValueError(
                f"{where} was trained with the encoder {before['source']} of digest {before['digest'][:12]}, and "
                f"{now['source']} has {now['digest'][:12]}: give the one that it was trained with in "
                f"model.encoders.{name}.source"
            )
        for key in FEATURES:
            if now[key] != before[key]:
                raise ValueError(
                    f"{where} was trained with model.encoders.{name}.{key}={before[key]}, and this recipe has "
                    f"{now[key]}: its features are others; give the one that it was trained with"
                )
