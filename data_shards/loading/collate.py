"""Decoded records -> one packed batch, without a loop over events.

Shapes: B samples, M modalities, P pairs of a group, O events / bytes / samples of a group.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from data_shards.loading.batch import (
    Batch,
    CodesGroup,
    Group,
    ImageGroup,
    SeriesGroup,
    TextGroup,
    VectorGroup,
    WaveformGroup,
)  # fmt: skip
from data_shards.records.columns import Columns
from data_shards.records.schema import TIMED, DatasetSchema, group_layout


class Collator:
    """Columns of records -> Batch, for one schema."""

    def __init__(self, schema: DatasetSchema) -> None:
        self.schema = schema
        self.layout = group_layout(schema)
        self._features = np.array([m.shape[0] if m.kind == "vector" else 0 for m in schema.modalities], np.int64)

    def __call__(self, records: Sequence[Columns], index_B: np.ndarray, known_BM: np.ndarray | None = None) -> Batch:
        """Pack the records; ``index_B`` are their numbers in the data set, ``known_BM`` as in the batch."""
        present = np.zeros((len(records), len(self.schema.modalities)), bool)
        groups: dict[str, Group] = {}
        for name, numbers in self.layout.items():
            # A group is named after its kind, fixed shapes with the shape behind it: image/3x8x8.
            build = getattr(self, f"_{name.split('/')[0].removeprefix(TIMED)}")
            groups[name] = group = build(records, numbers)
            present[group.sample_P.numpy(), group.modality_P.numpy()] = True
        for row, record in enumerate(records):
            present[row, record.empty_E] = True
        offsets = self.schema.target_offsets
        # A rank may have no record; the batch then has the same tensors, with no rows.
        rows = np.stack([r.targets_W for r in records]) if records else np.zeros((0, offsets[-1]), np.float32)
        targets = {
            task.name: torch.from_numpy(np.ascontiguousarray(rows[:, offsets[i] : offsets[i + 1]]))
            for i, task in enumerate(self.schema.tasks)
        }
        keys = [record.key for record in records]
        known = None if known_BM is None else torch.from_numpy(known_BM)
        # A data set of a mixture may have none, and another one has some.
        times = [float(r.moments_K[0]) if len(r.moments_K) else np.nan for r in records]
        moment = torch.tensor(times, dtype=torch.float32) if self.schema.has_moments else None
        return Batch(keys, torch.from_numpy(index_B), torch.from_numpy(present), targets, groups, known, moment)

    def _series(self, records: Sequence[Columns], numbers: list[int]) -> SeriesGroup:
        pairs = _Pairs([r.series_S for r in records], [r.counts_S for r in records])
        columns = ([r.times_O for r in records], [r.channels_O for r in records], [r.values_O for r in records])
        times, channels, values = (pairs.gather(column) for column in columns)
        return SeriesGroup(
            *pairs.head(),
            _tensor(pairs.offsets),
            _tensor(times.astype(np.float32)),
            _tensor(channels.astype(np.int64)),
            _tensor(values.astype(np.float32)),
        )

    def _text(self, records: Sequence[Columns], numbers: list[int]) -> TextGroup:
        pairs = _Pairs([r.text_X for r in records], [r.sizes_X for r in records], keep=np.array(numbers))
        data = pairs.gather([r.bytes_ for r in records]).astype(np.uint8)
        times = pairs.rows([r.text_times_X for r in records])
        return TextGroup(*pairs.head(), _tensor(pairs.offsets), _tensor(data), _tensor(times))

    def _codes(self, records: Sequence[Columns], numbers: list[int]) -> CodesGroup:
        pairs = _Pairs([r.codes_Q for r in records], [r.code_counts_Q for r in records], keep=np.array(numbers))
        columns = (
            [r.code_ids_C for r in records],
            [r.code_times_C for r in records],
            [r.code_values_C for r in records],
        )
        ids, times, values = (pairs.gather(column) for column in columns)
        return CodesGroup(
            *pairs.head(),
            _tensor(pairs.offsets),
            _tensor(ids.astype(np.int64)),
            _tensor(times.astype(np.float32)),
            _tensor(values.astype(np.float32)),
        )

    def _vector(self, records: Sequence[Columns], numbers: list[int]) -> VectorGroup:
        """The records' vectors of all shapes lie in one column; those of this shape are cut out of it."""
        width = self.schema.modalities[numbers[0]].shape[0]
        sizes = [self._features[r.vector_V] for r in records]
        pairs = _Pairs([r.vector_V for r in records], sizes, keep=np.array(numbers))
        data = pairs.gather([r.features_ for r in records]).astype(np.float32)
        times = pairs.rows([r.vector_times_V for r in records])
        return VectorGroup(*pairs.head(), _tensor(data.reshape(-1, width)), _tensor(times))

    def _arrays(
        self, records: Sequence[Columns], numbers: list[int]
    ) -> tuple[Tensor, Tensor, list[np.ndarray], Tensor]:
        """Modality and sample of each object, the objects, and their times."""
        found = [(n, b, r) for n in numbers for b, r in enumerate(records) if n in r.arrays]
        counts = [len(r.arrays[n]) for n, _, r in found]
        modality = np.repeat(np.array([n for n, _, _ in found], np.int64), counts)
        sample = np.repeat(np.array([b for _, b, _ in found], np.int64), counts)
        times = np.concatenate([np.empty(0, np.float32), *(r.array_times[n] for n, _, r in found)])
        arrays = [array for n, _, r in found for array in r.arrays[n]]
        return _tensor(modality), _tensor(sample), arrays, _tensor(times)

    def _image(self, records: Sequence[Columns], numbers: list[int]) -> ImageGroup:
        specs = [self.schema.modalities[n] for n in numbers]
        # Bytes stay bytes on their way to the device; one modality of floats turns the group to floats.
        dtype = np.uint8 if all(spec.dtype == "uint8" for spec in specs) else np.float32
        modality, sample, arrays, times = self._arrays(records, numbers)
        stacked = np.stack(arrays).astype(dtype) if arrays else np.empty((0, *specs[0].shape), dtype)
        return ImageGroup(modality, sample, _tensor(stacked), times)

    def _waveform(self, records: Sequence[Columns], numbers: list[int]) -> WaveformGroup:
        channels = self.schema.modalities[numbers[0]].shape[0]
        modality, sample, arrays, times = self._arrays(records, numbers)
        offsets = np.cumsum([0, *(len(array) for array in arrays)])
        # An empty piece first, as there may be no waveform, and NumPy joins at least one array.
        joined = np.concatenate([np.empty((0, channels), np.float32), *arrays]).astype(np.float32)
        return WaveformGroup(modality, sample, _tensor(offsets.astype(np.int64)), _tensor(joined), times)


