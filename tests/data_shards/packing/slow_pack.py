"""`python -m tests.data_shards.packing.slow_pack URL LEASE_S SEED`: a pack that says where it is and waits for a word.

It prints `packing` when shards are written, and goes on with the next line on stdin; then `packed DIGEST`, or why not.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator

from data_shards import Record, pack
from data_shards.errors import LeaseLostError
from tests.data_shards.build import SCHEMA, ListSource, make_record


class SlowSource(ListSource):
    """Waits before its last unit."""

    def read(self, unit: tuple[int, int], notes: Counter[str]) -> Iterator[Record]:
        if unit[1] == len(self.list):
            print("packing", flush=True)
            sys.stdin.readline()
        yield from super().read(unit, notes)


def main() -> None:
    url, lease_s, seed = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
    source = SlowSource(SCHEMA, [make_record(i, seed=seed) for i in range(40)])
    try:
        report = pack(source, url, chunk_records=5, shard_bytes=20_000, lease_s=lease_s)
        print("packed", report["digest"], flush=True)
    except LeaseLostError as error:
        print("lost:", error, flush=True)


if __name__ == "__main__":
    main()
