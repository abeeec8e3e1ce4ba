"""What people see of a run: log lines and, on a terminal, a progress bar. All of it on stderr; stdout is for scripts.

A log line that knows how far the run is carries `extra=bar(step, total)`; on a terminal it moves the bar,
elsewhere the line itself says it.
"""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.highlighter import NullHighlighter
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LOGGERS = ("fleximoe", "launch", "trainer", "parallel", "data_shards")


def bar(step: int, total: int) -> dict[str, tuple[int, int]]:
    """For `logger.info(..., extra=bar(step, total))`."""
    return {"progress": (step, total)}


def json_line(result: Mapping[str, Any]) -> str:
    """One line of strict JSON: NaN and infinity, which JSON has no word for, become null."""
    return json.dumps(_finite(result), default=str, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def show_logs(rank: int = 0, debug: bool = False, console: Console | None = None) -> None:
    """Send the project's log lines to the terminal: all of rank 0, warnings of the other ranks. May be called again."""
    console = console or Console(stderr=True, soft_wrap=True)
    handler: logging.Handler
    if console.is_terminal:
        handler = BarHandler(console)
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    level = logging.DEBUG if debug else logging.INFO if rank == 0 else logging.WARNING
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.handlers = [handler]
        logger.propagate = False
    logging.captureWarnings(not debug)  # a library's deprecation is of no use to who trains


class BarHandler(RichHandler):
    """Rich log lines above one progress bar, which appears with the first line that knows the total."""

    def __init__(self, console: Console) -> None:
        style: dict[str, Any] = {"show_path": False, "show_level": False, "log_time_format": "%H:%M:%S"}
        super().__init__(console=console, highlighter=NullHighlighter(), **style)
        columns = (TextColumn("training"), BarColumn(bar_width=None), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console, transient=True)
        self._task = self._bar.add_task("training", total=None)

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        if hasattr(record, "progress"):
            step, total = record.progress
            self._bar.update(self._task, completed=step, total=total)
            if step < total:
                self._bar.start()
            else:
                self._bar.stop()

    def close(self) -> None:
        self._bar.stop()
        super().close()
