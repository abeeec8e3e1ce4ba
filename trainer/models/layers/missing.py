"""Hiding modalities: modality dropout in training, and what-if evaluation without a modality.

Which modalities of a record are hidden is a function of (seed, epoch, record) only, computed by integer hashing: it
does not depend on the world size, on the record's place in a batch or on any generator's state, so that a run resumed
elsewhere hides the same ones.

Shape legend: B records, M modalities, P pairs (sample, modality), O rows of ragged pairs.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from data_shards import Batch, Group
from trainer.models.layers.ragged import offsets_to_ids

# Odd multipliers of a 64-bit finaliser (Steele et al. 2014), as signed integers; products wrap around as intended.
_MIX = (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)
_STEP = -0x61C8864680B583EB


def keyed_uniform(key: int, index_B: Tensor, columns: int) -> Tensor:
    """(B, columns) numbers in [0, 1), a fixed function of (key, index, column)."""
    column_M = torch.arange(columns, device=index_B.device, dtype=torch.int64)
    x_BM = _mix(index_B.long()[:, None] * _STEP + key) + column_M[None] * _STEP
    return ((_mix(x_BM) >> 11) & ((1 << 24) - 1)).float() / (1 << 24)


def _mix(x: Tensor) -> Tensor:
    for shift, multiplier in zip((30, 27), _MIX, strict=True):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * multiplier
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def drop_modalities(batch: Batch, probability: float, key: int) -> Batch:
    """Hide each present modality with this probability; the one with the largest draw of a record always stays."""
    draw_BM = keyed_uniform(key, batch.index_B, batch.present_BM.shape[1])
    draw_BM = torch.where(batch.present_BM, draw_BM, torch.full_like(draw_BM, -1.0))
    survivor_BM = draw_BM == draw_BM.amax(dim=1, keepdim=True)
    return keep_modalities(batch, batch.present_BM & ((draw_BM >= probability) | survivor_BM))


def keep_modalities(batch: Batch, keep_BM: Tensor) -> Batch:
    """The batch with only the pairs that `keep_BM` allows; the others are absent, as if never recorded."""
    groups = {
        name: select_pairs(group, keep_BM[group.sample_P, group.modality_P]) for name, group in batch.groups.items()
    }
    return batch.changed(batch.present_BM & keep_BM, groups)


def select_pairs(group: Group, keep_P: Tensor) -> Group:
    """The group with the pairs where `keep_P`; ragged rows follow their pair."""
    if bool(keep_P.all()):
        return group
    changes: dict[str, Tensor] = {}
    offsets: Tensor | None = getattr(group, "offsets", None)
    keep_O = keep_P[offsets_to_ids(offsets, int(offsets[-1]))] if offsets is not None else keep_P
    for field in dataclasses.fields(group):
        if field.name == "offsets":
            assert offsets is not None
            changes["offsets"] = torch.cat([offsets[:1] * 0, offsets.diff()[keep_P].cumsum(0)])
            continue
        # The shape suffix says what a row is: P a pair, O an event, a byte or a sample of one.
        per_pair = field.name.rsplit("_", 1)[1].startswith("P")
        changes[field.name] = getattr(group, field.name)[keep_P if per_pair else keep_O]
    return dataclasses.replace(group, **changes)
