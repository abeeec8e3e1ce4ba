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


@dataclass
class Seen:
    """What a tower reads of a batch: its inputs, and the records (rows of the batch) that have them."""

    inputs: tuple[Tensor, ...]
    rows_P: Tensor
    numbers_P: Tensor
    """their numbers in the data set"""
    records: int

    @property
    def complete(self) -> bool:
        return len(self.rows_P) == self.records

    def spread(self, value_PK: Tensor) -> Tensor:
        """(B, K): a row for every record; NaN for those without the modality."""
        if self.complete:
            return value_PK
        return value_PK.new_full((self.records, value_PK.shape[1]), torch.nan).index_copy(0, self.rows_P, value_PK)


def look(batch: Batch, tower: Tower, group: Group, modality: int, needed: bool) -> Seen:
    """The tower's inputs of a batch.

    Args:
        group: of the batch, where the modality of this number is. needed: whether every record must have it.

    Raises:
        ValueError: a record does not have it.
    """
    mine_P = group.modality_P == modality
    rows_P = group.sample_P[mine_P]
    if needed and len(rows_P) < len(batch):
        lost = sorted(set(range(len(batch))) - set(rows_P.tolist()))[0]
        raise ValueError(
            f"record {batch.keys[lost]} has no {'picture' if tower.what == 'image' else 'text'}, which the "
            f"{tower.what} tower reads: leave such records out when packing, or set mope.missing=learned"
        )
    if isinstance(group, ImageGroup):
        return Seen((group.values_PCHW[mine_P],), rows_P, batch.index_B[rows_P], len(batch))
    assert isinstance(group, TextGroup)
    ends = group.offsets.tolist()
    data = group.bytes_O.cpu().numpy().tobytes()
    texts = [data[ends[i] : ends[i + 1]] for i in mine_P.nonzero()[:, 0].tolist()]
    return Seen(tower.texts(texts, batch.device), rows_P, batch.index_B[rows_P], len(batch))


@dataclass
class Features:
    """Vectors of records by their number in the data set."""

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
            torch.zeros(records, tower.width, dtype=tower.dtype, device=device),
            torch.zeros(records, dtype=torch.bool, device=device),
        )
        found.values_RD[number_X], found.known_R[number_X] = values_XD, True
        return found

    def look_up(self, numbers_P: Tensor) -> Tensor | None:
        """(P, D), or None if any of them is not there: records of another part."""
        return self.values_RD[numbers_P] if bool(self.known_R[numbers_P].all()) else None


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
