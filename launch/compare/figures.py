"""Figures of a comparison, as SVG texts."""

from __future__ import annotations

from typing import Any

import torch
from matplotlib.figure import Figure

from launch.compare.comparison import Comparison
from launch.compare.variants import Variant
from trainer.figures.evaluation import missing_figure, reliability_figure
from trainer.figures.routing import routing_figure
from trainer.metrics.calibration import statements
from trainer.metrics.main_metric import larger_is_better
from trainer.metrics.prediction_table import read_predictions
from trainer.run_folder import MISSING_CURVE, ROUTING, TEST_PREDICTIONS
from trainer.tracking.history import TrackedRun

MOST_CALIBRATED = 8  # variants in the figure of reliability


def forest(comparison: Comparison) -> Figure | None:
    """Mean of each variant with its interval over records, and its runs as dots; None where they do not compare."""
    if not comparison.comparable:
        return None
    variants = comparison.variants[::-1]
    figure = Figure(figsize=(8, 1.2 + 0.45 * len(variants)))
    axes = figure.add_subplot()
    for row, variant in enumerate(variants):
        values = variant.values(comparison.metric)
        axes.plot(values, [row] * len(values), "o", color="tab:blue", alpha=0.4, markersize=5)
        found = variant.interval(comparison.metric)
        middle = variant.spread(comparison.metric)[0]
        if found is not None:
            axes.plot([found.low, found.high], [row, row], color="tab:blue", linewidth=2)
        axes.plot([middle], [row], "|", color="black", markersize=14)
    axes.set_yticks(range(len(variants)), [variant.label for variant in variants], fontsize=8)
    axes.set(xlabel=f"{comparison.metric}: mean (bar), 95 % over test records (line), single runs (dots)")
    axes.margins(y=0.2)
    figure.tight_layout()
    return figure


def curves(comparison: Comparison) -> Figure:
    """Training loss and validation metric against records seen, a line per run, a colour per variant."""
    name = comparison.metric.replace("test/", "val/", 1)
    figure = Figure(figsize=(11, 4.2))
    left, right = figure.subplots(1, 2)
    for number, variant in enumerate(comparison.variants):
        for place, run in enumerate(variant.runs):
            seen = dict(run.history("train/samples_seen"))
            label = variant.label if place == 0 else None
            for axes, metric in ((left, "train/loss"), (right, name)):
                points = [(_seen(seen, step), value) for step, value in run.history(metric)]
                style = {"marker": "o", "markersize": 3} if len(points) < 30 else {}
                if points:
                    axes.plot(*zip(*points, strict=True), color=f"C{number % 10}", alpha=0.7, label=label, **style)
    left.set(xlabel="records seen", ylabel="train/loss", title="training loss")
    right.set(xlabel="records seen", ylabel=name, title="validation")
    left.legend(fontsize=7)
    figure.tight_layout()
    return figure


def _seen(seen: dict[int, float], step: int) -> float:
    """Records seen at a step, from the logged steps around it."""
    if not seen or step in seen:
        return seen.get(step, float(step))
    nearest = min(seen, key=lambda known: abs(known - step))
    return seen[nearest] * step / max(1, nearest)


def calibration(comparison: Comparison) -> Figure | None:
    """Reliability of every variant, all its runs and tasks together."""
    stated = {}
    for variant in comparison.variants[:MOST_CALIBRATED]:
        found = [pair for run in variant.runs for pair in _statements(run)]
        if found:
            stated[variant.label] = (torch.cat([p for p, _ in found]), torch.cat([t for _, t in found]))
    return reliability_figure(stated) if stated else None


def _statements(run: TrackedRun) -> list[tuple[torch.Tensor, torch.Tensor]]:
    file = run.artifact(TEST_PREDICTIONS)
    if file is None:
        return []
    tasks, predictions = read_predictions(file)
    pairs = [statements(task, predictions.logits[task.name], predictions.targets[task.name]) for task in tasks]
    return [pair for pair in pairs if pair is not None and len(pair[0])]


def routing(variant: Variant) -> Figure | None:
    """Expert x modality of the variant's first run that kept it."""
    for run in variant.runs:
        table = run.json(ROUTING)
        if table is not None:
            return routing_figure(table["modalities"], [torch.tensor(layer) for layer in table["layers"]])
    return None


def missing(comparison: Comparison) -> tuple[Figure | None, list[dict[str, Any]]]:
    """Missing-modality curves of the runs that were evaluated for them, and how much each loses at half missing."""
    found = {
        f"{variant.label} ({run.name})": curve
        for variant in comparison.variants
        for run in variant.runs
        if (curve := run.json(MISSING_CURVE)) is not None
    }
    if len({tuple(curve["tasks"]) for curve in found.values()}) != 1:
        return None, []
    metric = next(iter(found.values()))["metric"]
    rows = []
    for name, curve in found.items():
        half = [row["metrics"][metric] for row in curve["missing"] if row["rate"] == 0.5 and metric in row["metrics"]]
        if not half or metric not in curve["whole"]:
            continue
        whole, middle = curve["whole"][metric], sum(half) / len(half)
        lost = whole - middle if larger_is_better(metric) else middle - whole
        rows.append({"run": name, "whole": whole, "half": middle, "lost": lost})
    # Curves of other data in one chart would look like a comparison; what each run loses is its own.
    return missing_figure(found) if comparison.comparable else None, rows
