"""What the towers read of a batch: pixels, or tokens of its texts, and whose they are.

Shapes: P records that have the modality, R records of the data set, D width of a tower.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data_shards import Batch, Group, ImageGroup, TextGroup
from trainer.models.mope.towers.tower import Tower
from trainer.worker.collectives import rows_everywhere


@dataclass(frozen=True)
class Seen:
    """What a tower reads of a batch, worked out on the CPU, and the records (rows of the batch) that have it.

    Attributes:
        place_P: pairs of the batch's group that are meant; None: all of them. tokens: numbers and which of them are
            the text's own, of texts. numbers_P: the records' numbers in the data set. records: of the batch.
        known: whether what a frozen tower says of all of them has been kept.
    """

    place_P: Tensor | None
    tokens: tuple[Tensor, Tensor] | None
    rows_P: Tensor
    numbers_P: Tensor
    records: int
    known: bool

    def pictures(self, group: Group) -> Tensor:
        """(P, C, H, W)."""
        assert isinstance(group, ImageGroup)
        return group.values_PCHW if self.place_P is None else group.values_PCHW.index_select(0, self.place_P)

    @property
    def complete(self) -> bool:
        return len(self.rows_P) == self.records

    def spread(self, value_PK: Tensor) -> Tensor:
        """(B, K): a row for every record; NaN for those without the modality."""
        if self.complete:
            return value_PK
        return value_PK.new_full((self.records, value_PK.shape[1]), torch.nan).index_copy(0, self.rows_P, value_PK)


def places_of(group: Group, modality: int) -> Tensor:
    """Pairs of a group on the CPU that are of the modality with this number."""
    return (group.modality_P == modality).nonzero()[:, 0]


def look(batch: Batch, tower: Tower, group: Group, modality: int, needed: bool, features: Features | None) -> Seen:
    """The tower's inputs of a batch on the CPU.

    Args:
        group: of the batch, where the modality of this number is. needed: whether every record must have it.
        features: what the tower has said before, if it was kept.

    Raises:
        ValueError: a record does not have it.
    """
    place_P = places_of(group, modality)
    rows_P = group.sample_P[place_P]
    if needed and len(rows_P) < len(batch):
        lost = sorted(set(range(len(batch))) - set(rows_P.tolist()))[0]
        raise ValueError(
            f"record {batch.keys[lost]} has no {'picture' if tower.what == 'image' else 'text'}, which the "
            f"{tower.what} tower reads: leave such records out when packing, or set mope.missing=learned"
        )
    tokens, numbers_P = None, batch.index_B[rows_P]
    if isinstance(group, TextGroup):
        ends, data = group.offsets.tolist(), group.bytes_O.numpy().tobytes()
        tokens = tower.texts([data[ends[i] : ends[i + 1]] for i in place_P.tolist()])
    known = features is not None and features.know(numbers_P)
    every = None if len(place_P) == group.pairs else place_P
    return Seen(every, tokens, rows_P, numbers_P, len(batch), known)


@dataclass
class Features:
    """Vectors of records by their number in the data set, and on the CPU for which there are any."""

    values_RD: Tensor
    known_R: Tensor

    @classmethod
    def gather(cls, rows: list[tuple[Tensor, Tensor]], records: int, tower: Tower) -> Features:
        """What all ranks have found. Collective."""
        device = next(tower.parameters()).device
        empty = torch.zeros(0, tower.width, dtype=tower.dtype, device=device)
        number_X = rows_everywhere(torch.cat([torch.zeros(0, dtype=torch.int64, device=device), *(n for n, _ in rows)]))
        values_XD = rows_everywhere(torch.cat([empty, *(v for _, v in rows)]))
        found = cls(
            torch.zeros(records, tower.width, dtype=tower.dtype, device=device), torch.zeros(records, dtype=torch.bool)
        )
        found.values_RD[number_X], found.known_R[number_X.cpu()] = values_XD, True
        return found

    def know(self, numbers_P: Tensor) -> bool:
        """Whether all of them are there: not so for records of another part. For numbers on the CPU."""
        return bool(self.known_R[numbers_P].all())


def learned_vectors(missing: str, widths: dict[str, int]) -> nn.ParameterDict:
    """One (1, D) for each tower, unless records must be complete."""
    wanted = {} if missing == "refuse" else widths
    return nn.ParameterDict({what: nn.Parameter(torch.zeros(1, width)) for what, width in wanted.items()})


def generators(missing: str, widths: dict[str, tuple[int, int]]) -> nn.ModuleDict:
    """For each host (width of its source, its own) the map; it starts at nothing: the learned vector alone."""
    made = nn.ModuleDict({host: nn.Linear(*pair) for host, pair in widths.items()} if missing == "generated" else {})
    for parameter in made.parameters():
        nn.init.zeros_(parameter)
    return made


def generated_for(seen: Seen, generator: nn.Module, psi_BX: Tensor) -> Tensor:
    """(B, D) from what the source says, zero for records that have the host."""
    absent_B1 = psi_BX.new_ones(seen.records, 1).index_fill(0, seen.rows_P, 0.0)
    dtype = next(generator.parameters()).dtype
    generated_BD: Tensor = generator(psi_BX.to(dtype)) * absent_B1.to(dtype)
    return generated_BD
