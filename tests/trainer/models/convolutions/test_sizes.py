"""What convolutions are said to compute and to keep, against what torch counts and autograd saves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from data_shards import ImageGroup, ModalitySpec, WaveformGroup
from tests.trainer.models.encoders.test_convolutions import encoder_of
from trainer.config.sections import ImageEncoderConfig, WaveformEncoderConfig
from trainer.models.convolutions.sizes import SignalSizes, picture_elements, picture_flops
from trainer.models.encoders.layout import Encoder, group_layout_of

DIM = 64


def run(encoder: Encoder, group: Any) -> tuple[float, int]:
    """FLOPs of a forward pass, and elements of different storages kept for the backward one, without parameters."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in encoder.parameters()}
    kept: dict[int, tuple[Tensor, int]] = {}

    def keep(tensor: Tensor) -> Tensor:
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in parameters and tensor.dtype == torch.float32:
            kept[pointer] = (tensor, tensor.untyped_storage().nbytes() // 4)
        return tensor

    layout = group_layout_of(encoder, group, torch.zeros(group.pairs, dtype=torch.int64), 1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), FlopCounterMode(display=False) as seen:
        encoder(group, layout)
    return seen.get_total_flops(), sum(size for _, size in kept.values())


@pytest.mark.parametrize(
    "changes",
    [
        {"network": "convolutions", "patch": 4},
        {"network": "convolutions", "patch": 2, "strides": [4, 3], "layers": 2, "kernel": 7, "tokens": 20},
        {"network": "convolutions", "front": "logmel", "strides": []},
        {"front": "logmel", "window": 3},
        {},
    ],
)
def test_signals(changes: dict[str, Any]) -> None:
    lengths = torch.tensor([1000, 0, 257, 5000])
    values = torch.randn(int(lengths.sum()), 3)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    encoder = encoder_of([ModalitySpec("w", "waveform", shape=(3,))], waveform=changes, dim=DIM)
    where = torch.zeros(4, dtype=torch.int64), torch.arange(4)
    flops, kept = run(encoder, WaveformGroup(*where, offsets, values))
    sizes = SignalSizes.of(WaveformEncoderConfig.model_validate(changes), 3, DIM)
    patches = float(sizes.patches(lengths).sum())
    length = 4 * 2 * 16 * DIM  # of the embedded lengths
    assert sizes.flops(patches, 4, 1) + length == pytest.approx(flops, rel=1e-6)
    # Of patches by themselves what they give counts too, which the means keep nothing of.
    unkept = 0 if sizes.stages else patches * DIM
    assert sizes.elements(patches, 4) - unkept == pytest.approx(kept, rel=0.06)
    assert sizes.expected_patches(6257, 4) == pytest.approx(patches, rel=0.1)


@pytest.mark.parametrize("changes", [{"network": "convolutions", "patch": 8}, {"network": "convolutions", "layers": 3}])
def test_pictures(changes: dict[str, Any]) -> None:
    encoder = encoder_of([ModalitySpec("p", "image", shape=(3, 32, 16), dtype="float32")], image=changes, dim=DIM)
    where = torch.zeros(5, dtype=torch.int64), torch.arange(5)
    flops, kept = run(encoder, ImageGroup(*where, torch.randn(5, 3, 32, 16)))
    config = ImageEncoderConfig.model_validate(changes)
    tokens = 5 * encoder.tokens
    assert tokens * picture_flops(config, 3, DIM) == pytest.approx(flops, rel=1e-6)
    assert tokens * picture_elements(config, 3, DIM) == pytest.approx(kept, rel=0.06)
