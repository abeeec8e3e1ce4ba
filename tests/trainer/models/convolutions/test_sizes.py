"""What convolutions are said to compute and to keep, against what torch counts and autograd saves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from data_shards import ImageGroup, ModalitySpec
from tests.trainer.models.encoders.test_convolutions import encoder_of
from trainer.config.sections import ImageEncoderConfig
from trainer.models.convolutions.sizes import picture_elements, picture_flops
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


@pytest.mark.parametrize("changes", [{"network": "convolutions", "patch": 8}, {"network": "convolutions", "layers": 3}])
def test_pictures(changes: dict[str, Any]) -> None:
    encoder = encoder_of([ModalitySpec("p", "image", shape=(3, 32, 16), dtype="float32")], image=changes, dim=DIM)
    where = torch.zeros(5, dtype=torch.int64), torch.arange(5)
    flops, kept = run(encoder, ImageGroup(*where, torch.randn(5, 3, 32, 16)))
    config = ImageEncoderConfig.model_validate(changes)
    tokens = 5 * encoder.tokens
    assert tokens * picture_flops(config, 3, DIM) == pytest.approx(flops, rel=1e-6)
    assert tokens * picture_elements(config, 3, DIM) == pytest.approx(kept, rel=0.06)
