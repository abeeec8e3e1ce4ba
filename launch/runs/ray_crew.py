"""Workers of a pack on the nodes of a Ray cluster: each piece of work is a task, what it keeps lies in its store.

A worker or node that dies takes nothing along: Ray begins its tasks again, also those that had made what is lost. A
node that joins is given work, too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import ray

from data_shards.crew import Team, Ticket, Works
from launch.errors import RunFailedError

FAILURES = 5
"""How often a task is begun again when its worker dies."""


class RayCrew:
    """Workers of the Ray that this process is connected to.

    Args:
        workers: at most so many work at a time; 0: one for each CPU of the cluster.
    """

    def __init__(self, workers: int = 0) -> None:
        self.workers = workers

    @contextlib.contextmanager
    def team(self, works: Works) -> Iterator[Team]:
        """As `Crew.team`; the works are put into the object store once."""
        yield _RayTeam(works, self.workers)


class _RayTeam:
    apart = True

    def __init__(self, works: Works, workers: int) -> None:
        self._works, self._workers = ray.put(dict(works)), workers
        self._task = ray.remote(_do)

    @property
    def size(self) -> int:
        return self._workers or max(1, int(ray.cluster_resources().get("CPU", 1)))

    def ask(self, work: str, item: Any, kept: Sequence[Any] = (), keep: bool = False) -> Ticket:
        returns = 2 if keep else 1
        task = self._task.options(num_cpus=1, max_retries=FAILURES, num_returns=returns, name=f"pack:{work}")
        # Buffers as arguments of their own: Ray lets a task run where they are.
        return _Asked(task.remote([self._works], work, item, keep, *(own.ref for own in kept)))


class _Asked:
    def __init__(self, refs: Any) -> None:
        self._result, *self._kept = refs if isinstance(refs, list) else [refs]

    def done(self) -> bool:
        return bool(ray.wait([self._result], timeout=0, fetch_local=False)[0])

    def get(self) -> Any:
        try:
            result = ray.get(self._result)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, ValueError | OSError | EOFError):
                raise error.cause from error
            raise RunFailedError(f"{type(error.cause).__name__}: {error.cause}") from error
        except ray.exceptions.RayError as error:
            raise RunFailedError(str(error).strip().split("\n")[0]) from error
        return (result, _Reference(self._kept[0])) if self._kept else result


class _Reference:
    def __init__(self, ref: Any) -> None:
        self.ref = ref

    def free(self) -> None:
        self.ref = None


_known: dict[str, Works] = {}  # of a worker process


def _do(works: list[Any], work: str, item: Any, keep: bool, *kept: np.ndarray) -> Any:
    """In a worker: works are unpacked once a process, however much they carry."""
    ref = works[0]
    if ref.hex() not in _known:
        _known.clear()
        _known[ref.hex()] = ray.get(ref)
    found = _known[ref.hex()][work](item, [memoryview(buffer) for buffer in kept])  # type: ignore[arg-type]
    return (found[0], np.frombuffer(found[1], np.uint8)) if keep else found
