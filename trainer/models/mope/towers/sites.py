"""Where prompts enter the towers of `transformers`: one site per layer, whatever the architecture.

transformers calls every attention through a table of functions, and ours is one of them: it finds the prompts that a
hook on the layer has just made from the layer's input. Nothing of a tower is rewritten, so a site costs three facts
about an architecture: where its layers keep attention, the norm before it, and the projections of keys and values.

Shapes: B samples, N tokens, D width, P prompt rows, H heads, E width of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.models.mope.prompts.prompted_attention import prompted_attention

IMPLEMENTATION = "fleximoe_prompts"


@dataclass(frozen=True)
class LayerKind:
    """How a family's layers are built: paths from a layer to its attention, to the norm before it, to projections."""

    layer: str
    attention: str
    norm: str | None
    key: str = "k_proj"
    value: str = "v_proj"


def _bert(layer: str) -> LayerKind:
    """Norms follow attention here, so prompts enter as they are."""
    return LayerKind(layer, "attention.self", None, "key", "value")


KINDS: dict[str, LayerKind] = {
    "vit": LayerKind("ViTLayer", "attention", "layernorm_before"),
    "swin": LayerKind("SwinLayer", "attention", "layernorm_before"),
    "dinov2": LayerKind("Dinov2Layer", "attention", "norm1"),
    "clip_vision_model": LayerKind("CLIPEncoderLayer", "self_attn", "layer_norm1"),
    "clip_text_model": LayerKind("CLIPEncoderLayer", "self_attn", "layer_norm1"),
    "bert": _bert("BertLayer"),
    "roberta": _bert("RobertaLayer"),
    "electra": _bert("ElectraLayer"),
    "distilbert": LayerKind("TransformerBlock", "attention", None, "k_lin", "v_lin"),
}
PICTURES = ("vit", "swin", "clip_vision_model", "dinov2")


@dataclass
class Flow:
    """What the sites of one tower need during one forward pass; sites append their routing weights.

    `rows_B1N` marks the tokens that count in the pooled state (None: all do); `mapped` is per stage.
    """

    context_BX: Tensor
    mapped: list[Tensor] | None
    valid_BN: Tensor | None = None
    weights: list[Tensor] = field(default_factory=list)
    tail: Tensor | None = None


