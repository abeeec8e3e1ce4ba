"""What tables of codes that are spread over ranks occupy and send. What is replicated is a parameter like any other."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from parallel.tables.table import first_row, spread_tables

WEIGHT = 4  # bytes of an element: tables stay fp32
MOMENTS = 2 * 4
OF_A_ROW = 4  # bytes of a row that is trained: its last step
# Times the gradient of a step's rows that is there where they are updated: measured. A CPU takes some rows at a time.
UPDATED, UPDATED_ON_CPU = 7, 3
ID = 8  # bytes


@dataclass(frozen=True)
class TableSize:
    """A spread table."""

    rows: int
    dim: int
    trained: bool = True

    def kept(self, world: int) -> int:
        """Bytes on the rank with the most rows."""
        most = max(first_row(self.rows, world, r + 1) - first_row(self.rows, world, r) for r in range(world))
        return most * (self.dim * (WEIGHT + self.trained * MOMENTS) + self.trained * OF_A_ROW)

    def sent(self, codes: float, world: int, width: int) -> float:
        """Bytes that a rank sends in a micro-batch of so many different codes on each: ids, rows, and gradients."""
        return codes * (ID + (1 + self.trained) * self.dim * width) * (world - 1) / world


def table_sizes(model: nn.Module) -> list[TableSize]:
    """Of a model's tables that are spread; it may be one without memory."""
    return [TableSize(t.rows, t.dim, t.weight.requires_grad) for t in spread_tables(model).values()]
