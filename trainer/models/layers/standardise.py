"""Standardisation with the training part's statistics, inside the model.

The model takes raw values in the data set's units; means and deviations come from the manifest (training part of
the chosen split only) and travel with the checkpoint. So a model never depends on how a caller scaled its input,
and evaluation on other data uses the scale that the model was trained with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Constant(nn.Module):
    """A float32 table that follows the module's device but never its precision (bf16 would lose statistics)."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self._table = table.float()
        self.register_buffer("value", self._table.clone(), persistent=False)
        self.value: Tensor

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        self.value = self._table.to(self.value.device)
        return self

    def forward(self) -> Tensor:
        return self.value


class Standardiser(nn.Module):
    """(x - mean) / std by (modality of the group, feature), clipped to +-`clip` deviations.

    Args:
        mean, std: one list per modality of the group; shorter ones are padded. Features that were never observed
            get mean 0 and deviation 1; features that never vary get deviation 1.
    """

    def __init__(self, mean: list[list[float]], std: list[list[float]], clip: float) -> None:
        super().__init__()
        self.clip = clip
        self.mean_MF = Constant(_table(mean, 0.0, lowest=-torch.inf))
        self.scale_MF = Constant(1 / _table(std, 1.0, lowest=1e-12))

    def forward(self, value: Tensor, block: Tensor, feature: Tensor | None = None) -> Tensor:
        """One leading row per entry of `block`; `feature` names the column of each row, else a row holds them all."""
        mean, scale = self.mean_MF(), self.scale_MF()
        index = (block,) if feature is None else (block, feature)
        return ((value.float() - mean[index]) * scale[index]).clamp(-self.clip, self.clip)


def _table(rows: list[list[float]], fill: float, lowest: float) -> Tensor:
    table = torch.full((len(rows), max(len(row) for row in rows)), fill)
    for index, row in enumerate(rows):
        table[index, : len(row)] = torch.tensor(row)
    return torch.where(torch.isfinite(table) & (table > lowest), table, torch.full_like(table, fill))
