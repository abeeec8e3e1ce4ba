"""`python -m tests.launch.runs.packed_on_ray FOLDER LAST`: a pack on a local Ray, whose workers die.

The process that reads unit 5 first is killed, and that which reads unit 9 first; the driver kills itself when unit LAST
is taken in. It prints the report.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from data_shards import Record, pack
from data_shards.packing.units.line import Progress
from launch.cluster.environment import prepare_for_ray
from tests.data_shards.build import SCHEMA, ListSource, make_record
from tests.data_shards.packing.units.killed_pack import SIZES
from trainer.config.run_config import RunConfig

COUNT = 200


class Deadly(ListSource):
    """Kills the process that reads one of two units, once each."""

    def __init__(self, folder: str) -> None:
        super().__init__(SCHEMA, [make_record(i) for i in range(COUNT)])
        self.folder = folder

    def read(self, unit: tuple[int, int], notes: Counter[str]) -> Iterator[Record]:
        mark = Path(f"{self.folder}.killed-{unit[0]}")
        if unit[0] in (35, 63) and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        yield from super().read(unit, notes)


def main() -> None:
    folder, last = sys.argv[1], int(sys.argv[2])

    def told(progress: Progress) -> None:
        if progress.units == last:
            os.kill(os.getpid(), signal.SIGKILL)

    parallel = {"workers": 2, "expert_parallel": 1}
    config = RunConfig.of({"name": "crew", "data": {"url": "."}, "parallel": parallel})
    prepare_for_ray(config)
    from launch.cluster.ray_session import ray_session
    from launch.runs.ray_crew import RayCrew

    with ray_session(config):
        report = pack(Deadly(folder), folder, crew=RayCrew(2), told=told, **SIZES)
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
