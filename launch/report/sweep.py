"""A sweep as its folders have it: variants, trials, scores by samples seen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import mean
from typing import Any

from data_shards.yaml_file import parse_yaml
from launch.compare.variants import SEEDS
from trainer.run_folder import FAILED, PRUNED, SWEEP, metric_lines, read_json, stored_result

Point = tuple[float, float]


@dataclass(frozen=True)
class TrialKept:
    """One trial. `points`: (samples seen, value of the sweep's metric) of every evaluation, as they came."""

    name: str
    settings: dict[str, Any]
    seed: Any
    state: str
    points: list[Point]
    test: dict[str, float]


@dataclass(frozen=True)
class SweepKept:
    """All of it. `larger`: whether more of the metric is better."""

    name: str
    metric: str
    larger: bool
    trials: list[TrialKept]

    @property
    def keys(self) -> list[str]:
        """Settings that differ between trials, in the order of the space."""
        names = dict.fromkeys(key for trial in self.trials for key in trial.settings)
        return [key for key in names if len({str(trial.settings.get(key)) for trial in self.trials}) > 1]

    def best_of(self, points: list[Point]) -> float:
        """The best value among points."""
        return (max if self.larger else min)(value for _, value in points)

    def variants(self) -> list[tuple[tuple[Any, ...], float, int, int]]:
        """(values of the keys, mean over its finished trials of their best, finished, trials), the best first.

        Variants with unfinished trials come after those without, and are there if at least one has finished.
        """
        groups: dict[tuple[Any, ...], list[TrialKept]] = {}
        for trial in self.trials:
            groups.setdefault(tuple(trial.settings.get(key) for key in self.keys), []).append(trial)
        rows = []
        for values, own in groups.items():
            ended = [self.best_of(trial.points) for trial in own if trial.state == "finished" and trial.points]
            if ended:
                rows.append((values, mean(ended), len(ended), len(own)))
        return sorted(rows, key=lambda row: (row[2] < row[3], -row[1] if self.larger else row[1]))

    def so_far(self) -> dict[str, list[Point]]:
        """Trial -> its best value so far by samples seen."""
        return {trial.name: list(self._running(sorted(trial.points))) for trial in self.trials if trial.points}

    def by_budget(self) -> list[tuple[float, float, str]]:
        """(samples seen, best value of any trial that has seen no more, that trial), where it gets better."""
        events = sorted((seen, value, trial.name) for trial in self.trials for seen, value in trial.points)
        found: list[tuple[float, float, str]] = []
        for event in events:
            better = not found or (event[1] > found[-1][1] if self.larger else event[1] < found[-1][1])
            if better and found and found[-1][0] == event[0]:
                found[-1] = event
            elif better:
                found.append(event)
        return found

    def _running(self, points: list[Point]) -> Iterator[Point]:
        best = points[0][1]
        for seen, value in points:
            best = max(best, value) if self.larger else min(best, value)
            yield seen, best


def read_sweep(run_dir: str) -> SweepKept | None:
    """The sweep of a folder; None if there is none."""
    stored = read_json(run_dir, SWEEP)
    if stored is None:
        return None
    name = str(stored["recipe"]["name"])
    trials = [_trial(f"{run_dir}/{name}-{number:03d}", words, stored["metric"]) for number, words in
              enumerate(stored["trials"])]  # fmt: skip
    return SweepKept(name, stored["metric"], stored["mode"] == "max", trials)


def _trial(folder: str, words: list[str], metric: str) -> TrialKept:
    settings = {key: parse_yaml(text, key) for key, _, text in (word.partition("=") for word in words)}
    seed = settings.get(SEEDS[0])
    seen: dict[int, float] = {}
    values: dict[int, float] = {}
    for line in metric_lines(folder):
        found = line.get("metrics", {})
        if "train/samples_seen" in found:
            seen[line["step"]] = found["train/samples_seen"]
        if metric in found:
            values[line["step"]] = found[metric]
    points = [(_near(seen, step), value) for step, value in values.items()]
    result = stored_result(folder)
    state = (
        "finished" if result else "stopped early" if read_json(folder, PRUNED) is not None
        else "failed" if read_json(folder, FAILED) is not None else "unfinished" if values else "not begun"
    )  # fmt: skip
    settings = {key: value for key, value in settings.items() if key not in SEEDS}
    return TrialKept(
        folder.rsplit("/", 1)[-1], settings, seed, state, points, dict(result["metrics"]) if result else {}
    )


def _near(seen: dict[int, float], step: int) -> float:
    """Samples seen at a step: as logged then, else in proportion to the nearest logged step."""
    if step in seen or not seen:
        return seen.get(step, float(step))
    nearest = min(seen, key=lambda known: abs(known - step))
    return seen[nearest] * step / max(1, nearest)
