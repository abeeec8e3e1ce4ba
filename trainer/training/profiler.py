"""A trace of a few training steps with torch's profiler, handed to the tracker as one file for a trace viewer."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import TracebackType

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from trainer.tracking.tracker import Tracker

SKIPPED = 4  # the first steps allocate and warm up; one more step warms the profiler itself up
FILE = "profile/trace.json.gz"


class StepProfiler:
    """Context manager around training; `step()` after every optimiser step. Does nothing if `steps` is 0.

    The trace is `profile/trace.json.gz` of the run, in Chrome's format (ui.perfetto.dev opens it).
    """

    def __init__(self, steps: int, tracker: Tracker) -> None:
        self._tracker = tracker
        self._profile: profile | None = None
        if steps:
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
            plan = schedule(wait=SKIPPED, warmup=1, active=steps, repeat=1)
            self._profile = profile(activities=activities, schedule=plan, on_trace_ready=self._log)

    def __enter__(self) -> StepProfiler:
        if self._profile is not None:
            self._profile.__enter__()
        return self

    def step(self) -> None:
        """An optimiser step has ended."""
        if self._profile is not None:
            self._profile.step()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._profile is not None:
            self._profile.__exit__(kind, error, traceback)

    def _log(self, trace: profile) -> None:
        with tempfile.TemporaryDirectory(prefix="trace_") as folder:
            path = Path(folder) / "trace.json.gz"
            trace.export_chrome_trace(str(path))
            self._tracker.log_file(FILE, path)