class _Pairs:
    """(sample, modality) pairs of ragged columns, or their objects: from record order to (modality, sample) order."""

    def __init__(self, ids: list[np.ndarray], counts: list[np.ndarray], keep: np.ndarray | None = None) -> None:
        modality = np.concatenate([np.empty(0, np.int64), *ids]).astype(np.int64)
        size = np.concatenate([np.empty(0, np.int64), *counts]).astype(np.int64)
        sample = np.repeat(np.arange(len(ids)), [len(own) for own in ids]) if ids else np.empty(0, np.int64)
        start = np.cumsum(size) - size
        # Stable: within a modality samples stay in order, and their objects.
        order = np.argsort(modality, kind="stable")
        if keep is not None:
            order = order[np.isin(modality[order], keep)]
        self._order = order
        self.modality, self.sample, size = modality[order], sample[order].astype(np.int64), size[order]
        self.offsets = np.concatenate(([0], np.cumsum(size)))
        # Where each row comes from: a pair's rows keep their order and move from its start to its offset.
        self._source = np.repeat(start[order] - self.offsets[:-1], size) + np.arange(self.offsets[-1])

    def head(self) -> tuple[Tensor, Tensor]:
        return _tensor(self.modality), _tensor(self.sample)

    def rows(self, columns: list[np.ndarray]) -> np.ndarray:
        """A column with one entry a pair."""
        joined: np.ndarray = np.concatenate([np.empty(0, np.float32), *columns])
        return joined[self._order]

    def gather(self, columns: list[np.ndarray]) -> np.ndarray:
        joined = np.concatenate(columns) if columns else np.empty(0, np.float32)
        return joined[self._source]


def _tensor(array: np.ndarray) -> Tensor:
    """A tensor that owns writable memory (decoded arrays are read-only views of a shard)."""
    array = np.ascontiguousarray(array)
    return torch.from_numpy(array if array.flags.writeable else array.copy())
