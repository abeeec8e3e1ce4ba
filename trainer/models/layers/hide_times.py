"""Hiding stretches of time: what a record would look like had nobody watched then.

Windows are fractions of each modality's horizon, so that one window means the same hours of modalities with the same
horizon. A pair whose events, objects or codes are all hidden is still there, and empty: it was looked for. Modalities
without times stay as they are.

Shape legend: B records, W windows of each, M modalities, P pairs or objects, O events or codes.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from data_shards import Batch, DatasetSchema, Group
from trainer.models.layers.missing import keyed_uniform, select_pairs
from trainer.models.layers.ragged import offsets_to_ids


def last_part(records: int, share: float) -> Tensor:
    """(B, 1, 2): the last `share` of the horizon, of every record."""
    return torch.tensor([1.0 - share, 1.0]).expand(records, 1, 2)


def random_window(index_B: Tensor, share: float, key: int) -> Tensor:
    """(B, 1, 2): a window of this `share` of the horizon; where, is a function of (key, number of the record)."""
    start_B1 = keyed_uniform(key, index_B, 1) * (1.0 - share)
    return torch.stack([start_B1, start_B1 + share], dim=2)


def drop_stretches(batch: Batch, schema: DatasetSchema, share: float, key: int) -> Batch:
    """Of every record a stretch of time is hidden, anywhere in its window, which is this share of it on average.

    Its length is drawn evenly up to twice that, so that also whole records are learned from. What is hidden is a
    function of (key, number of the record).
    """
    length_B, place_B = keyed_uniform(key, batch.index_B, 2).unbind(1)
    length_B = 2 * share * length_B
    start_B = place_B * (1 - length_B)
    return hide_times(batch, schema, torch.stack([start_B, start_B + length_B], 1)[:, None])


def hide_times(batch: Batch, schema: DatasetSchema, window_BW2: Tensor) -> Batch:
    """The batch without what stands in windows [start, end) of a record's horizon; one that ends at 1 hides it too."""
    groups = {}
    for name, group in batch.groups.items():
        times = getattr(group, "times_O", getattr(group, "times_P", None))
        timed_M = torch.tensor([spec.has_times for spec in schema.modalities], device=batch.device)
        if times is None or not bool(timed_M[group.modality_P].any()):
            groups[name] = group
            continue
        row = torch.arange(len(times), device=times.device)
        if hasattr(group, "times_O"):
            row = offsets_to_ids(group.offsets, len(times))  # type: ignore[attr-defined]
        keep = ~_hidden(times, group.modality_P[row], group.sample_P[row], schema, window_BW2)
        groups[name] = without_rows(group, keep) if hasattr(group, "times_O") else select_pairs(group, keep)
    return batch.changed(batch.present_BM, groups)


def _hidden(times: Tensor, modality: Tensor, sample: Tensor, schema: DatasetSchema, window_BW2: Tensor) -> Tensor:
    """bool: which of the times lie in a window of their record."""
    horizon_M = torch.tensor([spec.horizon or 1.0 for spec in schema.modalities], device=times.device)
    start_W, end_W = window_BW2.to(times.device)[sample].unbind(2)
    fraction = (times / horizon_M[modality])[:, None]
    return ((fraction >= start_W) & ((fraction < end_W) | (end_W >= 1.0))).any(1)


def without_rows(group: Group, keep_O: Tensor) -> Group:
    """The group with the events or codes where `keep_O`; its pairs stay, also those that have none left."""
    offsets: Tensor = group.offsets  # type: ignore[attr-defined]
    before_O1 = torch.cat([offsets[:1] * 0, keep_O.cumsum(0)])
    changes = {f.name: getattr(group, f.name)[keep_O] for f in dataclasses.fields(group) if f.name.endswith("_O")}
    changes["offsets"] = before_O1[offsets]
    return dataclasses.replace(group, **changes)
