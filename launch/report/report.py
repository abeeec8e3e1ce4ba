"""The verb `report`: a run or a sweep as one HTML file."""

from __future__ import annotations

from pathlib import Path

from data_shards.paths import absolute_path
from launch.errors import UsageError
from launch.output.html import write_page
from launch.report.computed import SAMPLE


def write_report(run_dir: str, out: str | None = None, sample: int = SAMPLE) -> Path:
    """Write the page of a run's or a sweep's folder; returns where.

    Args:
        out: the file; default: `NAME.html` in the working folder.
        sample: samples of the test part on which is computed what the run does not keep; 0 = nothing is.

    Raises:
        UsageError: there is no such run, or the sample is negative.
    """
    from launch.report.sweep import read_sweep

    if sample < 0:
        raise UsageError(f"a sample of {sample} records: give 0 (nothing is computed) or more")
    path = absolute_path(out or f"{run_dir.rstrip('/').rsplit('/', 1)[-1]}.html")
    sweep = read_sweep(run_dir)
    if sweep is not None:
        from launch.report.sweep_page import sweep_page

        text = sweep_page(sweep)
    else:
        from launch.report.run_page import run_page

        text = run_page(run_dir, sample)
    write_page(text, path)
    return path
