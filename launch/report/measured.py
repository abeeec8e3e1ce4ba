"""Numbers of a run's page that are made from what the run keeps: intervals, cost, who serves what."""

from __future__ import annotations

import math
from statistics import median
from typing import Any

import numpy as np

from data_shards import TaskSpec
from launch.compare.comparison import COUNTS, draws_of
from launch.compare.tested import Kept, why_none
from launch.report.kept import said
from trainer.metrics.bootstrap.intervals import DRAWS, Interval, draw_weights, interval
from trainer.tracking.history import TrackedRun

Row = tuple[Any, ...]

METRIC_COLUMNS = ("metric", "value", "95 % from", "to")
EXPERT_COLUMNS = ("block", "modality", "choices", "busiest expert", "its share", "evenness")
PROMPT_COLUMNS = ("place", "busiest expert", "its mean weight", "entropy")
CALIBRATION = ("ece", "brier", "integrated_brier")


def intervals(run: TrackedRun, kept: Kept | None) -> dict[str, Interval]:
    """Test metric -> its interval over draws of the test records."""
    if kept is None or not kept.predictions.records:
        return {}
    draws = draws_of(kept, draw_weights(kept.predictions.records))
    found = {name: interval(values) for name, values in draws.items() if name in run.metrics}
    return {name: own for name, own in found.items() if own is not None}


def metric_rows(run: TrackedRun, found: dict[str, Interval]) -> list[Row]:
    """Rows of METRIC_COLUMNS: every test metric of the run, with the interval where there is one."""
    names = [name for name in run.metrics if name.startswith("test/") and name not in COUNTS]
    rows = []
    for name in names:
        own = found.get(name)
        rows.append((name, float(run.metrics[name]), *((own.low, own.high) if own else (None, None))))
    return rows


def counts_words(run: TrackedRun, found: dict[str, Interval], kept: Kept | None) -> str:
    """What was tested, and where intervals come from."""
    told = [f"{int(run.metrics[name]):,} {name.removeprefix('test/')}" for name in COUNTS if name in run.metrics]
    about = f"Of the test part: {', '.join(told)}." if told else ""
    drawn = f" Intervals: the middle 95 % over {DRAWS:,} draws of the test records." if found else ""
    without = "" if kept is not None or not told else f" The run {why_none(run)}, so there are no intervals."
    return (about + (drawn or without)).strip()


def expert_rows(routing: dict[str, Any] | None) -> list[Row]:
    """Rows of EXPERT_COLUMNS. Evenness: entropy of a modality's shares over its largest value, 1 is all alike."""
    rows: list[Row] = []
    for block, layer in enumerate(routing["layers"] if routing else []):
        for modality, counts in zip(routing["modalities"], layer, strict=True):  # type: ignore[index]
            count_E = np.asarray(counts, float)
            if count_E.sum():
                busiest = int(count_E.argmax())
                share = float(count_E[busiest] / count_E.sum())
                rows.append((block, modality, int(count_E.sum()), busiest, share, evenness(count_E)))
    return rows


def evenness(count_E: np.ndarray) -> float:
    """Entropy of shares over the logarithm of how many there are; 1 of a single expert."""
    share_E = count_E[count_E > 0] / count_E.sum()
    return float(-(share_E * np.log(share_E)).sum() / math.log(len(count_E))) if len(count_E) > 1 else 1.0


def prompt_rows(sites: dict[str, list[float]], entropy: dict[str, float]) -> list[Row]:
    """Rows of PROMPT_COLUMNS, one a place of prompts."""
    found = []
    for site, weights in sites.items():
        busiest = int(np.argmax(weights))
        found.append((site, busiest, float(weights[busiest]), entropy.get(site)))
    return found


def cost_rows(run: TrackedRun, result: dict[str, Any], checkpoint_bytes: int | None) -> list[Row]:
    """(what, number, unit). Sums are over the logged steps; each line of a log stands for the steps since the last."""
    workers = int(said(run.params, "parallel.workers", "1"))
    seconds = seconds_by_line(run)
    rate = dict(run.history("perf/tflops"))
    arithmetic = sum(rate[step] * workers * spent for step, spent in seconds.items() if step in rate)
    # On a frozen backbone only what is trained is counted so.
    own = "trained parameters" if run.metrics.get("parameters/frozen") else "parameters"
    rows: list[Row | None] = [
        ("workers", workers, ""),
        _last(run, "parameters/total", own, ""),
        _last(run, "parameters/active", f"{own} that a token passes", ""),
        _last(run, "parameters/experts", f"{own} of experts", ""),
        _last(run, "parameters/frozen", "frozen parameters", "") if own != "parameters" else None,
        _last(run, "train/samples_seen", "samples seen", ""),
        ("time in training steps", sum(seconds.values()), "s") if seconds else None,
        ("time of the last start, from its first second to its last", float(result["seconds"]), "s")
        if "seconds" in result
        else None,
        ("arithmetic in training steps", arithmetic, "TFLOP") if arithmetic else None,
        _middle(run, "perf/step_s", "a step, median", "s"),
        _middle(run, "perf/samples_per_s", "samples each second, median", "1/s"),
        _middle(run, "perf/tokens_per_s", "tokens each second, median", "1/s"),
        _middle(run, "perf/tflops", "arithmetic rate of a worker, median", "TFLOP/s"),
        _middle(run, "perf/mfu", "share of what the devices could do, median", ""),
        _middle(run, "perf/loader_share", "share of the time that waited for data, median", ""),
        _most(run, "perf/memory_gib", "memory of a worker, most", "GiB"),
        ("checkpoint", checkpoint_bytes / 2**20, "MiB") if checkpoint_bytes is not None else None,
    ]
    return [row for row in rows if row is not None]


def seconds_by_line(run: TrackedRun) -> dict[int, float]:
    """Logged step -> seconds of the steps since the line before."""
    found: dict[int, float] = {}
    before = 0
    for step, each in run.history("perf/step_s"):
        found[step], before = each * (step - before), step
    return found


def _last(run: TrackedRun, name: str, words: str, unit: str) -> Row | None:
    return (words, int(run.metrics[name]), unit) if name in run.metrics else None


def _middle(run: TrackedRun, name: str, words: str, unit: str) -> Row | None:
    values = [value for _, value in run.history(name)]
    return (words, float(median(values)), unit) if values else None


def _most(run: TrackedRun, name: str, words: str, unit: str) -> Row | None:
    values = [value for _, value in run.history(name)]
    return (words, float(max(values)), unit) if values else None


def calibration_rows(run: TrackedRun, tasks: list[TaskSpec], temperatures: dict[str, float]) -> list[Row]:
    """(task, ece, brier, temperature) of every task that has any of it."""
    rows = []
    for task in tasks:
        prefix = "test" if len(tasks) == 1 else f"test/{task.name}"
        ece, *briers = (run.metrics.get(f"{prefix}/{name}") for name in CALIBRATION)
        brier = next((value for value in briers if value is not None), None)
        if (ece, brier) != (None, None):
            rows.append((task.name, ece, brier, temperatures.get(task.name)))
    return rows
