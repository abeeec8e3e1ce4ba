"""What a frozen encoder has said before, by the content of what it was asked about.

Rows are kept on the device, so that the host waits for nothing: it knows by number which row is whose. A row that is
there stays; when the place is full, what is new is encoded each time. What is kept was encoded alone, so that it is a
function of the object and of nothing else: a run that was stopped, and has nothing kept, goes on with equal numbers.

Shapes: P objects, K of them that were known, S kept rows, X numbers of an object.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FIRST_ROWS = 256


@dataclass(frozen=True)
class KeptRows:
    """Which objects of a group were known.

    Attributes:
        slot_K: int64, kept row of each that was. place_P: int64, where each object is among these and, behind them,
            the new ones. new: objects that are to be encoded. contents: their digests.
    """

    slot_K: Tensor
    place_P: Tensor
    new: list[int]
    contents: list[bytes]


class Features:
    """Rows of one encoder.

    Args:
        width: X. mib: most that is kept.

    Attributes:
        hits, misses: objects that were known, and that were not.
    """

    def __init__(self, width: int, mib: int) -> None:
        self.most = (mib << 20) // (4 * width)
        self.width, self.hits, self.misses = width, 0, 0
        self._slots: dict[bytes, int] = {}
        self._values_SX: Tensor | None = None

    def __len__(self) -> int:
        return len(self._slots)

    def look(self, contents: Sequence[bytes]) -> KeptRows:
        """On the CPU: which of these are there. What comes twice in a group is encoded once."""
        digests = [hashlib.blake2b(content, digest_size=16).digest() for content in contents]
        slots: list[int] = []
        new: list[int] = []
        places: list[tuple[bool, int]] = []
        first: dict[bytes, int] = {}
        for place, digest in enumerate(digests):
            if digest in self._slots:
                places.append((True, len(slots)))
                slots.append(self._slots[digest])
                continue
            if digest not in first:
                first[digest] = len(new)
                new.append(place)
            places.append((False, first[digest]))
        self.hits += len(digests) - len(new)
        self.misses += len(new)
        place_P = torch.tensor(
            [number if known else len(slots) + number for known, number in places], dtype=torch.int64, device="cpu"
        )
        slot_K = torch.tensor(slots, dtype=torch.int64, device="cpu")
        return KeptRows(slot_K, place_P, new, [digests[place] for place in new])

    def complete(self, new_QX: Tensor, kept: KeptRows) -> Tensor:
        """(P, X): known rows and new ones in the group's order; the new are kept, as far as there is room."""
        rows_KX = new_QX[:0]
        if len(kept.slot_K):
            assert self._values_SX is not None
            rows_KX = self._values_SX.index_select(0, kept.slot_K)
        self._keep(new_QX, kept.contents)
        return torch.cat([rows_KX, new_QX]).index_select(0, kept.place_P)

    def _keep(self, new_QX: Tensor, contents: list[bytes]) -> None:
        # A batch that was prepared before the one before it was encoded may bring the same again.
        wanted = [row for row, digest in enumerate(contents) if digest not in self._slots]
        start = len(self._slots)
        wanted = wanted[: self.most - start]
        if not wanted:
            return
        self._room(start + len(wanted), new_QX)
        assert self._values_SX is not None
        rows_SX = new_QX if len(wanted) == len(new_QX) else new_QX[wanted]
        self._values_SX[start : start + len(wanted)].copy_(rows_SX)
        self._slots |= {contents[row]: start + number for number, row in enumerate(wanted)}

    def _room(self, rows: int, like: Tensor) -> None:
        held = 0 if self._values_SX is None else len(self._values_SX)
        if rows <= held:
            return
        grown_SX = like.new_empty(min(self.most, max(FIRST_ROWS, 2 * held)), self.width)
        if self._values_SX is not None:
            grown_SX[:held].copy_(self._values_SX)
        self._values_SX = grown_SX
