"""A source of records that is not the project's: who was there on a day, as a text or not at all.

It belongs to the same package as `presence_job`; `pack roll_call` finds it by its entry point.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from pydantic import Field

from data_shards import DatasetSchema, ModalitySpec, Record, TaskSpec
from data_shards.sources.base import Source, SourceOptions


class RollCallOptions(SourceOptions):
    """Options of the source."""

    days: int = Field(6, ge=1, description="number of records")


class RollCall(Source):
    """On every even day somebody was there."""

    Options = RollCallOptions
    schema = DatasetSchema("roll_call", (ModalitySpec("who", "text", max_length=16),), (TaskSpec("even", "binary"),))

    def units(self) -> range:
        return range(self.options.days)  # type: ignore[attr-defined]

    def read(self, unit: int, notes: Counter[str]) -> Iterator[Record]:
        even = unit % 2 == 0
        yield Record(f"day{unit}", {"who": f"nobody but {unit}"} if even else {}, {"even": float(even)})
