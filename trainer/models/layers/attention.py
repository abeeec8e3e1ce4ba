"""Self-attention over packed tokens: within a modality, over the whole sample, or factorised.

*per_modality* (the paper's): the tokens of one modality attend to each other, with weights of its own.
*joint*: all tokens of a sample attend to each other.
*factorized*: first over time within a modality, then over the modalities within a time bin, so that cost grows
with T^2 M + T M^2 and not with (T M)^2.
Absent modalities have no tokens, hence no cost. Sequences of about the same length share a kernel launch (buckets), so
neither the fullest sample nor a modality that others have makes a sample pay.

Shape legend: N tokens, D width, S sequences, L longest sequence, H heads, E head width.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.models.layers.grouped_linear import GroupedLinear
from trainer.models.layers.ragged import Ragged
from trainer.models.layers.token_layout import Span, TokenLayout


class Prompts(Protocol):
    """What a fine-tuning job adds to the attention of one block: rows that tokens may read besides other tokens."""

    def __call__(self, q_ND: Tensor, project: nn.Module, heads: int) -> Tensor:
        """What each row reads, before the block's output projection: (N, D) queries -> (N, D).

        `project` is the block's own projection of normed tokens to queries, keys and values.
        """


def _heads(x_SLD: Tensor, heads: int) -> Tensor:
    return x_SLD.unflatten(-1, (heads, -1)).transpose(1, 2)


def _attend(qkv_SLD: Tensor, heads: int, mask_SL: Tensor | None) -> Tensor:
    """(S, L, 3 D) projections -> (S, L, D)."""
    if not len(qkv_SLD):  # a rank without records: nothing to attend to, still in the graph
        return qkv_SLD[..., : qkv_SLD.shape[-1] // 3]
    q, k, v = (_heads(part, heads) for part in qkv_SLD.chunk(3, dim=-1))
    mask = None if mask_SL is None else mask_SL[:, None, None, :]
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


def _queries(qkv_ND: Tensor) -> Tensor:
    return qkv_ND[:, : qkv_ND.shape[1] // 3]


def attend_spans(qkv_ND: Tensor, spans: tuple[Span, ...], heads: int) -> Tensor:
    """Attention within each pair of every span; one kernel per encoder group, whatever its number of modalities."""
    parts = []
    for span in spans:
        rows_SLD = qkv_ND[span.start : span.start + span.rows].view(span.pairs, span.tokens, qkv_ND.shape[1])
        parts.append(_attend(rows_SLD, heads, None).flatten(0, 1))
    return torch.cat(parts)


def attend_ragged(qkv_ND: Tensor, layout: Ragged, heads: int) -> Tensor:
    """Attention within the sequences of `layout`, bucket by bucket."""
    if not layout.buckets:
        return qkv_ND[:, : qkv_ND.shape[1] // 3]
    parts = []
    for bucket, qkv_RD in zip(layout.buckets, layout.arrange(qkv_ND), strict=True):
        if bucket.length == 1:  # a row alone attends to itself
            parts.append(qkv_RD[:, 2 * qkv_ND.shape[1] // 3 :])
        else:
            parts.append(bucket.unpad(_attend(bucket.pad(qkv_RD), heads, bucket.valid_SL)))
    return layout.restore(parts)


class ModalityAttention(nn.Module):
    """Attention within each modality's tokens, weights per modality (FuseMoE section 3). Indicator tokens pass by."""

    def __init__(self, dim: int, heads: int, blocks: int) -> None:
        super().__init__()
        self.heads = heads
        self.project = GroupedLinear(blocks, dim, 3 * dim)
        self.output = GroupedLinear(blocks, dim, dim)

    def forward(self, x_ND: Tensor, layout: TokenLayout, prompts: Prompts | None = None) -> Tensor:
        qkv_ND = self.project(x_ND[: layout.encoded], layout.counts_M)
        y_ND = attend_spans(qkv_ND, layout.spans, self.heads)
        if prompts is not None:
            y_ND = y_ND + prompts(_queries(qkv_ND), self.project, self.heads)
        y_ND = self.output(y_ND, layout.counts_M)
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
