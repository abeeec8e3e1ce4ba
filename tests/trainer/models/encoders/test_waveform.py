"""Waveforms: tokens are stretches of the signal's own length, and cost is of the samples that are there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from data_shards import DatasetSchema, ModalitySpec, TaskSpec, WaveformGroup
from data_shards.records.statistics import ModalityStatistics, SplitStatistics
from parallel import LocalDispatcher
from tests.allocations import Allocations
from trainer.config.sections import ModelConfig
from trainer.models.encoders.build import build_encoder
from trainer.models.encoders.layout import group_layout_of
from trainer.models.encoders.waveform import WaveformEncoder, entries_of, length_features, stretch_means

CHANNELS, PATCH, TOKENS, DIM = 2, 4, 3, 8
MEAN, STD = ((0.5, -1.0), (2.0, 3.0)), ((2.0, 0.5), (1.0, 4.0))


def encoder_of(declared: int | None, tokens: int = TOKENS, patch: int = PATCH) -> WaveformEncoder:
    """The encoder of two waveforms that are declared so long, as the model builds it."""
    specs = tuple(ModalitySpec(f"w{m}", "waveform", shape=(CHANNELS,), max_length=declared) for m in range(2))
    zeros = (0.0,) * CHANNELS
    statistics = SplitStatistics(
        1, {s.name: ModalityStatistics(1, (1, 1), MEAN[m], STD[m], zeros, zeros) for m, s in enumerate(specs)}
    )
    config = ModelConfig.model_validate({"dim": DIM, "heads": 2, "waveform": {"patch": patch, "tokens": tokens}})
    torch.manual_seed(0)
    encoder = build_encoder(
        [0, 1], DatasetSchema("d", specs, (TaskSpec("y", "binary"),)), statistics, config, LocalDispatcher(), 0
    )
    assert isinstance(encoder, WaveformEncoder)
    # As after training: biases and the weights of the length are no longer near 0.
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return encoder


def signals(*lengths: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [2 * torch.randn(length, CHANNELS, generator=generator) for length in lengths]


def means(patch_ND: Tensor, patches_P: Tensor, tokens: int) -> Tensor:
    return stretch_means(patch_ND, patches_P, tokens, entries_of(patches_P, tokens))


def encode(encoder: WaveformEncoder, *blocks: list[Tensor]) -> Tensor:
    """(P, T, D) of the signals of each block, as a batch holds them."""
    values = [value for block in blocks for value in block]
    counts_M = torch.tensor([len(block) for block in blocks] + [0] * (2 - len(blocks)))
    block_P = torch.repeat_interleave(torch.arange(2), counts_M)
    offsets = torch.tensor([0, *(len(value) for value in values)]).cumsum(0)
    joined_OC = torch.cat([torch.empty(0, CHANNELS), *values])
    group = WaveformGroup(block_P, torch.arange(len(values)), offsets, joined_OC)
    return encoder(group, group_layout_of(encoder, group, block_P, 2))  # type: ignore[no-any-return]


def reference(encoder: WaveformEncoder, value_LC: Tensor, block: int) -> Tensor:
    """(T, D) of one signal, written out: patches, network, the mean of each stretch, position, length."""
    mean, std = torch.tensor(MEAN[block]), torch.tensor(STD[block])
    scaled_LC = ((value_LC - mean) / std).clamp(-5, 5)
    first, second = encoder.network.first, encoder.network.second
    patches = []
    for start in range(0, len(value_LC), encoder.patch):
        piece = scaled_LC[start : start + encoder.patch]
        flat_X = functional.pad(piece, (0, 0, 0, encoder.patch - len(piece))).flatten()
        hidden = functional.gelu(flat_X @ first.weight[block, : len(flat_X)] + first.bias[block])
        patches.append(hidden @ second.weight[block] + second.bias[block])
    rows, n = [], len(patches)
    for token in range(encoder.tokens):
        if not n:
            own = [torch.zeros(DIM)]
        elif n < encoder.tokens:
            own = [patches[token * n // encoder.tokens]]
        else:
            own = [patch for i, patch in enumerate(patches) if i * encoder.tokens // n == token]
        rows.append(torch.stack(own).mean(0))
    length_X = length_features(torch.tensor([len(value_LC)]))[0]
    return (
        torch.stack(rows) + encoder.position_TD + length_X @ encoder.length.weight[block] + encoder.length.bias[block]
    )


@pytest.mark.parametrize("tokens", [1, 3, 8])
def test_tokens_are_what_one_signal_after_the_other_gives(tokens: int) -> None:
    encoder = encoder_of(None, tokens)
    lengths = (1, 3, 4, 5, 0, 8, 9, 12, 13, 40, 41, 203)
    blocks = signals(*lengths), signals(*lengths[::-1], seed=1)
    found_PTD = encode(encoder, *blocks)
    expected = [reference(encoder, value, block) for block, values in enumerate(blocks) for value in values]
    torch.testing.assert_close(found_PTD, torch.stack(expected), rtol=1e-5, atol=1e-5)


def test_stretches_by_hand() -> None:
    """Signals of 5, 2, 0 and 3 patches into 3 tokens; each patch is embedded as its own number."""
    patch_N1 = torch.tensor([[1.0], [2.0], [4.0], [8.0], [16.0], [10.0], [20.0], [7.0], [8.0], [9.0]])
    found_PT1 = means(patch_N1, torch.tensor([5, 2, 0, 3]), 3)
    assert found_PT1[..., 0].tolist() == [[1.5, 6.0, 16.0], [10.0, 10.0, 20.0], [0.0, 0.0, 0.0], [7.0, 8.0, 9.0]]


def test_every_patch_counts_in_exactly_one_token_and_none_is_empty() -> None:
    for patches in range(TOKENS, 60):
        weight_TN = means(torch.eye(patches), torch.tensor([patches]), TOKENS)[0]
        shares_T = (weight_TN > 0).sum(1)
        assert (weight_TN > 0).sum(0).tolist() == [1] * patches
        assert int(shares_T.max() - shares_T.min()) <= 1 and int(shares_T.min()) >= 1


def test_the_declared_length_changes_nothing() -> None:
    values = signals(17, 40, 3)
    true, default = (encoder_of(declared) for declared in (40, None))
    assert [tuple(p.shape) for p in true.parameters()] == [tuple(p.shape) for p in default.parameters()]
    assert torch.equal(encode(true, values), encode(default, values))


@pytest.mark.parametrize("length", [8, 12, 40, 400])
def test_a_short_signal_turned_round_in_time_has_other_tokens(length: int) -> None:
    """Whole patches are swapped, so each patch keeps its embedding and only their order differs."""
    encoder = encoder_of(None)
    (value_LC,) = signals(length)
    turned_LC = value_LC.view(-1, PATCH, CHANNELS).flip(0).reshape(length, CHANNELS)
    before_TD, after_TD = encode(encoder, [value_LC], [])[0], encode(encoder, [turned_LC], [])[0]
    assert (before_TD - after_TD).abs().max() > 0.1
    # The tokens are the same stretches, backwards, but for positions.
    if length // PATCH % TOKENS == 0:
        back_TD = (after_TD - encoder.position_TD).flip(0) + encoder.position_TD
        torch.testing.assert_close(before_TD, back_TD, rtol=0, atol=1e-5)


def test_the_length_is_seen_where_stretches_are_equal() -> None:
    """A constant signal looks the same in every stretch, however long it is."""
    encoder = encoder_of(None)
    token_PTD = encode(encoder, [torch.ones(n, CHANNELS) for n in (400, 408, 4000, 1_000_000)])
    for i in range(4):
        for j in range(i):
            assert (token_PTD[i] - token_PTD[j]).abs().max() > 0.05
    features_PX = length_features(torch.tensor([0, 1, 2, 3, 10_000_000]))
    assert torch.cdist(features_PX, features_PX).fill_diagonal_(9).min() > 0.3


def test_a_signal_is_the_same_whoever_is_beside_it() -> None:
    encoder = encoder_of(None)
    values, others = signals(5, 33, 0, 200), signals(1000, 7, seed=1)
    together_PTD = encode(encoder, values, others)
    for number, value in enumerate(values):
        torch.testing.assert_close(encode(encoder, [value])[0], together_PTD[number], rtol=0, atol=1e-5)
    for number, value in enumerate(others):
        torch.testing.assert_close(encode(encoder, [], [value])[0], together_PTD[4 + number], rtol=0, atol=1e-5)
    assert torch.equal(encode(encoder, values, others), together_PTD)


def test_no_signal_and_empty_signals() -> None:
    encoder = encoder_of(None)
    assert encode(encoder, []).shape == (0, TOKENS, DIM)
    empty_PTD = encode(encoder, signals(0, 0))
    torch.testing.assert_close(empty_PTD[0], reference(encoder, torch.empty(0, CHANNELS), 0))
    assert torch.equal(empty_PTD[0], empty_PTD[1])
    encode(encoder, []).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters() if p.grad is not None)


def test_gradients() -> None:
    patches_P = torch.tensor([5, 2, 0, 3, 1])
    patch_ND = torch.randn(11, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: means(x, patches_P, 3), (patch_ND,))
    encoder, values = encoder_of(None), [value.requires_grad_() for value in signals(9, 3, 40)]
    weight_PTD = torch.randn(3, TOKENS, DIM, generator=torch.Generator().manual_seed(1))
    mine = torch.autograd.grad((encode(encoder, values) * weight_PTD).sum(), [*encoder.parameters(), *values])
    slow = torch.stack([reference(encoder, value, 0) for value in values])
    expected = torch.autograd.grad((slow * weight_PTD).sum(), [*encoder.parameters(), *values])
    for found, wanted in zip(mine, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_long_stretches_are_summed_exactly_in_bf16() -> None:
    """A running sum of ones in bf16 stops at 256."""
    patch_ND = torch.ones(30_000, 1, dtype=torch.bfloat16).requires_grad_()
    token_PTD = means(patch_ND, torch.tensor([30_000]), 3)
    assert token_PTD.tolist() == [[[1.0], [1.0], [1.0]]]
    token_PTD.sum().backward()
    assert patch_ND.grad is not None and patch_ND.grad.dtype == torch.bfloat16
    assert patch_ND.grad.unique().tolist() == torch.tensor([1e-4], dtype=torch.bfloat16).tolist()
    few_ND = torch.ones(1, 1, dtype=torch.bfloat16).requires_grad_()
    means(few_ND, torch.tensor([1]), 300).sum().backward()
    assert few_ND.grad is not None and few_ND.grad.item() == 300


@pytest.mark.parametrize("lengths", [(50,) * 8, (1, 1, 1, 393, 1, 1, 1, 1)], ids=["equal", "one is long"])
def test_memory_follows_the_samples(lengths: tuple[int, ...]) -> None:
    """Neither the declared length nor the longest signal is multiplied by the number of signals."""
    encoder = encoder_of(None)
    samples, pairs = sum(lengths), len(lengths)
    with Allocations() as seen:
        encode(encoder, signals(*lengths)).sum().backward()
    patches = sum(-(-length // PATCH) for length in lengths)
    widest = max(2 * DIM, CHANNELS * PATCH)
    entries = sum(max(-(-length // PATCH), TOKENS) for length in lengths)
    bound = max(patches * widest, samples * CHANNELS, entries * DIM, pairs * TOKENS * DIM)
    parameters = max(p.numel() for p in encoder.parameters())
    assert samples * CHANNELS <= seen.largest <= max(bound, parameters)


def test_modalities_of_a_group_have_their_own_weights() -> None:
    encoder = encoder_of(None)
    (value,) = signals(30)
    assert (encode(encoder, [value])[0] - encode(encoder, [], [value])[0]).abs().max() > 0.1
