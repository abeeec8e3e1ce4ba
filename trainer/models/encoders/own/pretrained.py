"""A pretrained encoder in the place of a modality's own, or what one has said before, as data.

Both end in the same projection, which has the same weights at first and the same names: a model that learned on
features that `launch embed` has written is, with the encoder in front, a model of what they were made from.

Shape legend: P objects, N tokens of one, W width of the pretrained encoder, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from data_shards import ModalitySpec, VectorGroup
from trainer.config.encoders import PretrainedConfig
from trainer.models.encoder_groups import OWN, module_name
from trainer.models.encoders.layout import Encoder, GroupLayout, PresentPairs
from trainer.models.object_flops import EncoderCost
from trainer.models.pretrained.cost import encoder_cost
from trainer.models.pretrained.encoder import Looked, PretrainedEncoder
from trainer.models.pretrained.load import load_encoder


class Projection(nn.Module):
    """(P, N, W) features -> (P, N, D): scaled to one size, one linear map, and which token of the object it is."""

    def __init__(self, width: int, tokens: int, dim: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, dim)
        self.position_ND = nn.Parameter(torch.randn(tokens, dim) * 0.02)

    def forward(self, value_PNW: Tensor) -> Tensor:
        value_PNW = self.norm(value_PNW.to(self.norm.weight.dtype))
        return self.linear(value_PNW) + self.position_ND  # type: ignore[no-any-return]


class OwnEncoder(Encoder):
    """A modality through a pretrained encoder."""

    def __init__(self, pretrained: PretrainedEncoder, dim: int) -> None:
        super().__init__()
        self.tokens, self.pretrained = pretrained.tokens, pretrained
        self.project = Projection(pretrained.width, pretrained.tokens, dim)

    def lay_out(self, group: Any, block_P: Tensor, blocks: int, present: PresentPairs | None) -> Looked:
        return self.pretrained.look(group)

    def forward(self, group: Any, layout: GroupLayout) -> Tensor:
        looked: Looked = layout.own
        return self.project(self.pretrained(group, looked))  # type: ignore[no-any-return]

    def cost(self) -> EncoderCost:
        """What an object asks for."""
        return encoder_cost(self.pretrained)


class EmbeddedEncoder(Encoder):
    """A modality that holds the features of a pretrained encoder: (P, N * W).

    Raises:
        ValueError: its width is no multiple of the tokens.
    """

    def __init__(self, spec: ModalitySpec, config: PretrainedConfig, dim: int) -> None:
        super().__init__()
        self.tokens = config.count
        if spec.width % self.tokens:
            raise ValueError(
                f"model.encoders.{spec.name}.tokens={config.tokens}, and modality {spec.name} has {spec.width} "
                "features, which is no multiple of it: give the tokens that it was embedded with"
            )
        self.width = spec.width // self.tokens
        self.project = Projection(self.width, self.tokens, dim)

    def forward(self, group: VectorGroup, layout: GroupLayout) -> Tensor:
        return self.project(group.values_PF.unflatten(1, (self.tokens, self.width)))  # type: ignore[no-any-return]

    def cost(self) -> EncoderCost:
        """What an object asks for besides the projection: nothing."""
        return EncoderCost(self.tokens, self.width, (0.0, 0.0, 0.0), (0.0, 0.0, 0.0), 1)


def own_encoder(spec: ModalitySpec, config: PretrainedConfig, dim: int, weights: bool) -> OwnEncoder | EmbeddedEncoder:
    """The encoder of a modality that `model.encoders` names. Raises BackboneError, ValueError."""
    if spec.kind == "vector":
        return EmbeddedEncoder(spec, config, dim)
    return OwnEncoder(load_encoder(spec, config, weights), dim)


def own_learning_rate(configs: Mapping[str, PretrainedConfig], name: str) -> float | None:
    """Of a parameter of a FuseMoE model; None unless it belongs to an encoder that has a rate of its own."""
    for modality, config in configs.items():
        if f"encoders.{module_name(OWN + modality)}." in name and ".pretrained." in name:
            return config.lr
    return None


def frozen_bytes(model: nn.Module) -> int:
    """Of what is frozen of pretrained encoders, in the precision that each has."""
    return sum(
        parameter.nbytes
        for module in model.modules()
        if isinstance(module, PretrainedEncoder)
        for parameter in module.parameters()
        if not parameter.requires_grad
    )


def encoder_costs(model: nn.Module) -> dict[str, EncoderCost]:
    """Of the encoders of `model.encoders`, by the name of their group."""
    found = {}
    for name, encoder in own_encoders(model).items():
        found[name] = encoder.cost()
    return found


def own_encoders(model: Any) -> dict[str, OwnEncoder | EmbeddedEncoder]:
    """Of a FuseMoE model, by the name of their group."""
    found = {}
    for name in model.layout:
        encoder = model.encoder(name)
        # Of timed modalities the encoder of one object is inside.
        inner = getattr(encoder, "encoder", encoder)
        if isinstance(inner, OwnEncoder | EmbeddedEncoder):
            found[name] = inner
    return found
