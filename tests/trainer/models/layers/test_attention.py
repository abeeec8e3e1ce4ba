"""Attention over sequences of any lengths, in any number, as a GPU is asked for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from tests import varlen_on_cpu  # noqa: F401
from tests.gpu_branch import Watch, gpu_branch
from trainer.models.layers import attention, ragged
from trainer.models.layers.attention import attend_ragged, attend_spans, attention_reference, scaled_dot_product
from trainer.models.layers.embedding import Embedding, make_embeddings_exact
from trainer.models.layers.grouped_linear import Blocks, GroupedLinear
from trainer.models.layers.token_layout import Span


class Sequences(TorchDispatchMode):
    """How many sequences every kernel of attention is given."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "scaled_dot_product" in func._schema.name and "backward" not in func._schema.name:
            self.found.append(len(args[0]))
        if func._schema.name == "torch_attn::_varlen_attn":
            self.found.append(len(args[3]) - 1)
        return func(*args, **(kwargs or {}))


def test_more_sequences_than_a_kernel_takes_are_cut() -> None:
    """1,024 records of 64 modalities are 65,536 pairs, one more than the grid has room for."""
    assert ragged.MOST_SEQUENCES == 65_535
    pairs, tokens = 1024 * 64, 2
    qkv_ND = torch.randn(pairs * tokens, 3 * 8)
    with Sequences() as seen:
        y_ND = attend_spans(qkv_ND, (Span(0, pairs, tokens),), 1)
    assert seen.found == [65_535, 1]
    for rows in (slice(0, 2), slice(65_534 * 2, 65_535 * 2), slice(65_535 * 2, 65_536 * 2)):
        expected = attention_reference(qkv_ND[rows], torch.zeros(2, dtype=torch.int64), 1)
        torch.testing.assert_close(y_ND[rows], expected)
    sequence_N = torch.arange(pairs).repeat_interleave(tokens)
    layout = ragged.ragged(sequence_N, pairs)
    with Sequences() as seen:
        torch.testing.assert_close(attend_ragged(qkv_ND, layout, 1), y_ND)
    assert seen.found == [65_535, 1]
    # The kernel for any lengths pads each of them to 128 rows in its backward pass, so it is given fewer at a time.
    assert [(piece.rows, len(piece.start_S1) - 1, piece.longest) for piece in layout.pieces] == 32 * [(4096, 2048, 2)]
    assert 128 * ragged.MOST_RAGGED * 4096 < 2**31


@pytest.mark.parametrize("shape", [(7, 1, 1, 5), (1, 1, 5, 5), (7, 2, 5, 5), (5, 5)])
def test_masks_are_cut_with_their_sequences(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = torch.randn(3, 7, 2, 5, 8)
    mask = torch.rand(shape) > 0.3
    mask[..., 0] = True
    expected = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.3)
    monkeypatch.setattr(attention, "MOST_SEQUENCES", 3)
    with Sequences() as seen:
        torch.testing.assert_close(scaled_dot_product(q, k, v, mask, 0.3), expected)
    assert seen.found == [3, 3, 1]


def _both_ways(qkv_ND: Tensor, layout: ragged.Ragged, weight_ND: Tensor) -> tuple[Tensor, Tensor, Watch]:
    leaf = qkv_ND.clone().requires_grad_()
    with Watch() as watch:
        y_ND = attend_ragged(leaf, layout, 2)
        (gradient,) = torch.autograd.grad((y_ND.float() * weight_ND).sum(), leaf)
    return y_ND.detach().float(), gradient.float(), watch


def test_the_kernel_for_any_lengths_does_what_buckets_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward; also of sequences without rows, and cut into pieces."""
    monkeypatch.setattr(ragged, "MOST_RAGGED", 4)
    sequence_N = torch.tensor([8, 0, 8, 2, 2, 0, 8, 8, 5, 8, 1, 6, 8, 0, 3, 3, 8, 8])
    layout = ragged.ragged(sequence_N, 10)
    assert [piece.start_S1.tolist() for piece in layout.pieces] == [[0, 1, 2, 3, 5], [0, 2, 5, 13]]
    qkv_ND, weight_ND = torch.randn(18, 3 * 16).bfloat16(), torch.randn(18, 16)
    y_ND, gradient_ND, watch = _both_ways(qkv_ND, layout, weight_ND)
    assert not any("varlen" in name for name in watch.by_name[""])
    with gpu_branch():
        again_ND, its_gradient_ND, forced = _both_ways(qkv_ND, layout, weight_ND)
        assert attend_ragged(qkv_ND[:0], ragged.ragged(sequence_N[:0], 10), 2).shape == (0, 16)
        # Of fp32, and of heads whose width it does not take, there are buckets on a GPU too.
        assert not attention.varlen_fits(qkv_ND.float(), 8) and not attention.varlen_fits(qkv_ND, 12)
    assert forced.by_name[""]["torch_attn._varlen_attn"] == forced.by_name[""]["torch_attn._varlen_attn_backward"] == 2
    assert forced.found_waits == [] and forced.scatters == []
    torch.testing.assert_close(again_ND, y_ND, rtol=0.02, atol=0.01)
    torch.testing.assert_close(its_gradient_ND, gradient_ND, rtol=0.03, atol=0.02)


def test_an_embedding_has_torchs_gradient_and_leaves_its_padding_alone() -> None:
    torch.manual_seed(0)
    plain, index = nn.Embedding(6, 4, padding_idx=1), torch.tensor([[1, 5, 5], [0, 1, 2]])
    exact = nn.Sequential(nn.Embedding(6, 4, padding_idx=1), nn.Embedding(3, 4, max_norm=1.0))
    exact[0].load_state_dict(plain.state_dict())
    make_embeddings_exact(exact)
    assert type(exact[0]) is Embedding and type(exact[1]) is nn.Embedding, "one that is scaled stays torch's"
    weight = torch.randn(2, 3, 4)
    for module in (plain, exact[0]):
        (module(index) * weight).sum().backward()
    assert torch.equal(plain(index), exact[0](index))
    assert torch.equal(plain.weight.grad, exact[0].weight.grad)  # type: ignore[arg-type]
    assert not exact[0].weight.grad[1].any() and exact[0].weight.grad[5].any()


def test_grouped_layers_on_a_gpu_are_those_in_fp32() -> None:
    """16,384 rows of one block: its bias gradient is up to 87 % off where each addition is rounded."""
    torch.manual_seed(0)
    layer = GroupedLinear(3, 16, 8)
    exact = GroupedLinear(3, 16, 8)
    layer.bfloat16()
    exact.load_state_dict({name: value.float() for name, value in layer.state_dict().items()})
    with torch.no_grad():
        layer.bias.normal_()
        exact.bias.copy_(layer.bias)
    blocks = Blocks.of(torch.tensor([16_384, 0, 64]))
    x_NK, g_NF = torch.randn(16_448, 16).bfloat16(), (torch.randn(16_448, 8) + 1).bfloat16()
    found = []
    for module, x in ((layer, x_NK), (exact, x_NK.float())):
        with gpu_branch(), Watch() as watch:
            y_NF = module(x, blocks)
            y_NF.backward(g_NF.to(y_NF.dtype))
        assert watch.scatters == [] and watch.found_waits == []
        found.append((y_NF.detach().float(), module.weight.grad.float(), module.bias.grad.float()))
        assert (watch.by_name[""]["aten._grouped_mm"] > 0) == (module is layer)
    for got, expected in zip(*found, strict=True):
        assert float((got - expected).norm() / expected.norm()) < 0.01