class Site:
    """One layer of a tower, with what is prompted there. Lives outside of the tower's module tree.

    Args:
        stage: number of the stage (towers whose width changes have several). index: place within the stage.
    """

    def __init__(self, name: str, layer: nn.Module, kind: LayerKind, stage: int, index: int) -> None:
        self.name, self.layer, self.stage, self.index = name, layer, stage, index
        self.attention = layer.get_submodule(kind.attention)
        self.norm = layer.get_submodule(kind.norm) if kind.norm else None
        self.key: nn.Module = getattr(self.attention, kind.key)
        self.value: nn.Module = getattr(self.attention, kind.value)
        self.width = int(self.key.in_features)  # type: ignore[arg-type]
        head_width = getattr(self.attention, "head_dim", None) or self.attention.attention_head_size
        self.heads = self.width // int(head_width)  # type: ignore[arg-type]
        self.prompts: nn.Module | None = None
        self.gate: Tensor | None = None
        self.flow: Flow | None = None
        self.as_tokens, self.last = False, False
        self._ready: tuple[Tensor, Tensor] | None = None
        self._rows = 0
        # A plain attribute: as a module or a parameter it would become a part of the frozen tower.
        object.__setattr__(self.attention, "prompt_site", self)
        layer.register_forward_pre_hook(self._before, with_kwargs=True)
        layer.register_forward_hook(self._after, with_kwargs=True)

    def _before(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._ready, self._rows = None, 0
        if self.prompts is None or self.flow is None:
            return None
        hidden_BND = args[0] if args else kwargs["hidden_states"]
        prompts_BPD, weights_BK = self.prompts(
            pooled(hidden_BND, self.flow.valid_BN),
            self.flow.context_BX,
            None if self.flow.mapped is None else self.flow.mapped[self.stage],
        )
        if weights_BK is not None:
            self.flow.weights.append(weights_BK)
        if self.as_tokens:
            return self._with_tokens(hidden_BND, prompts_BPD.to(hidden_BND.dtype), args, kwargs)
        self._ready = self.keys_and_values(prompts_BPD.to(hidden_BND.dtype))
        return None

    def _with_tokens(self, hidden_BND: Tensor, prompts_BPD: Tensor, args: tuple[Any, ...], kwargs: Any) -> Any:
        """The layer's input with the prompts behind the content, and its mask with room for them."""
        self._rows = prompts_BPD.shape[1]
        hidden_BND = torch.cat([hidden_BND, prompts_BPD], 1)
        mask = args[1] if len(args) > 1 else kwargs.get("attention_mask")
        if mask is not None:
            mask = functional.pad(mask, (0, self._rows, 0, self._rows), value=True if mask.dtype == torch.bool else 0.0)
        if len(args) > 1:
            return (hidden_BND, mask, *args[2:]), kwargs
        kwargs = {**kwargs, "attention_mask": mask} if "attention_mask" in kwargs else kwargs
        if args:
            return (hidden_BND,), kwargs
        return args, {**kwargs, "hidden_states": hidden_BND}

    def _after(self, layer: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        assert self._ready is None, f"attention of {self.name} was not ours: its prompts had no effect"
        if not self._rows:
            return None
        hidden = output[0] if isinstance(output, tuple) else output
        content, tail = hidden[:, : -self._rows], hidden[:, -self._rows :]
        if self.last and self.flow is not None:
            self.flow.tail = tail
        return (content, *output[1:]) if isinstance(output, tuple) else content

    def keys_and_values(self, prompts_BPD: Tensor) -> tuple[Tensor, Tensor]:
        """Prompts through the layer's own frozen norm and projections: two of (B, H, P, E)."""
        if self.norm is not None:
            prompts_BPD = self.norm(prompts_BPD)
        width = self.width // self.heads
        key, value = (
            project(prompts_BPD).unflatten(-1, (-1, width)).transpose(1, 2) for project in (self.key, self.value)
        )
        return key, value

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
        ready, self._ready = self._ready, None
        return prompted_attention(q, k, v, ready, mask, scale, self.gate)


def pooled(hidden_BND: Tensor, valid_BN: Tensor | None) -> Tensor:
    """(B, D) mean over a sample's tokens."""
    if valid_BN is None:
        return hidden_BND.mean(1)
    weight_BN1 = valid_BN[:, :, None].to(hidden_BND.dtype)
    return (hidden_BND * weight_BN1).sum(1) / weight_BN1.sum(1).clamp_min(1)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """The entry in transformers' table of attention functions."""
    scale = options.get("scaling")
    site: Site | None = getattr(module, "prompt_site", None)
    if site is None:
        out = prompted_attention(query, key, value, None, attention_mask, scale, None)
    else:
        out = site.attend(query, key, value, attention_mask, scale)
    return out.transpose(1, 2).contiguous(), None


def register_attention() -> str:
    """Put our attention into transformers' tables; returns the name that a tower's configuration asks for it with."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    AttentionInterface.register(IMPLEMENTATION, _attention)
    masks: Callable[..., Any] = eager_mask
    AttentionMaskInterface.register(IMPLEMENTATION, masks)
    return IMPLEMENTATION


def find_sites(model: nn.Module, family: str) -> list[Site]:
    """A site for every layer of a tower, in order."""
    kind = KINDS[family]
    found: list[Site] = []
    stages: dict[str, int] = {}
    for name, layer in model.named_modules():
        if type(layer).__name__ == kind.layer:
            stage = name.rsplit(".", 1)[0]
            index = stages.setdefault(stage, 0)
            stages[stage] += 1
            found.append(Site(name, layer, kind, list(stages).index(stage), index))
    assert found, f"no layer of kind {kind.layer} in a tower of family {family}"
    found[-1].last = True
    return found
