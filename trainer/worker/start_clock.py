"""What the start of a worker is spent on, from the first sign that the workers before it failed to its first step.

A run that is restarted is as good as the time it takes to train again, so every start says where that time went: one
log line, and `lifecycle/` metrics at its first step.
"""

from __future__ import annotations

import logging
import time

logger = logging.getLogger(__name__)


class StartClock:
    """Seconds that each phase of a start took. Phases follow each other without a gap.

    Args:
        since: when the first phase began, in seconds since the epoch; None = now.
        attempt: how often the job's workers have been started, this time included.
    """

    def __init__(self, since: float | None = None, attempt: int = 1) -> None:
        self.attempt = attempt
        self._last = time.time() if since is None else since
        self.phases: dict[str, float] = {}

    def mark(self, phase: str, at: float | None = None) -> None:
        """`phase` ends now, or did at `at`; the next one begins. Clocks of hosts differ: no phase is negative."""
        at = max(self._last, time.time() if at is None else at)
        self.phases[phase] = self.phases.get(phase, 0.0) + at - self._last
        self._last = at

    def report(self, step: int) -> dict[str, float]:
        """Say it, once the first step is done, and return it as metrics. For rank 0."""
        total = sum(self.phases.values())
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.phases.items())
        logger.info("step %d is the first of attempt %d, after %.1f s: %s", step, self.attempt, total, parts)
        values = {f"lifecycle/{name.replace(' ', '_')}_s": seconds for name, seconds in self.phases.items()}
        return {**values, "lifecycle/start_s": total, "lifecycle/attempt": self.attempt}
