"""Encoders of convolutions: what they give is torch's convolutions of one object alone, whoever is beside it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from data_shards import DatasetSchema, ImageGroup, ModalitySpec, TaskSpec, WaveformGroup
from data_shards.records.statistics import ModalityStatistics, SplitStatistics
from parallel import LocalDispatcher
from tests.allocations import Allocations
from trainer.config.sections import ModelConfig, WaveformEncoderConfig
from trainer.models.convolutions.sizes import merges_of, widths_of
from trainer.models.convolutions.stages import Stages
from trainer.models.encoders.build import build_encoder
from trainer.models.encoders.image import ImageEncoder, PictureStages
from trainer.models.encoders.layout import Encoder, group_layout_of
from trainer.models.encoders.waveform import WaveformEncoder, entries_of, length_features, stretch_means
from trainer.models.layers.grouped_linear import GroupedLinear

DIM, CHANNELS = 32, 2
SIGNALS: dict[str, Any] = {"network": "convolutions", "patch": 2, "strides": [2, 3], "tokens": 3, "layers": 2}
LENGTHS = (1, 2, 5, 11, 12, 13, 0, 24, 25, 60, 203)


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


def signal_encoder(rates: tuple[float | None, ...] = (None, None), **changes: Any) -> WaveformEncoder:
    specs = [ModalitySpec(f"w{m}", "waveform", shape=(CHANNELS,), rate=rate) for m, rate in enumerate(rates)]
    encoder = encoder_of(specs, waveform={**SIGNALS, **changes})
    assert isinstance(encoder, WaveformEncoder)
    return encoder


def signals(*lengths: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [2 * torch.randn(length, CHANNELS, generator=generator) for length in lengths]


def encode(encoder: WaveformEncoder, *blocks: list[Tensor]) -> Tensor:
    """(P, T, D) of the signals of each of two modalities, as a batch holds them."""
    values = [value for block in blocks for value in block]
    counts_M = torch.tensor([len(block) for block in blocks] + [0] * (2 - len(blocks)))
    block_P = torch.repeat_interleave(torch.arange(2), counts_M)
    offsets = torch.tensor([0, *(len(value) for value in values)]).cumsum(0)
    joined_OC = torch.cat([torch.empty(0, CHANNELS), *values])
    group = WaveformGroup(block_P, torch.arange(len(values)), offsets, joined_OC)
    return encoder(group, group_layout_of(encoder, group, block_P, 2))  # type: ignore[no-any-return]


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


def reference(encoder: WaveformEncoder, value_LC: Tensor, block: int, strides: tuple[int, ...], taps: int) -> Tensor:
    """(T, D) of one signal."""
    length, last = torch.tensor([len(value_LC)]), (encoder.output.weight[block], encoder.output.bias[block])
    assert isinstance(encoder.network, Stages)
    row_RW = torch.empty(0, encoder.output.inputs)
    if len(value_LC):
        scaled_1CL = ((value_LC - 0.5) / 2).clamp(-5, 5).T[None]
        sides = (encoder.patch, *strides)
        row_RW = stages_reference(encoder.network, scaled_1CL, block, sides, taps, functional.conv1d)[0].T
    rows = torch.tensor([len(row_RW)])
    mean_TW = stretch_means(row_RW, rows, encoder.tokens, entries_of(rows, encoder.tokens))[0]
    own_TD = mean_TW @ last[0][: encoder.output.inputs] + last[1] + encoder.position_TD
    return own_TD + length_features(length)[0] @ encoder.length.weight[block] + encoder.length.bias[block]


@pytest.mark.parametrize(("strides", "kernel"), [((2, 3), 3), ((), 5), ((4,), 1), ((2, 2), 7)])
def test_signals_are_torchs_convolutions_one_after_the_other(strides: tuple[int, ...], kernel: int) -> None:
    encoder = signal_encoder(strides=strides, kernel=kernel)
    blocks = signals(*LENGTHS), signals(*LENGTHS[::-1], seed=1)
    found_PTD = encode(encoder, *blocks)
    expected = [
        reference(encoder, value, block, strides, kernel) for block, values in enumerate(blocks) for value in values
    ]
    torch.testing.assert_close(found_PTD, torch.stack(expected), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("front", ["raw", "logmel"])
@pytest.mark.parametrize("network", ["patches", "convolutions"])
def test_a_signal_is_the_same_whoever_is_beside_it(front: str, network: str) -> None:
    encoder = signal_encoder((100.0, 500.0), front=front, network=network, patch=4, window=3, bands=5)
    values, others = signals(5, 33, 0, 200), signals(1000, 7, seed=1)
    # A loud neighbour would show.
    together_PTD = encode(encoder, values, [value * 100 for value in others])
    for number, value in enumerate(values):
        torch.testing.assert_close(encode(encoder, [value])[0], together_PTD[number], rtol=0, atol=5e-6)
    again_PTD = encode(encoder, values, [value * 100 for value in others])
    assert torch.equal(again_PTD, together_PTD)
    swapped_PTD = encode(encoder, values[::-1], [])
    torch.testing.assert_close(swapped_PTD.flip(0), together_PTD[:4], rtol=0, atol=5e-6)


@pytest.mark.parametrize("front", ["raw", "logmel"])
@pytest.mark.parametrize("network", ["patches", "convolutions"])
def test_no_signal_and_empty_signals(front: str, network: str) -> None:
    encoder = signal_encoder(front=front, network=network, patch=4)
    assert encode(encoder, []).shape == (0, 3, DIM)
    empty_PTD = encode(encoder, signals(0, 0), signals(0, 9))
    assert torch.isfinite(empty_PTD).all() and torch.equal(empty_PTD[0], empty_PTD[1])
    encode(encoder, []).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters() if p.grad is not None)


def test_gradients_are_those_of_torchs_convolutions() -> None:
    encoder, values = signal_encoder(), [value.requires_grad_() for value in signals(9, 3, 40)]
    weight_PTD = torch.randn(3, 3, DIM, generator=torch.Generator().manual_seed(1))
    wanted = [*encoder.parameters(), *values]
    mine = torch.autograd.grad((encode(encoder, values) * weight_PTD).sum(), wanted)
    slow = torch.stack([reference(encoder, value, 0, (2, 3), 3) for value in values])
    expected = torch.autograd.grad((slow * weight_PTD).sum(), wanted)
    for found, own in zip(mine, expected, strict=True):
        torch.testing.assert_close(found, own, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("lengths", [(600,) * 8, (60, 60, 60, 4380, 60, 60, 60, 60)], ids=["equal", "one is long"])
def test_memory_follows_the_samples(lengths: tuple[int, ...]) -> None:
    """The largest tensor is what a block looks at, of the samples that are there and the room between signals."""
    encoder = signal_encoder()
    with Allocations() as seen:
        encode(encoder, signals(*lengths)).sum().backward()
    stride = encoder.sizes.stride
    patches = sum(-(-length // (2 * stride)) + 1 for length in lengths) * stride
    looked_at = patches * 3 * 16
    assert looked_at <= seen.largest <= 1.3 * looked_at


def test_sizes() -> None:
    assert [merges_of(patch) for patch in (1, 2, 4, 6, 8, 16, 7)] == [
        (1,), (2,), (2, 2), (2, 3), (2, 2, 2), (4, 2, 2), (7,)
    ]  # fmt: skip
    assert [widths_of(dim, 3) for dim in (64, 32, 128, 8)] == [(16, 32, 64), (16, 16, 32), (32, 64, 128), (8, 8, 8)]
    with pytest.raises(ValueError, match=r"model\.waveform\.kernel=4 has no row in its middle"):
        WaveformEncoderConfig(kernel=4)


def test_a_recipe_that_names_nothing_new_has_the_weights_of_before() -> None:
    """So checkpoints of before are read by the recipe that they keep."""
    both = {
        "waveform": encoder_of([ModalitySpec("w", "waveform", shape=(CHANNELS,), rate=100.0)]),
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
