"""Records -> one packed Batch. Absent modalities take no space; nothing is padded.

All series of a batch are one long list of events with offsets per present (sample, modality) pair, and so on for texts,
waveforms, vectors and images. Pairs are sorted by modality, then sample. A batch is one flat buffer underneath: it
crosses a process boundary, is pinned and is copied to a device as one piece.

Shapes: B samples, M modalities, P pairs of a group, O events / bytes / samples of a group, F features, C channels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from data_shards.codec import Columns
from data_shards.schema import DatasetSchema, group_layout

_ALIGN = 64


@dataclass
class Group:
    """Present pairs of one batch group. modality_P: int64 schema numbers; sample_P: int64 rows of the batch."""

    modality_P: Tensor
    sample_P: Tensor

    @property
    def pairs(self) -> int:
        """Number P of present (sample, modality) pairs."""
        return len(self.modality_P)


@dataclass
class SeriesGroup(Group):
    """Events of pair p are [offsets[p], offsets[p+1]), sorted by (channel, time).

    offsets: int64 [P+1]; times_O: float32 in the modality's time unit; channels_O: int64, number within the modality;
    values_O: float32, raw.
    """

    offsets: Tensor
    times_O: Tensor
    channels_O: Tensor
    values_O: Tensor


@dataclass
class TextGroup(Group):
    """UTF-8 bytes of pair p are bytes_O[offsets[p]:offsets[p+1]] (uint8)."""

    offsets: Tensor
    bytes_O: Tensor


@dataclass
class WaveformGroup(Group):
    """Samples of pair p are values_OC[offsets[p]:offsets[p+1]] (float32, raw)."""

    offsets: Tensor
    values_OC: Tensor


@dataclass
class VectorGroup(Group):
    """values_PF: float32, raw."""

    values_PF: Tensor


@dataclass
class ImageGroup(Group):
    """values_PCHW: uint8 if every modality of the group is, else float32; raw."""

    values_PCHW: Tensor


GROUPS: dict[str, type[Group]] = {
    "series": SeriesGroup,
    "text": TextGroup,
    "waveform": WaveformGroup,
    "vector": VectorGroup,
    "image": ImageGroup,
}


@dataclass
class Batch:
    """Some records of a data set.

    Attributes:
        keys: record keys [B].
        index_B: int64, number of each record in the data set.
        present_BM: bool.
        targets: task -> float32 [B, t]; t = 1 for binary and multiclass (class number), L for multilabel, n for
            regression; NaN = unlabelled.
        groups: group id -> group; every group of the schema is there, with P = 0 if nobody has it.
    """

    keys: list[str]
    index_B: Tensor
    present_BM: Tensor
    targets: dict[str, Tensor]
    groups: dict[str, Group]
    _buffer: Tensor | None = field(default=None, repr=False, compare=False)

    KIND: ClassVar[str] = "fleximoe-batch-1"

    def __len__(self) -> int:
        return len(self.index_B)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.index_B.device

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by a flat name, in a fixed order."""
        flat = {"index": self.index_B, "present": self.present_BM}
        flat |= {f"target:{name}": tensor for name, tensor in self.targets.items()}
        for name, group in self.groups.items():
            flat |= {f"group:{name}:{f.name}": getattr(group, f.name) for f in fields(group)}
        return flat

    def to_buffer(self) -> Tensor:
        """uint8 [n]: the whole batch on the CPU, 64-byte aligned pieces and a table at the end; see ``from_buffer``."""
        if self._buffer is None:
            self._buffer = _flatten(self.tensors(), {"kind": self.KIND, "keys": self.keys})
        return self._buffer

    @staticmethod
    def from_buffer(buffer: Tensor) -> Batch:
        """Inverse of ``to_buffer``: tensors are views of a CPU buffer."""
        table = _table(buffer)
        return _build(_views(buffer, table), table["keys"], buffer)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch on another device, moved as one copy."""
        if torch.device(device) == self.device:
            return self
        buffer = self.to_buffer()
        moved = buffer.to(device, non_blocking=non_blocking)
        table = _table(buffer)
        return _build(_views(moved, table), table["keys"], buffer)

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory (needs an accelerator)."""
        return Batch.from_buffer(self.to_buffer().pin_memory())


