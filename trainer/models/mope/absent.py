"""What stands for a picture or a text that a record does not have.

A learned vector in the place of what the tower would have read out; for a prompted tower, where the recipe asks for it,
plus a linear map of what the other tower says (an imputation in the space of features).

Shapes: B records, X width of the source, D width of the host.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainer.models.mope.seen import Seen


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
