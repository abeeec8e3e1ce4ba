"""Self-attention over packed tokens: within a modality, over the whole sample, or factorised.

*per_modality* (the paper's): the tokens of one modality attend to each other, with weights of its own.
*joint*: all tokens of a sample attend to each other.
*factorized*: first over time within a modality, then over the modalities within a time bin, so that cost grows
with T^2 M + T M^2 and not with (T M)^2.
Absent modalities have no tokens, hence no cost. Where a GPU's kernel takes sequences of any lengths, one launch serves
all; elsewhere those of about the same length share one, padded to a rectangle (buckets), so neither the fullest sample
nor a modality that others have makes a sample pay.

Shape legend: N tokens, D width, S sequences, L longest sequence, H heads, E head width.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from parallel.moe.grouped_matmul import on_gpu
from parallel.moe.segments import Segments
from trainer.models.layers.grouped_linear import GroupedLinear
from trainer.models.layers.ragged import MOST_SEQUENCES, Ragged
from trainer.models.layers.token_layout import Span, TokenLayout, UnevenSpan


class Prompts(Protocol):
    """What a fine-tuning job adds to the attention of one block: rows that tokens may read besides other tokens."""

    def __call__(self, q_ND: Tensor, project: nn.Module, heads: int) -> Tensor:
        """What each row reads, before the block's output projection: (N, D) queries -> (N, D).

        `project` is the block's own projection of normed tokens to queries, keys and values.
        """


def _heads(x_SLD: Tensor, heads: int) -> Tensor:
    return x_SLD.unflatten(-1, (heads, -1)).transpose(1, 2)


def scaled_dot_product(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """torch's attention, (S, H, L, E) each, for any number S: in pieces where one kernel would not take them all.

    Args:
        mask: broadcastable to (S, H, L, L).
    """
    if len(q) <= MOST_SEQUENCES:
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    # A mask of which every sequence has its own part is cut like the sequences.
    own = mask is not None and mask.ndim == 4 and len(mask) > 1
    parts = []
    for start in range(0, len(q), MOST_SEQUENCES):
        cut = slice(start, start + MOST_SEQUENCES)
        its = mask[cut] if own and mask is not None else mask
        parts.append(functional.scaled_dot_product_attention(q[cut], k[cut], v[cut], attn_mask=its, scale=scale))
    return torch.cat(parts)


def _attend(qkv_SLD: Tensor, heads: int, mask_SL: Tensor | None) -> Tensor:
    """(S, L, 3 D) projections -> (S, L, D)."""
    if not len(qkv_SLD):  # a rank without records: nothing to attend to, still in the graph
        return qkv_SLD[..., : qkv_SLD.shape[-1] // 3]
    if qkv_SLD.shape[1] == 1:  # a row alone attends to itself
        return qkv_SLD[..., 2 * qkv_SLD.shape[-1] // 3 :]
    q, k, v = (_heads(part, heads) for part in qkv_SLD.chunk(3, dim=-1))
    mask = None if mask_SL is None else mask_SL[:, None, None, :]
    return scaled_dot_product(q, k, v, mask).transpose(1, 2).flatten(2)


def _queries(qkv_ND: Tensor) -> Tensor:
    return qkv_ND[:, : qkv_ND.shape[1] // 3]


def attend_spans(qkv_ND: Tensor, spans: tuple[Span | UnevenSpan, ...], heads: int) -> Tensor:
    """Attention within each pair of every span; one kernel per encoder group, whatever its number of modalities."""
    parts = []
    for span in spans:
        rows_ND = qkv_ND[span.start : span.start + span.rows]
        if isinstance(span, UnevenSpan):
            assert span.within is not None
            parts.append(attend_ragged(rows_ND, span.within, heads))
        else:
            rows_SLD = rows_ND.view(span.pairs, span.tokens, qkv_ND.shape[1])
            parts.append(_attend(rows_SLD, heads, None).flatten(0, 1))
    return torch.cat(parts)


def attend_ragged(qkv_ND: Tensor, layout: Ragged, heads: int) -> Tensor:
    """Attention within the sequences of `layout`."""
    width = qkv_ND.shape[1] // 3
    if not layout.buckets:
        return qkv_ND[:, :width]
    parts = []
    sorted_ND = layout.arrange(qkv_ND)
    if varlen_fits(qkv_ND, width // heads):
        # Here, as it brings torch's compiler with it, which takes a worker on a CPU as long to import as torch.
        from torch.nn.attention.varlen import varlen_attn

        for piece, qkv_RD in zip(layout.pieces, sorted_ND.split([piece.rows for piece in layout.pieces]), strict=True):
            q, k, v = qkv_RD.unflatten(1, (3, heads, width // heads)).unbind(1)
            start, longest = piece.start_S1, piece.longest
            parts.append(varlen_attn(q, k, v, start, start, longest, longest).flatten(1))  # type: ignore[union-attr]
    else:
        split = sorted_ND.split([bucket.rows for bucket in layout.buckets])
        for bucket, qkv_RD in zip(layout.buckets, split, strict=True):
            parts.append(bucket.unpad(_attend(bucket.pad(qkv_RD), heads, bucket.valid_SL)))
    return layout.restore(parts)


def read_segments(x_RD: Tensor, value_RD: Tensor, by_segment: Segments, query_STD: Tensor) -> Tensor:
    """Each of a segment's queries attends over its rows: (S, T, D), zeros for a segment without rows.

    Summed in fp32 in the order of the rows.
    """
    score_RT = (x_RD[:, None, :] * by_segment.spread(query_STD)).sum(-1)
    weight_RT = by_segment.softmax(score_RT).to(x_RD.dtype)
    return by_segment.sum(weight_RT[..., None] * value_RD[:, None, :]).to(query_STD.dtype)


def varlen_fits(qkv_ND: Tensor, head: int) -> bool:
    """Whether the GPU's kernel for sequences of any lengths takes heads of this width, in this precision."""
    return on_gpu(qkv_ND) and qkv_ND.dtype in (torch.bfloat16, torch.float16) and head % 8 == 0 and head <= 256


