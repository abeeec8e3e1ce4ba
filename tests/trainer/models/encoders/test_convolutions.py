"""Encoders of convolutions: what they give is torch's convolutions of one object alone, whoever is beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from data_shards import DatasetSchema, ImageGroup, ModalitySpec, TaskSpec
from data_shards.records.statistics import ModalityStatistics, SplitStatistics
from parallel import LocalDispatcher
from trainer.config.sections import ModelConfig
from trainer.models.convolutions.sizes import merges_of, widths_of
from trainer.models.convolutions.stages import Stages
from trainer.models.encoders.build import build_encoder, sized
from trainer.models.encoders.image import ImageEncoder, PictureStages
from trainer.models.encoders.layout import Encoder, group_layout_of
from trainer.models.layers.grouped_linear import GroupedLinear

DIM = 32


def encoder_of(specs: list[ModalitySpec], **sections: Any) -> Encoder:
    """With the weights of a trained one: biases are not 0. Means are 0.5, deviations 2."""
    channels = specs[0].width if specs[0].kind == "waveform" else specs[0].shape[0]
    moments = tuple((value,) * channels for value in (0.5, 2.0, 0.0, 0.0))
    tables = {spec.name: ModalityStatistics(1, (1,) * channels, *moments) for spec in specs}
    config = ModelConfig.model_validate({"dim": DIM, "heads": 2} | sections)
    schema = DatasetSchema("d", tuple(specs), (TaskSpec("y", "binary"),))
    torch.manual_seed(0)
    statistics = SplitStatistics(1, tables)
    encoder = build_encoder(list(range(len(specs))), schema, statistics, config, LocalDispatcher(), 0)
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    return encoder


def kernel_of(layer: GroupedLinear, block: int, taps: tuple[int, ...]) -> Tensor:
    """(out, in, *taps): the layer's weights as torch's convolutions want them."""
    weight_KF = layer.weight[block, : layer.inputs]
    weight = weight_KF.view(*taps, -1, weight_KF.shape[1])
    return weight.movedim(-1, 0).movedim(-1, 1)


def stages_reference(
    stages: Stages, x_1F: Tensor, block: int, sides: tuple[int, ...], taps: int, convolve: Callable[..., Tensor]
) -> Tensor:
    """(1, W, ...) of one object, channels first, by torch's own convolutions."""
    spatial = tuple(range(2, x_1F.dim()))

    def norm(x: Tensor) -> Tensor:
        last = x.movedim(1, -1)
        return functional.layer_norm(last, last.shape[-1:]).movedim(-1, 1)

    x = x_1F
    for side, embed, stage in zip(sides, stages.embed, stages.stages, strict=True):
        # Rows that lack their neighbours are merged with zeros.
        wanted = [(-x.shape[d]) % side for d in reversed(spatial)]
        x = functional.pad(x, [n for missing in wanted for n in (0, missing)])
        x = convolve(x, kernel_of(embed, block, (side,) * len(spatial)), embed.bias[block], stride=side)
        for own in stage:
            kernel = kernel_of(own.convolution, block, (taps,) * len(spatial))
            hidden = functional.gelu(convolve(norm(x), kernel, own.convolution.bias[block], padding=taps // 2))
            x = x + convolve(hidden, kernel_of(own.output, block, (1,) * len(spatial)), own.output.bias[block])
    return norm(x)


def test_sizes() -> None:
    assert [merges_of(patch) for patch in (1, 2, 4, 6, 8, 16, 7)] == [
        (1,), (2,), (2, 2), (2, 3), (2, 2, 2), (4, 2, 2), (7,)
    ]  # fmt: skip
    assert [widths_of(dim, 3) for dim in (64, 32, 128, 8)] == [(16, 32, 64), (16, 16, 32), (32, 64, 128), (8, 8, 8)]


def test_a_recipe_that_names_nothing_new_has_the_weights_of_before() -> None:
    """So checkpoints of before are read by the recipe that they keep."""
    both = {
        "waveform": encoder_of([ModalitySpec("w", "waveform", shape=(2,), rate=100.0)]),
        "image": encoder_of([ModalitySpec("p", "image", shape=(3, 8, 8), dtype="float32")]),
    }
    found = {kind: {name: tuple(p.shape) for name, p in encoder.named_parameters()} for kind, encoder in both.items()}
    layers = {"network.second.weight": (1, 64, 32), "network.second.bias": (1, 32), "network.first.bias": (1, 64)}
    assert found == {
        "waveform": {
            **layers, "network.first.weight": (1, 32, 64), "position_TD": (8, 32), "length.weight": (1, 16, 32),
            "length.bias": (1, 32),
        },
        "image": {**layers, "network.first.weight": (1, 48, 64), "position_TD": (4, 32)},
    }  # fmt: skip


def test_a_new_run_has_convolutions_where_pictures_are_large_enough_for_one() -> None:
    """The other keys stay, and a named network is the one."""

    def network(*sides: tuple[int, int], **image: Any) -> str | None:
        specs = [ModalitySpec(f"p{m}", "image", shape=(1, *side)) for m, side in enumerate(sides)]
        schema = DatasetSchema("d", (*specs, ModalitySpec("v", "vector", shape=(3,))), (TaskSpec("y", "binary"),))
        config = ModelConfig.model_validate({"image": {"patch": 2, **image}, "encoders": encoders})
        found = sized(config, schema, SplitStatistics(1, {}))
        assert found.image.model_copy(update={"network": None}) == config.image.model_copy(update={"network": None})
        return found.image.network

    encoders: dict[str, Any] = {}
    assert network((8, 8)) == network((4, 12), (64, 64)) == network((7, 9), patch=7) == "convolutions"
    assert network((4, 2)) == network((8, 8), (2, 16)) == "patches"
    assert network((8, 8), network="patches") == "patches" and network((2, 2), network="convolutions") == "convolutions"
    assert network() is None
    encoders["p0"] = {"source": "somewhere"}
    assert network((8, 8)) is None and network((2, 2), (8, 8)) == "convolutions"


PICTURES = (2, 12, 8)


def picture_encoder(**changes: Any) -> ImageEncoder:
    specs = [ModalitySpec(f"p{m}", "image", shape=PICTURES, dtype="float32") for m in range(2)]
    encoder = encoder_of(specs, image={"network": "convolutions", "patch": 4, "layers": 2, **changes})
    assert isinstance(encoder, ImageEncoder)
    return encoder


def encode_pictures(encoder: ImageEncoder, *blocks: Tensor) -> Tensor:
    values = torch.cat(blocks)
    block_P = torch.repeat_interleave(torch.arange(len(blocks)), torch.tensor([len(block) for block in blocks]))
    group = ImageGroup(block_P, torch.arange(len(values)), values)
    return encoder(group, group_layout_of(encoder, group, block_P, 2))  # type: ignore[no-any-return]


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_pictures_are_torchs_convolutions_one_after_the_other(patch: int) -> None:
    encoder = picture_encoder(patch=patch)
    generator = torch.Generator().manual_seed(0)
    blocks = [2 * torch.randn(number, *PICTURES, generator=generator) for number in (3, 2)]
    found_PTD = encode_pictures(encoder, *blocks)
    assert found_PTD.shape == (5, 12 // patch * 8 // patch, DIM)
    assert isinstance(encoder.network, PictureStages)
    output, rows = encoder.network.output, []
    for block, pictures in enumerate(blocks):
        for picture in pictures:
            x = ((picture[None] - 0.5) / 2).clamp(-5, 5)
            last = stages_reference(encoder.network.stages, x, block, merges_of(patch), 3, functional.conv2d)
            own_TW = last[0].flatten(1).T
            rows.append(own_TW @ output.weight[block] + output.bias[block] + encoder.position_TD)
    torch.testing.assert_close(found_PTD, torch.stack(rows), rtol=1e-4, atol=5e-5)


def test_a_picture_is_the_same_whoever_is_beside_it() -> None:
    encoder = picture_encoder()
    pictures = torch.randn(4, *PICTURES, generator=torch.Generator().manual_seed(0))
    together_PTD = encode_pictures(encoder, pictures[:2], 100 * pictures[2:])
    torch.testing.assert_close(encode_pictures(encoder, pictures[1:2])[0], together_PTD[1], rtol=0, atol=5e-6)
    assert torch.equal(encode_pictures(encoder, pictures[:2], 100 * pictures[2:]), together_PTD)


def test_a_token_of_a_picture_sees_beyond_its_patch_and_that_of_patches_does_not() -> None:
    pictures = torch.zeros(2, *PICTURES)
    pictures[1, :, 0, 4] = 3.0  # just right of the first patch
    for network, seen in (("convolutions", True), ("patches", False)):
        token_PTD = encode_pictures(picture_encoder(network=network), pictures)
        assert bool((token_PTD[0, 0] - token_PTD[1, 0]).abs().max() > 1e-3) == seen
