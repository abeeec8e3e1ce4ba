"""`python -m tests.data_shards.packing.units.killed_pack FOLDER WORKERS LAST`: a pack that ends in the middle.

It reads slowly, so that what is complete is noted now and then, and its driver is killed when unit LAST is read.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

from data_shards import Record, pack
from data_shards.packing.units.line import Progress
from tests.data_shards.build import SCHEMA, ListSource, make_record

COUNT = 200
SIZES: dict[str, Any] = {"chunk_records": 5, "shard_bytes": 20_000, "log_s": 0}


def source() -> ListSource:
    return ListSource(SCHEMA, [make_record(i) for i in range(COUNT)])


class Counted(ListSource):
    """Remembers how many records were read here."""

    def __init__(self, records: list[Record]) -> None:
        super().__init__(SCHEMA, records)
        self.read_here = 0

    def fingerprint(self) -> str:
        return source().fingerprint() or ""

    def read(self, unit: tuple[int, int], notes: Counter[str]) -> Iterator[Record]:
        for record in super().read(unit, notes):
            self.read_here += 1
            yield record


def main() -> None:
    folder, workers, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

    def told(progress: Progress) -> None:
        if progress.units == last:
            os.kill(os.getpid(), signal.SIGKILL)

    pack(source(), folder, workers=workers, told=told, **SIZES)


if __name__ == "__main__":
    main()
