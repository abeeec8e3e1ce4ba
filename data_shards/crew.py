"""Who does the work of a pack: this process, processes of this machine, or (launch/runs) those of a cluster.

A *team* knows some works by name. What a work makes may be kept where it was made: then a summary comes back, and a
handle that later works are given.
"""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from data_shards.scratch import Scratch

Buffer = bytes | memoryview
Work = Callable[[Any, Sequence[Buffer]], Any]
"""(item, buffers that were kept) -> result; of one that keeps, (result, buffer)."""
Works = Mapping[str, Work]


class Kept(Protocol):
    """A buffer somewhere. `free` it when nobody needs it any more."""

    def free(self) -> None:
        """Forget it."""


class Ticket(Protocol):
    """Something that was asked for."""

    def done(self) -> bool:
        """Whether `get` would not wait."""

    def get(self) -> Any:
        """The result; (result, `Kept`) of a work that keeps. Raises what the work raised."""


class Team(Protocol):
    """Workers who know the same works."""

    @property
    def size(self) -> int:
        """How many work at the same time, as far as is known now."""

    @property
    def apart(self) -> bool:
        """Whether some may work on another machine."""

    def ask(self, work: str, item: Any, kept: Sequence[Kept] = (), keep: bool = False) -> Ticket:
        """Let somebody work."""


class Crew(Protocol):
    """Where teams come from."""

    def team(self, works: Works) -> AbstractContextManager[Team]:
        """Workers, until the context ends; what has not been begun then is left undone."""


def in_order(team: Team, work: str, items: Iterable[Any]) -> Iterator[Any]:
    """The result of each item, in order, a few in flight."""
    waiting: deque[Ticket] = deque()
    for item in items:
        waiting.append(team.ask(work, item))
        if len(waiting) >= 2 * team.size:
            yield waiting.popleft().get()
    while waiting:
        yield waiting.popleft().get()


class Here:
    """This process does everything, at once."""

    size = 1

    @contextlib.contextmanager
    def team(self, works: Works) -> Iterator[Team]:
        """As `Crew.team`."""
        yield _Here(works)


class _Here:
    size, apart = 1, False

    def __init__(self, works: Works) -> None:
        self._works = works

    def ask(self, work: str, item: Any, kept: Sequence[Any] = (), keep: bool = False) -> Ticket:
        found = self._works[work](item, [own.buffer for own in kept])
        return _Done((found[0], _Held(found[1])) if keep else found)


class _Held:
    def __init__(self, buffer: bytes) -> None:
        self.buffer = buffer

    def free(self) -> None:
        self.buffer = b""


class _Done:
    def __init__(self, result: Any) -> None:
        self._result = result

    def done(self) -> bool:
        return True

    def get(self) -> Any:
        return self._result


class Processes:
    """Processes of this machine. What is kept lies in files of a scratch folder, so it never passes through this one.

    Args:
        count: of them.
    """

    def __init__(self, count: int) -> None:
        self.count = count

    @contextlib.contextmanager
    def team(self, works: Works) -> Iterator[Team]:
        """As `Crew.team`. Each process is given the works once, however much they carry."""
        context = multiprocessing.get_context("spawn")
        with (
            Scratch("units") as folder,
            ProcessPoolExecutor(self.count, mp_context=context, initializer=_start, initargs=(works, folder)) as pool,
        ):
            try:
                yield _Pool(pool, self.count)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)


class _Pool:
    apart = False

    def __init__(self, pool: ProcessPoolExecutor, size: int) -> None:
        self._pool, self.size = pool, size

    def ask(self, work: str, item: Any, kept: Sequence[Any] = (), keep: bool = False) -> Ticket:
        return _Asked(self._pool.submit(_do, work, item, [own.path for own in kept], keep))


class _Asked:
    def __init__(self, future: Future[Any]) -> None:
        self._future = future

    def done(self) -> bool:
        return self._future.done()

    def get(self) -> Any:
        try:
            return self._future.result()
        except BrokenProcessPool:
            raise BrokenProcessPool(
                "a worker process was killed, often because memory was short: the same command goes on from what is "
                "complete; fewer --workers take less"
            ) from None


class _File:
    def __init__(self, path: Path) -> None:
        self.path = path

    def free(self) -> None:
        self.path.unlink(missing_ok=True)


_own: list[tuple[Works, str]] = []  # of a worker process


def _start(works: Works, folder: str) -> None:
    _own.append((works, folder))


def _do(work: str, item: Any, paths: Sequence[Path], keep: bool) -> Any:
    works, folder = _own[0]
    with contextlib.ExitStack() as opened:
        found = works[work](item, [opened.enter_context(_mapped(path)) for path in paths])
    if not keep:
        return found
    path = Path(folder) / uuid.uuid4().hex
    path.write_bytes(found[1])
    return found[0], _File(path)


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[Buffer]:
    if not path.stat().st_size:
        yield b""
        return
    with path.open("rb") as stream:
        # Not closed by hand: arrays may still be views of it, and it goes with the last of them.
        yield memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
