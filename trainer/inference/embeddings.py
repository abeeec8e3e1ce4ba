"""What a model makes of records before it answers: the pooled vector of each, and its tokens by modality.

Tokens are those after the last fusion block, so each has seen the record's others; they stand in the order of the
model: by time where there are times. Indicators of absent modalities are none.

Shape legend: B records, N tokens of a batch, D width, X width of the pooled vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from data_shards import Batch
from trainer.models.fusemoe.model import FuseMoE
from trainer.models.output import Fused


@dataclass(frozen=True)
class Tokens:
    """x_ND: after the last block; of each its record, sample_N, and its modality's number in the model, modality_N."""

    x_ND: Tensor
    sample_N: Tensor
    modality_N: Tensor


def watched_tokens(model: nn.Module, batch: Batch) -> tuple[Fused, Tokens | None]:
    """The model's output and its tokens; None of a model that has no fusion blocks."""
    fusion: FuseMoE | None = getattr(model, "fusion", None)
    if fusion is None:
        return model(batch), None
    kept: list[Tokens] = []

    def keep(_: nn.Module, args: tuple[Any, ...], out: tuple[Tensor, Any]) -> None:
        layout = args[1]
        end = layout.encoded  # indicators stand behind
        kept.append(Tokens(out[0][:end].float(), layout.sample_N[:end], layout.modality_N[:end]))

    handle = fusion.blocks[-1].register_forward_hook(keep)
    try:
        output = model(batch)
    finally:
        handle.remove()
    return output, kept[0] if kept else None


def embedding_columns(
    pooled_BX: Tensor, tokens: Tokens | None, names: Mapping[int, str], records: int
) -> dict[str, pa.Array]:
    """`embedding`, X numbers a record; `tokens.MODALITY`, a list of vectors of D, null without the modality.

    Args:
        names: number of a modality in the model -> its name in the table.
    """
    columns: dict[str, pa.Array] = {"embedding": _vectors(pooled_BX)}
    if tokens is None:
        return columns
    sample_N, modality_N = tokens.sample_N.cpu(), tokens.modality_N.cpu()
    x_ND = tokens.x_ND.cpu()
    for number, name in names.items():
        own = torch.nonzero(modality_N == number)[:, 0]
        own = own[torch.argsort(sample_N[own], stable=True)]
        counts_B = np.bincount(sample_N[own].numpy(), minlength=records)
        ends = pa.array(np.cumsum([0, *counts_B]), pa.int32())
        columns[f"tokens.{name}"] = pa.ListArray.from_arrays(ends, _vectors(x_ND[own]), mask=pa.array(counts_B == 0))
    return columns


def _vectors(x_BD: Tensor) -> pa.Array:
    """A list of D float32 a row; an array without rows keeps the width."""
    flat = pa.array(x_BD.detach().float().cpu().reshape(-1).numpy(), pa.float32())
    return pa.FixedSizeListArray.from_arrays(flat, x_BD.shape[1])