def _flatten(tensors: dict[str, Tensor], extra: dict[str, Any]) -> Tensor:
    places, offset = [], 0
    for name, tensor in tensors.items():
        places.append((name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape), offset))
        offset += -(-tensor.nbytes // _ALIGN) * _ALIGN
    table = json.dumps({**extra, "tensors": places}, separators=(",", ":")).encode()
    buffer = torch.zeros(offset + len(table) + 8, dtype=torch.uint8)
    for (_, _, _, start), tensor in zip(places, tensors.values(), strict=True):
        if tensor.numel():
            buffer[start : start + tensor.nbytes] = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    tail = table + len(table).to_bytes(8, "little")
    buffer[offset:] = torch.frombuffer(bytearray(tail), dtype=torch.uint8)
    return buffer


def _table(buffer: Tensor) -> dict[str, Any]:
    length = int.from_bytes(buffer[-8:].numpy().tobytes(), "little")
    table: dict[str, Any] = json.loads(buffer[-8 - length : -8].numpy().tobytes())
    if table.get("kind") != Batch.KIND:
        raise ValueError(f"the buffer holds {table.get('kind')!r}, not {Batch.KIND!r}")
    return table


def _views(buffer: Tensor, table: dict[str, Any]) -> dict[str, Tensor]:
    views = {}
    for name, dtype_name, shape, start in table["tensors"]:
        dtype: torch.dtype = getattr(torch, dtype_name)
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        views[name] = buffer[start : start + size].view(dtype).view(shape)
    return views


def _build(views: dict[str, Tensor], keys: list[str], buffer: Tensor) -> Batch:
    targets = {name[7:]: tensor for name, tensor in views.items() if name.startswith("target:")}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in views.items():
        if name.startswith("group:"):
            _, group, column = name.split(":")
            parts.setdefault(group, {})[column] = tensor
    groups = {name: GROUPS[name.split("/")[0]](**columns) for name, columns in parts.items()}
    return Batch(keys, views["index"], views["present"], targets, groups, buffer)


class Collator:
    """Columns of records -> Batch, for one schema."""

    def __init__(self, schema: DatasetSchema) -> None:
        self.schema = schema
        self.layout = group_layout(schema)
        self._features = np.array([m.shape[0] if m.kind == "vector" else 0 for m in schema.modalities], np.int64)

    def __call__(self, records: Sequence[Columns], index_B: np.ndarray) -> Batch:
        """Pack the records; ``index_B`` are their numbers in the data set."""
        present = np.zeros((len(records), len(self.schema.modalities)), bool)
        groups: dict[str, Group] = {}
        for name, numbers in self.layout.items():
            build = getattr(self, f"_{name.split('/')[0]}")
            groups[name] = group = build(records, numbers)
            present[group.sample_P.numpy(), group.modality_P.numpy()] = True
        offsets = self.schema.target_offsets
        rows = np.stack([r.targets_W for r in records]) if records else np.zeros((0, offsets[-1]), np.float32)
        targets = {
            task.name: torch.from_numpy(np.ascontiguousarray(rows[:, offsets[i] : offsets[i + 1]]))
            for i, task in enumerate(self.schema.tasks)
        }
        keys = [record.key for record in records]
        return Batch(keys, torch.from_numpy(index_B), torch.from_numpy(present), targets, groups)

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
        pairs = _Pairs([r.text_X for r in records], [r.sizes_X for r in records])
        data = pairs.gather([r.bytes_ for r in records]).astype(np.uint8)
        return TextGroup(*pairs.head(), _tensor(pairs.offsets), _tensor(data))

    def _vector(self, records: Sequence[Columns], numbers: list[int]) -> VectorGroup:
        """The records' vectors of all shapes lie in one column; those of this shape are cut out of it."""
        width = self.schema.modalities[numbers[0]].shape[0]
        sizes = [self._features[r.vector_V] for r in records]
        pairs = _Pairs([r.vector_V for r in records], sizes, keep=np.array(numbers))
        data = pairs.gather([r.features_ for r in records]).astype(np.float32)
        return VectorGroup(*pairs.head(), _tensor(data.reshape(-1, width)))

    def _arrays(self, records: Sequence[Columns], numbers: list[int]) -> tuple[Tensor, Tensor, list[np.ndarray]]:
        found = [(n, b, r.arrays[n]) for n in numbers for b, r in enumerate(records) if n in r.arrays]
        modality = torch.tensor([n for n, _, _ in found], dtype=torch.int64)
        sample = torch.tensor([b for _, b, _ in found], dtype=torch.int64)
        return modality, sample, [array for _, _, array in found]

    def _image(self, records: Sequence[Columns], numbers: list[int]) -> ImageGroup:
        specs = [self.schema.modalities[n] for n in numbers]
        dtype = np.uint8 if all(spec.dtype == "uint8" for spec in specs) else np.float32
        modality, sample, arrays = self._arrays(records, numbers)
        stacked = np.stack(arrays).astype(dtype) if arrays else np.empty((0, *specs[0].shape), dtype)
        return ImageGroup(modality, sample, _tensor(stacked))

    def _waveform(self, records: Sequence[Columns], numbers: list[int]) -> WaveformGroup:
        channels = self.schema.modalities[numbers[0]].shape[0]
        modality, sample, arrays = self._arrays(records, numbers)
        offsets = np.cumsum([0, *(len(array) for array in arrays)])
        joined = np.concatenate([np.empty((0, channels), np.float32), *arrays]).astype(np.float32)
        return WaveformGroup(modality, sample, _tensor(offsets.astype(np.int64)), _tensor(joined))


class _Pairs:
    """(sample, modality) pairs of ragged columns, reordered from record order to (modality, sample) order."""

    def __init__(self, ids: list[np.ndarray], counts: list[np.ndarray], keep: np.ndarray | None = None) -> None:
        modality = np.concatenate([np.empty(0, np.int64), *ids]).astype(np.int64)
        size = np.concatenate([np.empty(0, np.int64), *counts]).astype(np.int64)
        sample = np.repeat(np.arange(len(ids)), [len(own) for own in ids]) if ids else np.empty(0, np.int64)
        start = np.cumsum(size) - size
        order = np.argsort(modality, kind="stable")
        if keep is not None:
            order = order[np.isin(modality[order], keep)]
        self.modality, self.sample, size = modality[order], sample[order].astype(np.int64), size[order]
        self.offsets = np.concatenate(([0], np.cumsum(size)))
        self._source = np.repeat(start[order] - self.offsets[:-1], size) + np.arange(self.offsets[-1])

    def head(self) -> tuple[Tensor, Tensor]:
        return _tensor(self.modality), _tensor(self.sample)

    def gather(self, columns: list[np.ndarray]) -> np.ndarray:
        joined = np.concatenate(columns) if columns else np.empty(0, np.float32)
        return joined[self._source]


def _tensor(array: np.ndarray) -> Tensor:
    """A tensor that owns writable memory (decoded arrays are read-only views of a shard)."""
    array = np.ascontiguousarray(array)
    return torch.from_numpy(array if array.flags.writeable else array.copy())
