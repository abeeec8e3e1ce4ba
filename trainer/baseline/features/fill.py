"""A batch as rows of a table. What a record has not is NaN; what it has and was never observed has the count 0.

Shapes: B records, X columns, P pairs or objects of a group, O events, S stretches.
"""

from __future__ import annotations

import numpy as np

from data_shards import Batch, CodesGroup, Group, ImageGroup, SeriesGroup, TextGroup, VectorGroup, WaveformGroup
from trainer.baseline.features.layout import OF_CODES, Layout
from trainer.baseline.features.objects import pictures, texts, waveforms
from trainer.baseline.features.stretches import OF_OBJECTS, OF_SERIES, of_objects, of_series, starts


def rows(layout: Layout, batch: Batch) -> np.ndarray:
    """(B, X) float32: the batch's records, or their moments as the loader has cut them."""
    x_BX = np.full((len(batch), len(layout.names)), np.nan, np.float32)
    present_BM = batch.present_BM.numpy()
    x_BX[:, layout.first_M[-1] :] = present_BM
    _never_observed(layout, present_BM, x_BX)
    for group in batch.groups.values():
        if isinstance(group, SeriesGroup):
            _series(layout, group, x_BX)
        elif isinstance(group, CodesGroup):
            _codes(layout, group, x_BX)
        else:
            _objects(layout, group, x_BX)
    return x_BX


def _never_observed(layout: Layout, present_BM: np.ndarray, x_BX: np.ndarray) -> None:
    """Counts of what is there are 0 until something is counted."""
    for number, spec in enumerate(layout.schema.modalities):
        if not spec.has_times and spec.kind != "codes":
            continue
        first = layout.first_M[number]
        steps = len(OF_SERIES) if spec.kind == "series" else layout.first_M[number + 1] - first
        columns = np.arange(first, layout.first_M[number + 1], steps)
        if spec.kind == "codes":
            counts = len(layout.codes.get(spec.name, ()))
            columns = np.concatenate([first + np.arange(2), first + len(OF_CODES) + np.arange(counts)])
        x_BX[np.ix_(present_BM[:, number], columns)] = 0.0


def _series(layout: Layout, group: SeriesGroup, x_BX: np.ndarray) -> None:
    if not len(group.times_O):
        return
    size_P = np.diff(group.offsets.numpy())
    modality_O = np.repeat(group.modality_P.numpy(), size_P)
    channel_O = group.channels_O.numpy()
    pair_O = np.repeat(np.arange(group.pairs), size_P)
    most = max(len(spec.channels) for spec in layout.schema.modalities)
    start_S = starts(pair_O * most + channel_O)
    windows_M = np.array([np.nan if spec.horizon is None else spec.horizon for spec in layout.schema.modalities])
    modality_S = modality_O[start_S]
    found_SK = of_series(start_S, group.times_O.numpy(), group.values_O.numpy(), windows_M[modality_S])
    row_S = group.sample_P.numpy()[pair_O[start_S]]
    first_S = layout.first_M[modality_S] + len(OF_SERIES) * channel_O[start_S]
    x_BX[row_S[:, None], first_S[:, None] + np.arange(len(OF_SERIES))] = found_SK


def _codes(layout: Layout, group: CodesGroup, x_BX: np.ndarray) -> None:
    """Counts of all codes and of different ones, first and last time; then those of the frequent codes."""
    offset_P, sample_P = group.offsets.numpy(), group.sample_P.numpy()
    columns = group.ids_O.numpy(), group.times_O.numpy(), group.values_O.numpy()
    for pair, number in enumerate(group.modality_P.tolist()):
        id_O, time_O, value_O = (column[offset_P[pair] : offset_P[pair + 1]] for column in columns)
        spec, first, row = layout.schema.modalities[number], layout.first_M[number], sample_P[pair]
        if not len(id_O):
            continue
        x_BX[row, first : first + len(OF_CODES)] = len(id_O), len(np.unique(id_O)), time_O[0], time_O[-1]
        chosen = np.array(layout.codes.get(spec.name, ()), np.int64)
        place_O = np.searchsorted(chosen, id_O)
        known_O = place_O < len(chosen)
        known_O[known_O] = chosen[place_O[known_O]] == id_O[known_O]
        counts = first + len(OF_CODES)
        x_BX[row, counts : counts + len(chosen)] = np.bincount(place_O[known_O], minlength=len(chosen))
        if spec.valued:
            valued_O = known_O & ~np.isnan(value_O)
            # By time: the last one that is written stays.
            x_BX[row, counts + len(chosen) + place_O[valued_O]] = value_O[valued_O]


def _objects(layout: Layout, group: Group, x_BX: np.ndarray) -> None:
    sample_P = group.sample_P.numpy()
    modality_P = group.modality_P.numpy()
    for number in np.unique(modality_P).tolist():
        own_P = np.flatnonzero(modality_P == number)
        spec, first = layout.schema.modalities[number], layout.first_M[number]
        stop, row_P = layout.first_M[number + 1], sample_P[own_P]
        if not spec.timed:
            x_BX[row_P, first:stop] = _features(group, own_P)
            continue
        assert isinstance(group, TextGroup | VectorGroup | ImageGroup | WaveformGroup)
        start_S, time_P = starts(row_P), group.times_P.numpy()[own_P]
        if isinstance(group, TextGroup):
            stretches = np.split(own_P, start_S[1:])
            x_BX[row_P[start_S], first + len(OF_OBJECTS) : stop] = texts([_text(group, own) for own in stretches])
            x_BX[row_P[start_S], first : first + len(OF_OBJECTS)] = of_objects(
                start_S, time_P, np.empty((len(own_P), 0))
            )
            continue
        x_BX[row_P[start_S], first:stop] = of_objects(start_S, time_P, _features(group, own_P))


def _features(group: Group, own_P: np.ndarray) -> np.ndarray:
    """(P, F) of some objects of a group."""
    if isinstance(group, VectorGroup):
        return group.values_PF.numpy()[own_P]
    if isinstance(group, ImageGroup):
        return pictures(group.values_PCHW.numpy()[own_P])
    if isinstance(group, TextGroup):
        return texts([_text(group, np.array([number])) for number in own_P])
    assert isinstance(group, WaveformGroup)
    # Objects of one modality are neighbours.
    offsets = group.offsets.numpy()[own_P[0] : own_P[-1] + 2]
    return waveforms(offsets, group.values_OC.numpy())


def _text(group: TextGroup, own_P: np.ndarray) -> str:
    """Some texts, one after the other."""
    offsets, bytes_O = group.offsets.numpy(), group.bytes_O.numpy()
    parts = [bytes_O[offsets[number] : offsets[number + 1]].tobytes() for number in own_P.tolist()]
    return b"\n".join(parts).decode(errors="replace")
