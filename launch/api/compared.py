"""Runs compared from Python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from data_shards.paths import absolute_path
from launch.api.errors import speaking
from launch.api.run import Run
from launch.api.shown import frame
from launch.compare.compare import find_and_compare, write_report
from launch.compare.comparison import Comparison
from launch.errors import UsageError
from launch.output.html import paragraph, table

if TYPE_CHECKING:
    import pandas as pd

VARIANTS = ("variant", "runs", "metric", "mean", "sd", "low", "high")
PAIRS = ("first", "second", "difference", "low", "high", "p", "seeds_p", "shared_seeds", "verdict")


class Compared:
    """What `compare` finds. `finding` is it in words, `metric` what ranks, `notes` what to know of it."""

    def __init__(self, comparison: Comparison) -> None:
        self._comparison = comparison
        self.metric, self.finding, self.notes = comparison.metric, comparison.finding, list(comparison.notes)
        self.comparable = comparison.comparable

    @property
    def table(self) -> pd.DataFrame:
        """One row a variant and metric, the best variant first; `low` and `high` are 95 % over test records."""
        return frame(VARIANTS, self._variants())

    @property
    def pairs(self) -> pd.DataFrame:
        """One row a pair of variants that compare: difference with its interval, p values, verdict."""
        return frame(PAIRS, self._pairs())

    @speaking
    def save(self, path: str) -> None:
        """Write the report, one HTML file."""
        write_report(self._comparison, absolute_path(str(path)))

    def _variants(self) -> list[tuple[Any, ...]]:
        rows = []
        for variant in self._comparison.variants:
            for name in self._comparison.metrics:
                middle, spread = variant.spread(name)
                found = variant.interval(name)
                ends = (found.low, found.high) if found else (None, None)
                rows.append((variant.label, len(variant.runs), name, middle, spread, *ends))
        return rows

    def _pairs(self) -> list[tuple[Any, ...]]:
        rows = []
        for pair in self._comparison.pairs:
            own = pair.records
            numbers = (own.value, own.low, own.high, own.p) if own is not None else (None,) * 4
            rows.append((pair.first.label, pair.second.label, *numbers, pair.seeds_p, pair.shared_seeds, pair.verdict))
        return rows

    def __repr__(self) -> str:
        return f"<Compared by {self.metric}: {self.finding}>"

    def _repr_html_(self) -> str:
        parts = [table(VARIANTS, self._variants()), table(PAIRS, self._pairs())]
        return "".join([*parts, paragraph(self.finding), *map(paragraph, self.notes)])


def compare(runs: Sequence[Any], experiment: str | None, metric: str | None, mlflow: str | None) -> Compared:
    """See `fleximoe.compare`."""
    if isinstance(runs, str | Run):
        raise UsageError("compare takes a list of runs: compare([first, second])")
    return Compared(find_and_compare([str(run) for run in runs], experiment, metric, mlflow))
