"""Figures of a run's page and of a sweep's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from launch.compare.tested import Kept
from trainer.evaluation.sampled import EIGHTHS
from trainer.figures.evaluation import reliability_figure
from trainer.figures.prompt_experts import site_figure
from trainer.figures.routing import routing_figure
from trainer.figures.survival import curves_figure, survival_calibration_figure
from trainer.metrics.calibration import statements, statements_name
from trainer.metrics.survival_scores import followed
from trainer.tracking.history import TrackedRun

BARS = 15  # modalities of a figure, at most
EXPERTS = ("moe/evenness", "moe/load_ratio", "moe/specialisation", "moe/dead_share")


def curves(run: TrackedRun, metric: str | None) -> Figure | None:
    """Loss of training and of validation, and the validation metric that stands for the run, by step."""
    losses = {name: run.history(name) for name in ("train/loss", "val/loss")}
    second = metric.replace("test/", "val/", 1) if metric else None
    measured = run.history(second) if second and second != "val/loss" else []
    if not any(losses.values()):
        return None
    figure = Figure(figsize=(10, 3.6))
    left, *right = figure.subplots(1, 2 if measured else 1, squeeze=False)[0]
    for number, (name, points) in enumerate(losses.items()):
        _line(left, points, name, f"C{number}")
    left.set(xlabel="optimiser step", ylabel="loss")
    left.legend()
    for axes in right:
        _line(axes, measured, second or "", "C1")
        axes.set(xlabel="optimiser step", ylabel=second)
    best = run.metrics.get("best/step")
    for axes in (left, *right) if best is not None else ():
        axes.axvline(best, color="gray", linestyle=":")
        axes.annotate("best", (best, 1), xycoords=("data", "axes fraction"), ha="right", va="top")
    figure.tight_layout()
    return figure


def _line(axes: Axes, points: list[tuple[int, float]], label: str, colour: str) -> None:
    if points:
        style: dict[str, Any] = {"marker": "o", "markersize": 3} if len(points) < 30 else {}
        axes.plot(*zip(*points, strict=True), color=colour, label=label, **style)
    axes.spines[["top", "right"]].set_visible(False)


def reliability(kept: Kept | None) -> Figure | None:
    """Stated and found chances of every task with classes."""
    stated = {}
    for task in kept.tasks if kept else ():
        own = statements(task, kept.predictions.logits[task.name], kept.predictions.targets[task.name])  # type: ignore[union-attr]
        if own is not None and len(own[0]):
            stated[statements_name(task)] = own
    return reliability_figure(stated) if stated else None


def survival(kept: Kept | None) -> list[tuple[str, Figure]]:
    """(what is shown, figure) of every survival task with labels."""
    found = []
    for task in kept.tasks if kept else ():
        target_B2 = kept.predictions.targets[task.name]  # type: ignore[union-attr]
        if task.kind != "survival" or bool(target_B2.isnan().any(dim=1).all()):
            continue
        own = followed(task, kept.predictions.logits[task.name], target_B2)  # type: ignore[union-attr]
        found.append((f"{task.name}: predicted curves and Kaplan-Meier's", curves_figure(task, own)))
        if len(own.edge_T):
            found.append((f"{task.name}: stated and found chances", survival_calibration_figure(task, own)))
    return found


def routing(table: dict[str, Any] | None) -> Figure | None:
    """Which expert serves which modality."""
    if not table or not table["layers"]:
        return None
    return routing_figure(table["modalities"], [torch.tensor(layer) for layer in table["layers"]])


def prompts(sites: dict[str, list[float]], entropy: dict[str, float]) -> Figure:
    """What each prompt expert weighs, place by place."""
    return site_figure({site: torch.tensor(weights) for site, weights in sites.items()}, entropy)


def experts_over_time(run: TrackedRun) -> Figure | None:
    """How evenly experts were used while training."""
    found = {name: run.history(name) for name in EXPERTS if run.history(name)}
    if not found:
        return None
    figure = Figure(figsize=(10, 2.6))
    for axes, (name, points) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
        _line(axes, points, name, "C0")
        axes.set(xlabel="optimiser step", title=name)
        axes.set_ylim(0, 1.1 * max(value for _, value in points) or 1)
    figure.tight_layout()
    return figure


def modality_shares(found: dict[str, dict[str, tuple[float, int]]]) -> Figure | None:
    """Mean share of each modality, a panel a task; the largest `BARS`."""
    tasks = {task: sorted(own.items(), key=lambda item: -item[1][0])[:BARS] for task, own in found.items() if own}
    if not tasks:
        return None
    figure = Figure(figsize=(10, sum(0.9 + 0.28 * len(own) for own in tasks.values())))
    ratios = [0.9 + 0.28 * len(own) for own in tasks.values()]
    panels = figure.subplots(len(tasks), 1, squeeze=False, gridspec_kw={"height_ratios": ratios})[:, 0]
    for axes, (task, own) in zip(panels, tasks.items(), strict=True):
        axes.barh([name for name, _ in own][::-1], [share for _, (share, _) in own][::-1], color="C0")
        axes.set(xlabel=f"{task}: mean share of the change of an answer")
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure


def time_shares(found: dict[str, list[float]]) -> Figure | None:
    """Mean share of each eighth of the observation window."""
    if not found:
        return None
    figure = Figure(figsize=(10, 2.8))
    axes = figure.add_subplot()
    width = 0.9 / len(found)
    for number, (task, shares) in enumerate(found.items()):
        places = np.arange(EIGHTHS) + 0.05 + number * width
        axes.bar(places, shares, width, align="edge", color=f"C{number % 10}", label=task)
    axes.set_xticks(range(EIGHTHS + 1), [f"{100 * place / EIGHTHS:g} %" for place in range(EIGHTHS + 1)])
    axes.set(xlabel="of the observation window", ylabel="mean share of the change")
    axes.spines[["top", "right"]].set_visible(False)
    if len(found) > 1:
        axes.legend()
    figure.tight_layout()
    return figure


def parallel_coordinates(keys: Sequence[str], rows: Sequence[Sequence[Any]], metric: str, best: int) -> Figure | None:
    """A line a variant through its value of each key to its score; the best one stands out.

    Args:
        rows: values of the keys, then the score; of `best`, the number of the best row.
    """
    if not keys or not rows:
        return None
    figure = Figure(figsize=(10, 4.2))
    axes = figure.add_subplot()
    columns = [_scaled([row[place] for row in rows]) for place in range(len(keys) + 1)]
    for number in sorted(range(len(rows)), key=lambda number: number == best):
        style: dict[str, Any] = {"color": "C1", "linewidth": 3} if number == best else {"color": "C0", "alpha": 0.6}
        axes.plot(range(len(columns)), [column[0][number] for column in columns], marker="o", markersize=4, **style)
    for place, (_, ticks) in enumerate(columns):
        axes.axvline(place, color="gray", linewidth=0.8)
        for height, text in ticks:
            ground: dict[str, Any] = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
            axes.annotate(text, (place, height), xytext=(4, 2), textcoords="offset points", bbox=ground, zorder=9)
    axes.set_xticks(range(len(columns)), [*(key.rsplit(".", 1)[-1] for key in keys), metric])
    axes.set_yticks([])
    axes.set_xlim(-0.1, len(columns) - 1 + 0.6)
    axes.spines[:].set_visible(False)
    figure.tight_layout()
    return figure


def _scaled(values: list[Any]) -> tuple[list[float], list[tuple[float, str]]]:
    """Values between 0 and 1, and what to write beside the axis at which height: numbers by size, words by order."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        low, high = min(values), max(values)
        logarithmic = low > 0 and high / low >= 20
        sizes = np.log(values) if logarithmic else np.asarray(values, float)
        spread = float(np.ptp(sizes)) or 1.0
        heights = ((sizes - sizes.min()) / spread).tolist()
        distinct = sorted(dict(zip(heights, values, strict=True)).items())
        shown = distinct if len(distinct) <= 6 else [distinct[0], distinct[-1]]
        return heights, [(height, f"{value:.4g}") for height, value in shown]
    words = sorted({str(value) for value in values})
    place = {word: number / max(1, len(words) - 1) for number, word in enumerate(words)}
    return [place[str(value)] for value in values], [(height, word) for word, height in place.items()]


def by_budget(trials: dict[str, list[tuple[float, float]]], best: list[tuple[float, float]], metric: str) -> Figure:
    """Best value of each trial so far by samples seen, and of all trials that have seen no more."""
    figure = Figure(figsize=(10, 3.8))
    axes = figure.add_subplot()
    for points in trials.values():
        axes.step(*zip(*points, strict=True), where="post", color="C0", alpha=0.5, marker="o", markersize=2.5)
    axes.step(*zip(*best, strict=True), where="post", color="C1", linewidth=3, label="best of all trials")
    axes.set(xlabel="samples that a trial has seen", ylabel=f"best {metric} so far")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend()
    figure.tight_layout()
    return figure
