"""Where every element of a checkpoint lies: one file of columns for all ranks, in safetensors layout.

Each rank describes its stream (`message`); rank 0 puts the descriptions one after the other (`joined`) and looks
whether every element of every parameter is there, once. The index says nothing of experts or ZeRO: who wrote an
interval is the number of a file and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data_shards.records.arrays import Limits, dump_tensors, load_tensors
from trainer.checkpoints.pieces import ROLES, CheckpointError
from trainer.checkpoints.stream import DIGEST, PART, Interval, Written, file_name

Parameters = Mapping[str, Sequence[int]]
LIMITS = Limits(header_bytes=1 << 26, member_bytes=1 << 34)


@dataclass(frozen=True)
class Place:
    """Bytes [begin, end) of a rank's stream, which belong `offset` bytes from where the wanted interval begins."""

    rank: int
    begin: int
    end: int
    offset: int


def message(intervals: Sequence[Interval], written: Written, numbers: dict[str, int]) -> bytes:
    """One rank's description. `numbers`: of the parameters, by name."""
    columns: dict[str, np.ndarray] = {
        "name": np.array([numbers[interval.name] for interval in intervals], np.int32),
        "start": np.array([interval.start for interval in intervals], np.int64),
        "numel": np.array([interval.numel for interval in intervals], np.int64),
        "header_bytes": written.header_bytes,
        "header_digests": written.header_digests,
        "block_digests": written.block_digests,
    }
    return dump_tensors(columns, {})


def joined(messages: Sequence[bytes], names: Sequence[str]) -> bytes:
    """The index of all ranks, from their descriptions. `names`: of the parameters, by number."""
    ranks = [load_tensors(one, LIMITS)[0] for one in messages]
    columns = {key: np.concatenate([columns[key] for columns in ranks]) for key in ranks[0]}
    columns["intervals"] = np.array([len(columns["name"]) for columns in ranks], np.int32)
    return dump_tensors(columns, {"names": json.dumps(list(names))})


class Index:
    """An index at hand.

    Args:
        parameters: logical shapes by name, of those that must be there.
        tag: of the checkpoint's files: `stream.file_name`. block, part: bytes of a block and of a file. roles: in each
            rank's stream.
    """

    def __init__(
        self,
        data: bytes,
        parameters: Parameters,
        tag: str,
        block: int,
        part: int = PART,
        roles: Sequence[str] = ROLES,
    ) -> None:
        columns, metadata = load_tensors(data, LIMITS)
        self._names: list[str] = json.loads(metadata["names"])
        self._numbers = {name: number for number, name in enumerate(self._names)}
        self._sizes = {name: int(np.prod(shape)) for name, shape in parameters.items()}
        self._tag, self.block, self.part, self.roles = tag, block, part, tuple(roles)
        counts = columns["intervals"]
        rank = np.repeat(np.arange(len(counts)), counts)
        numel = columns["numel"].astype(np.int64)
        before = np.concatenate([[0], np.cumsum(numel)])
        first = np.concatenate([[0], np.cumsum(counts)])
        # Elements of each rank in one role; where an interval begins among them.
        self._each = before[first[1:]] - before[first[:-1]]
        offset = before[:-1] - before[first[:-1]][rank]
        # By parameter, and there by place: an interval is found by halving.
        order = np.lexsort((columns["start"], columns["name"]))
        self._name, self._start = columns["name"][order], columns["start"][order]
        self._numel, self._rank, self._offset = numel[order], rank[order], offset[order]
        self._bounds = np.searchsorted(self._name, np.arange(len(self._names) + 1))
        self._header_bytes, self._header_digests = columns["header_bytes"], columns["header_digests"]
        self._block_digests = columns["block_digests"]
        self._first_file = np.concatenate([[0], np.cumsum(-(-self.stream_bytes // part))])
        self._first_block = np.concatenate([[0], np.cumsum(-(-self.stream_bytes // block))])

    @property
    def stream_bytes(self) -> np.ndarray:
        """Length of each rank's stream."""
        lengths: np.ndarray = 4 * len(self.roles) * self._each
        return lengths

    def check(self, where: str) -> None:
        """Whether the intervals tile every parameter, and all digests are there. Raises CheckpointError."""
        for name, size in self._sizes.items():
            number = self._numbers.get(name)
            own = slice(self._bounds[number], self._bounds[number + 1]) if number is not None else slice(0, 0)
            edges = np.concatenate([self._start[own], [size]])
            ends = np.concatenate([[0], self._start[own] + self._numel[own]])
            if not np.array_equal(edges, ends):
                held = int(self._numel[own].sum())
                raise CheckpointError(
                    f"{where} is incomplete: it holds {held} of the {size} elements of {name}"
                    + (", some of them twice" if held >= size else "")
                )
        expected = (self._first_file[-1], self._first_block[-1])
        if (len(self._header_bytes), len(self._block_digests)) != expected:
            raise CheckpointError(f"{where} is incomplete: it has not the digest of every block")

    def file(self, rank: int, part: int) -> tuple[str, int, bytes]:
        """Name, bytes and digest of the header of one file of a rank's stream."""
        at = self._first_file[rank] + part
        return file_name(self._tag, rank, part), int(self._header_bytes[at]), self._header_digests[at].tobytes()

    def digests(self, rank: int, begin: int, end: int) -> list[bytes]:
        """Of the blocks of bytes [begin, end) of a rank's stream; `begin` is a block's."""
        first = self._first_block[rank]
        rows = self._block_digests[first + begin // self.block : first - (-end // self.block)].tobytes()
        return [rows[at : at + DIGEST] for at in range(0, len(rows), DIGEST)]

    def find(self, name: str, role: str, start: int, numel: int) -> Iterator[Place]:
        """Where elements [start, start + numel) of a logical tensor lie, as far as they are there."""
        number = self._numbers.get(name)
        if number is None:
            return
        low, high = self._bounds[number], self._bounds[number + 1]
        first = low + max(0, int(np.searchsorted(self._start[low:high], start, "right")) - 1)
        for at in range(first, high):
            own, length = int(self._start[at]), int(self._numel[at])
            if own >= start + numel:
                return
            begin, end = max(start, own), min(start + numel, own + length)
            if begin < end:
                rank = int(self._rank[at])
                base = int(self._each[rank]) * self.roles.index(role) + int(self._offset[at]) - own
                yield Place(rank, 4 * (base + begin), 4 * (base + end), 4 * (begin - start))

    def content(self, rank: int, begin: int) -> str:
        """Parameter and role of which byte `begin` of a rank's stream is, for messages."""
        role, element = divmod(begin // 4, int(self._each[rank]))
        own = np.flatnonzero((self._rank == rank) & (self._offset <= element))
        at = own[np.argmax(self._offset[own])]
        return f"{self._names[int(self._name[at])]}, {self.roles[role]}"
