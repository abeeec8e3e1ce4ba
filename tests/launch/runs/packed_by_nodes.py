"""`python -m tests.launch.runs.packed_by_nodes FOLDER ADDRESS`: a pack by the nodes of a Ray; prints the report.

Which node reads a unit is noted as an empty file beside the folder. A node whose environment has GUEST hangs in its
third unit, until it is killed: FOLDER.hung says that it does.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from data_shards import Record, pack
from launch.runs.crews import crew_at
from tests.data_shards import build
from tests.data_shards.build import SCHEMA, ListSource, make_record
from tests.data_shards.packing.units.killed_pack import SIZES

COUNT = 1_400


class Noted(ListSource):
    """Slow enough for two nodes to take part."""

    def __init__(self, folder: str) -> None:
        super().__init__(SCHEMA, [make_record(i) for i in range(COUNT)])
        self.folder = folder

    def read(self, unit: tuple[int, int], notes: Counter[str]) -> Iterator[Record]:
        import ray

        node = ray.get_runtime_context().get_node_id()
        Path(f"{self.folder}.unit-{unit[0]}-{node}").touch()
        own = list(Path(self.folder).parent.glob(f"{Path(self.folder).name}.unit-*-{node}"))
        if "GUEST" in os.environ and len(own) == 3:
            Path(f"{self.folder}.hung").touch()
            time.sleep(600)
        time.sleep(0.1)
        yield from super().read(unit, notes)


def main() -> None:
    folder, address = sys.argv[1:]
    with crew_at(address, 0, debug=False) as crew:
        from ray import cloudpickle

        cloudpickle.register_pickle_by_value(build)  # tests are not part of what a driver ships
        report = pack(Noted(folder), folder, crew=crew, **SIZES)
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
