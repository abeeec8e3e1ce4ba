"""The architectures that can read a modality, and the few facts that differ between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

ATTENTION = "fleximoe"
SPEECH, SPECTROGRAM, TIMM = "wav2vec2", "audio-spectrogram-transformer", "timm_wrapper"


@dataclass(frozen=True)
class Family:
    """One architecture.

    Attributes:
        pooled: an object's one vector: its first token, the mean of the first two, or the mean of all.
        leading: tokens before those of patches. targets: layers that LoRA changes, by the ends of their names.
        sized: pictures have the one size that its positions were trained for. maps: gives maps (D, H, W), no sequence.
        plain: its attention is the library's, through the table of attention functions.
    """

    kind: Literal["text", "image", "waveform"]
    pooled: Literal["first", "first_two", "mean"]
    targets: tuple[str, ...]
    leading: int = 0
    sized: bool = False
    maps: bool = False
    plain: bool = True


_BERT = Family("text", "first", ("query", "value"))
_VIT = Family("image", "first", ("q_proj", "v_proj"), leading=1, sized=True)

FAMILIES: dict[str, Family] = {
    "bert": _BERT,
    "roberta": _BERT,
    "distilbert": Family("text", "first", ("q_lin", "v_lin")),
    "modernbert": Family("text", "first", ("Wqkv",)),
    "longformer": Family("text", "first", ("query", "value", "query_global", "value_global"), plain=False),
    "vit": _VIT,
    "dinov2": _VIT,
    "swin": Family("image", "mean", ("q_proj", "v_proj"), sized=True),
    "convnext": Family("image", "mean", ("pwconv1", "pwconv2"), maps=True, plain=False),
    "resnet": Family("image", "mean", ("convolution",), maps=True, plain=False),
    TIMM: Family("image", "mean", (), maps=True, plain=False),
    SPEECH: Family("waveform", "mean", ("q_proj", "v_proj")),
    SPECTROGRAM: Family("waveform", "first_two", ("q_proj", "v_proj"), leading=2),
}


def families_of(kind: str) -> list[str]:
    """Those that read modalities of this kind."""
    return [name for name, family in FAMILIES.items() if family.kind == kind]


def register_attention() -> str:
    """Put the library's own attention into its table under a name whose masks are made without looking at them.

    The library leaves a mask out where no token is padding, which it asks the device for: the host would wait for it in
    every pass. Returns the name.
    """
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    def mask(**options: object) -> object:
        return sdpa_mask(**{**options, "allow_is_bidirectional_skip": False})  # type: ignore[arg-type]

    AttentionInterface.register(ATTENTION, sdpa_attention_forward)
    AttentionMaskInterface.register(ATTENTION, mask)
    return ATTENTION


def settle(model: nn.Module) -> None:
    """Take out what nothing here reads, and what would draw random numbers of its own. In place."""
    pooler = getattr(model, "pooler", None)
    if pooler is not None and any(True for _ in pooler.parameters()):
        model.pooler = None  # type: ignore[assignment]
    for name, parameter in model.named_parameters():
        if name.rsplit(".", 1)[-1] in ("mask_token", "masked_spec_embed"):
            parameter.data.zero_()
            parameter.requires_grad_(False)
    config = model.config
    for key, value in (("apply_spec_augment", False), ("layerdrop", 0.0)):
        if hasattr(config, key):
            setattr(config, key, value)
