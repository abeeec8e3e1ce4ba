"""The clock of leases: seconds that also pass while a process is frozen or the machine sleeps."""

from __future__ import annotations

import threading
import time


class Clock:
    """Time since the machine was started. It is never set, and is one clock for all processes of a machine."""

    def now(self) -> float:
        """Seconds."""
        # CLOCK_MONOTONIC stands still in suspend, and so would a lease that others see run out.
        return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()

    def wait(self, event: threading.Event, seconds: float) -> bool:
        """Wait for an event at most this long; whether it has come."""
        return event.wait(seconds)

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        time.sleep(seconds)
