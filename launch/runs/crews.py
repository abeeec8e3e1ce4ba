"""Who works for a command on data: processes of this machine, or workers of a Ray cluster if one is meant."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from data_shards.crew import Crew, Here, Processes
from launch.cluster.environment import in_submitted_job, prepare_for_ray
from trainer.config.run_config import RunConfig


@contextlib.contextmanager
def crew_at(address: str | None, workers: int, debug: bool) -> Iterator[Crew]:
    """The crew at `address`, or of the job that this runs in; without both of this machine.

    Args:
        workers: at most so many work at a time; 0: one for each CPU, of this machine or of the cluster.

    Raises ConnectionError: there is no Ray at the address.
    """
    if not (address or in_submitted_job()):
        count = workers or os.cpu_count() or 1
        yield Processes(count) if count > 1 else Here()
        return
    cluster: dict[str, Any] = {"cpus_per_worker": 1.0} | ({"address": address} if address else {})
    parallel = {"workers": max(1, workers), "expert_parallel": 1}
    config = RunConfig.of({"name": "crew", "data": {"url": "."}, "parallel": parallel, "cluster": cluster})
    prepare_for_ray(config)
    from launch.cluster.ray_session import ray_session
    from launch.runs.ray_crew import RayCrew

    # Everything is asked for inside: a crew is no longer there when its Ray is left.
    with ray_session(config, debug):
        yield RayCrew(workers)
