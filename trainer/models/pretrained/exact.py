"""Parts of other people's models that a GPU would round, or that would not run at all, in half precision. In place.

Names and weights stay as they are, and so do the results in float32.

Shapes: P objects, F frames, H heads, L positions of a window.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from parallel.moe.segments import look_up
from trainer.models.layers.embedding import make_embeddings_exact

BatchNorm = nn.modules.batchnorm._BatchNorm


def make_exact(model: nn.Module) -> None:
    """Gradients of tables are added up in fp32; batch norms, whose statistics are fp32, are computed in it."""
    make_embeddings_exact(model)
    for module in model.modules():
        if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d):
            module.__class__ = FixedBatchNorm
        elif type(module).__name__ == "BatchNormAct2d":
            module.__class__ = FixedBatchNormAct
        elif type(module).__name__ == "SwinRelativePositionBias":
            module.__class__ = RelativePositionBias


class FixedBatchNorm(BatchNorm):
    """By the statistics that it came with, whatever the mode. Its weights may follow the model, these do not."""

    def forward(self, input: Tensor) -> Tensor:
        weight, bias = (None if value is None else value.float() for value in (self.weight, self.bias))
        mean, variance = self.running_mean, self.running_var
        output = functional.batch_norm(input.float(), mean, variance, weight, bias, False, 0.0, self.eps)
        return output.to(input.dtype)


class FixedBatchNormAct(FixedBatchNorm):
    """timm's, with the activation behind it."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(input)))  # type: ignore[no-any-return]


class RelativePositionBias(nn.Module):
    """Swin's: each pair of positions in a window looks up the bias of its distance. Returns (1, H, L, L)."""

    relative_position_bias_table: Tensor
    relative_position_index: Tensor
    window_area: int

    def forward(self) -> Tensor:
        pair_LLH = look_up(self.relative_position_bias_table, self.relative_position_index.view(-1))
        pair_LLH = pair_LLH.view(self.window_area, self.window_area, -1)
        return pair_LLH.permute(2, 0, 1).contiguous()[None]


def ask_nothing_of_lengths(model: Any) -> None:
    """wav2vec2 would copy a number to the device for its mask, and the host would wait for it in every pass."""
    model._get_feature_vector_attention_mask = MethodType(_valid_frames, model)


def _valid_frames(model: Any, frames: int, valid_PS: Tensor, add_adapter: bool | None = None) -> Tensor:
    """(P, F) bool."""
    number_P = model._get_feat_extract_output_lengths(valid_PS.sum(1), add_adapter)
    return torch.arange(frames, device=valid_PS.device) < number_P[:, None]
