"""One packed Batch: absent modalities take no space, nothing is padded. ``collate`` makes it.

All series of a batch are one long list of events with offsets per present (sample, modality) pair, and so on for texts,
waveforms, vectors and images. Pairs are sorted by modality, then sample. Of a timed modality a pair may have any
number of objects: each of them is a row of its group, by modality, sample and time. A batch is one flat buffer
underneath: it crosses a process boundary, is pinned and is copied to a device as one piece.

Shapes: B samples, M modalities, P pairs or objects of a group, O events / codes / bytes / samples of a group, F
features, C channels.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from data_shards.records.record import sample_name
from data_shards.records.schema import TIMED

_ALIGN = 64


NO_TIMES = torch.empty(0)


def _times(group: Any) -> Tensor:
    """Times of a group's objects; zeros where none were given."""
    if group.times_P is NO_TIMES:
        return torch.zeros(group.pairs, device=group.modality_P.device)
    return group.times_P  # type: ignore[no-any-return]


@dataclass
class Group:
    """Present pairs of one batch group, or their objects.

    modality_P: int64 schema numbers; sample_P: int64 rows of the batch.
    """

    modality_P: Tensor
    sample_P: Tensor

    @property
    def pairs(self) -> int:
        """Number P of present (sample, modality) pairs, of a timed group of objects."""
        return self.modality_P.shape[0]


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
class CodesGroup(Group):
    """Codes of pair p are [offsets[p], offsets[p+1]), sorted by (time, number).

    offsets: int64 [P+1]; ids_O: int64, number in the modality's vocabulary; times_O: float32 in the modality's time
    unit, 0 without times; values_O: float32, raw, NaN where a code has none.
    """

    offsets: Tensor
    ids_O: Tensor
    times_O: Tensor
    values_O: Tensor


@dataclass
class TextGroup(Group):
    """UTF-8 bytes of object p are bytes_O[offsets[p]:offsets[p+1]] (uint8); times_P float32, 0 without times."""

    offsets: Tensor
    bytes_O: Tensor
    times_P: Tensor = NO_TIMES

    def __post_init__(self) -> None:
        self.times_P = _times(self)


@dataclass
class WaveformGroup(Group):
    """Samples of object p are values_OC[offsets[p]:offsets[p+1]] (float32, raw); times_P as of texts."""

    offsets: Tensor
    values_OC: Tensor
    times_P: Tensor = NO_TIMES

    def __post_init__(self) -> None:
        self.times_P = _times(self)


@dataclass
class VectorGroup(Group):
    """values_PF: float32, raw; times_P as of texts."""

    values_PF: Tensor
    times_P: Tensor = NO_TIMES

    def __post_init__(self) -> None:
        self.times_P = _times(self)


@dataclass
class ImageGroup(Group):
    """values_PCHW: uint8 if every modality of the group is, else float32; raw; times_P as of texts."""

    values_PCHW: Tensor
    times_P: Tensor = NO_TIMES

    def __post_init__(self) -> None:
        self.times_P = _times(self)


GROUPS: dict[str, type[Group]] = {
    "series": SeriesGroup,
    "codes": CodesGroup,
    "text": TextGroup,
    "waveform": WaveformGroup,
    "vector": VectorGroup,
    "image": ImageGroup,
}


def group_type(name: str) -> type[Group]:
    """The class of a group, which is named after its kind: ``text``, ``timed_image/3x8x8``, ..."""
    return GROUPS[name.split("/")[0].removeprefix(TIMED)]


@dataclass
class Batch:
    """Some records of a data set.

    Attributes:
        keys: record keys [B].
        index_B: int64, number of each record in the data set.
        present_BM: bool.
        targets: task -> float32 [B, t]; t = 1 for binary and multiclass (class number), L for multilabel, n for
            regression, 2 for survival (time, and 1 if it was seen or 0 if censored); NaN = unlabelled.
        groups: group id -> group; every group of the schema is there, with P = 0 if nobody has it.
        known_BM: bool, of a mixture of data sets: modalities that the record's own data set has. None: all of them.
        moment_B: float32, time of each sample's moment in the moments' unit, NaN in data of a mixture that have none;
            None in data whose tasks have none.
        plan: what a model has worked out of the batch before it was copied to a device; the model's own matter.
    """

    keys: list[str]
    index_B: Tensor
    present_BM: Tensor
    targets: dict[str, Tensor]
    groups: dict[str, Group]
    known_BM: Tensor | None = None
    moment_B: Tensor | None = None
    plan: Any = field(default=None, repr=False, compare=False)
    _buffer: Tensor | None = field(default=None, repr=False, compare=False)

    KIND: ClassVar[str] = "fleximoe-batch-1"

    def __len__(self) -> int:
        return len(self.index_B)

    def names(self) -> list[str]:
        """Of the samples: keys, with the moment behind them where there is one (``sample_name``)."""
        if self.moment_B is None:
            return self.keys
        return [sample_name(key, moment) for key, moment in zip(self.keys, self.moment_B.tolist(), strict=True)]

    def absent(self) -> Tensor:
        """bool [B, M]: modalities that a record could have and has not."""
        return ~self.present_BM if self.known_BM is None else self.known_BM & ~self.present_BM

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.index_B.device

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by a flat name, in a fixed order."""
        flat = {"index": self.index_B, "present": self.present_BM}
        flat |= {} if self.known_BM is None else {"known": self.known_BM}
        flat |= {} if self.moment_B is None else {"moment": self.moment_B}
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
        """The batch on another device, moved as one copy; `on_host` still knows what it was made of. Without a plan.

        Args:
            non_blocking: go on while the copy is made, which takes page-locked memory (`pin_memory`).
        """
        if torch.device(device) == self.device:
            return self
        buffer = self.to_buffer()
        moved = buffer.to(device, non_blocking=non_blocking)
        table = _table(buffer)
        return _build(_views(moved, table), table["keys"], buffer)

    def on_host(self) -> Batch:
        """The same batch on the CPU: nobody waits for a device if it was moved there by `to`."""
        if self.device.type == "cpu":
            return self
        return Batch.from_buffer(self.to_buffer())

    def changed(self, present_BM: Tensor, groups: dict[str, Group]) -> Batch:
        """The same records with other pairs."""
        return replace(self, present_BM=present_BM, groups=groups, plan=None, _buffer=None)

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory (needs an accelerator)."""
        buffer = self.to_buffer()
        return self if buffer.is_pinned() else Batch.from_buffer(buffer.pin_memory())


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
    groups = {name: group_type(name)(**columns) for name, columns in parts.items()}
    known, moment = views.get("known"), views.get("moment")
    return Batch(keys, views["index"], views["present"], targets, groups, known, moment, None, buffer)