class ModalityAttention(nn.Module):
    """Attention within each modality's tokens, weights per modality (FuseMoE section 3). Indicator tokens pass by."""

    def __init__(self, dim: int, heads: int, blocks: int) -> None:
        super().__init__()
        self.heads = heads
        self.project = GroupedLinear(blocks, dim, 3 * dim)
        self.output = GroupedLinear(blocks, dim, dim)

    def forward(self, x_ND: Tensor, layout: TokenLayout, prompts: Prompts | None = None) -> Tensor:
        qkv_ND = self.project(x_ND[: layout.encoded], layout.blocks)
        y_ND = attend_spans(qkv_ND, layout.spans, self.heads)
        if prompts is not None:
            y_ND = y_ND + prompts(_queries(qkv_ND), self.project, self.heads)
        y_ND = self.output(y_ND, layout.blocks)
        # Indicators lie behind the encoded tokens; attention adds nothing to them.
        return functional.pad(y_ND, (0, 0, 0, len(x_ND) - layout.encoded))


class JointAttention(nn.Module):
    """Attention over all tokens of a sample, one set of weights."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.project = nn.Linear(dim, 3 * dim)
        self.output = nn.Linear(dim, dim)

    def forward(self, x_ND: Tensor, layout: TokenLayout, prompts: Prompts | None = None) -> Tensor:
        assert layout.within_sample is not None
        qkv_ND = self.project(x_ND)
        y_ND = attend_ragged(qkv_ND, layout.within_sample, self.heads)
        if prompts is not None:
            read_ND = prompts(_queries(qkv_ND[: layout.encoded]), self.project, self.heads)
            y_ND = y_ND + functional.pad(read_ND, (0, 0, 0, len(x_ND) - layout.encoded))
        return self.output(y_ND)


class FactorizedAttention(nn.Module):
    """Over time within a modality, then over modalities within a time bin."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.over_time = nn.Linear(dim, 3 * dim)
        self.over_time_output = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.over_modalities = nn.Linear(dim, 3 * dim)
        self.over_modalities_output = nn.Linear(dim, dim)

    def forward(self, x_ND: Tensor, layout: TokenLayout, prompts: Prompts | None = None) -> Tensor:
        assert layout.within_bin is not None
        qkv_ND = self.over_time(x_ND[: layout.encoded])
        y_ND = attend_spans(qkv_ND, layout.spans, self.heads)
        if prompts is not None:
            y_ND = y_ND + prompts(_queries(qkv_ND), self.over_time, self.heads)
        y_ND = self.over_time_output(y_ND)
        # Indicators, which lie behind the encoded tokens, have no time; they are seen by other modalities below.
        y_ND = functional.pad(y_ND, (0, 0, 0, len(x_ND) - layout.encoded))
        across_ND = attend_ragged(self.over_modalities(self.norm(x_ND + y_ND)), layout.within_bin, self.heads)
        return y_ND + self.over_modalities_output(across_ND)


def build_attention(kind: str, dim: int, heads: int, blocks: int) -> nn.Module:
    """`kind` is per_modality, joint or factorized."""
    if kind == "per_modality":
        return ModalityAttention(dim, heads, blocks)
    return JointAttention(dim, heads) if kind == "joint" else FactorizedAttention(dim, heads)


def attention_reference(qkv_ND: Tensor, sequence_N: Tensor, heads: int) -> Tensor:
    """The obvious loop: softmax attention of each row over the rows with its sequence id."""
    y_ND = torch.zeros_like(qkv_ND[:, : qkv_ND.shape[1] // 3])
    for sequence in sequence_N.unique():
        rows = (sequence_N == sequence).nonzero()[:, 0]
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(0, 1) for part in qkv_ND[rows].chunk(3, dim=-1))
        weight = functional.softmax(q @ k.transpose(1, 2) * q.shape[-1] ** -0.5, dim=-1)
        y_ND[rows] = (weight @ v).transpose(0, 1).flatten(1)
    return y_ND
