"""How far a run is: a line that changes in a notebook, a bar on a terminal, plain lines elsewhere; never on stdout."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any, Protocol

from rich.console import Console

from trainer.worker.console import BarHandler

Steps = tuple[int, int] | None  # done, of how many


class Shown(Protocol):
    """Where log lines of a run go."""

    def line(self, text: str, level: int, steps: Steps) -> None:
        """Show one."""


class _Nothing:
    def line(self, text: str, level: int, steps: Steps) -> None:
        """Warnings are shown all the same."""
        if level >= logging.WARNING:
            print(text, file=sys.stderr)


class _Lines:
    def line(self, text: str, level: int, steps: Steps) -> None:
        """As the commands print them to a file."""
        print(text, file=sys.stderr, flush=True)


class _Bar:
    """A terminal."""

    def __init__(self) -> None:
        self._handler = BarHandler(Console(stderr=True, soft_wrap=True))

    def line(self, text: str, level: int, steps: Steps) -> None:
        """Log lines above a bar."""
        record = logging.LogRecord("fleximoe", level, "", 0, text, None, None)
        if steps is not None:
            record.progress = tuple(steps)
        self._handler.emit(record)

    def close(self) -> None:
        """Take the bar away."""
        self._handler.close()


class _Notebook:
    """A cell's output: a bar and the newest line; warnings stay."""

    def __init__(self, display: Any) -> None:
        self._display = display
        self._handle: Any = None
        self._kept: list[str] = []
        self._steps: Steps = None

    def line(self, text: str, level: int, steps: Steps) -> None:
        """Change what the cell shows."""
        self._steps = steps or self._steps
        if level >= logging.WARNING:
            self._kept.append(text)
        html = self._display.HTML(progress_html(text, self._steps, self._kept))
        if self._handle is None:
            self._handle = self._display.display(html, display_id=True)
        else:
            self._handle.update(html)


def progress_html(text: str, steps: Steps, warnings: list[str]) -> str:
    """What a cell shows."""
    done = "" if steps is None else f'<progress value="{steps[0]}" max="{steps[1]}"></progress> {steps[0]}/{steps[1]} '
    kept = "".join(f"<br>{escape(warning)}" for warning in warnings)
    return f"<div>{done}<code>{escape(text)}</code>{kept}</div>"


def in_notebook() -> bool:
    """Whether this is the kernel of a notebook."""
    ipython = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(ipython, "kernel")


@contextmanager
def show_progress(wanted: bool) -> Iterator[Shown]:
    """Where to show how far something is."""
    if not wanted:
        yield _Nothing()
    elif in_notebook():
        yield _Notebook(sys.modules["IPython.display"])
    elif sys.stderr.isatty():
        bar = _Bar()
        try:
            yield bar
        finally:
            bar.close()
    else:
        yield _Lines()
