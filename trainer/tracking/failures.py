"""What can go wrong between a tracker and its store, by what helps: waiting, a person, or nothing.

Any other exception of a store means that it cannot be reached now: everything is kept, and tried again later.
"""

from __future__ import annotations

import logging
from collections import Counter

logger = logging.getLogger(__name__)


class RefusedError(Exception):
    """The store understood an operation and will never accept it."""


class UncertainError(Exception):
    """The store answers, and an operation failed all the same: it may be the operation, it may pass."""


class BusyError(Exception):
    """The store is there and has no time: the same again in a moment."""


class ClosedError(Exception):
    """The store takes nothing of this run until a person does something. The text says what happened and what helps."""


class Remarks:
    """What a store keeps otherwise than it was logged, or not at all: each kind is said once, all are counted."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._counts: Counter[str] = Counter()

    def add(self, text: str, count: int = 1) -> None:
        """Count, and say it if it is new."""
        if text not in self._counts:
            logger.warning("%s: %s", self._label, text)
        self._counts[text] += count

    def __str__(self) -> str:
        """All of them with their counts; empty if there are none."""
        return "; ".join(f"{text}{f' ({count} times)' if count > 1 else ''}" for text, count in self._counts.items())
