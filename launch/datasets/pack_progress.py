"""How far a pack is, for people: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from data_shards.packing.units.line import Progress
from launch.output.tables import people

logger = logging.getLogger(__name__)

TELL_S = 10.0


@contextlib.contextmanager
def shown(console: Console = people) -> Iterator[Callable[[Progress], None]]:
    """What hears of progress, until the context ends."""
    if not console.is_terminal:
        yield _Lines()
        return
    with Bar(BarColumn(), TextColumn("{task.description}"), console=console, transient=True) as bar:
        task = bar.add_task("packing", total=None)

        def hear(progress: Progress) -> None:
            bar.update(task, total=progress.all_units, completed=progress.units, description=words(progress))

        yield hear


class _Lines:
    def __init__(self) -> None:
        self._said = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        if time.monotonic() - self._said >= TELL_S:
            self._said = time.monotonic()
            logger.info("%s", words(progress))


def words(progress: Progress) -> str:
    """E.g. "1,200 records, 31.5 MB, 40% of the source, about 70 s left"."""
    size = progress.bytes / 1e6
    text = f"{progress.records:,} records, {size:,.1f} MB, {progress.units / progress.all_units:.0%} of the source"
    left = progress.seconds_left
    return text if left is None else f"{text}, about {left:,.0f} s left"
