"""Figures of a run: which expert serves which modality, confusion matrices, ROC curves, reliability diagrams.

They are drawn without a display and handed to the tracker, which stores them as artifacts.
"""

from __future__ import annotations

from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from data_shards import TaskSpec
from trainer.metrics.calibration import reliability
from trainer.metrics.formulas import auroc, confusion, counts_by_score
from trainer.metrics.main_metric import by_rate, task_curves


def roc_figure(task: TaskSpec, probability_B: Tensor, truth_B: Tensor) -> Figure:
    """Receiver operating characteristic with its area."""
    false_U, true_U = counts_by_score(probability_B, truth_B)
    area = float(auroc(false_U, true_U))
    # From the threshold that nobody reaches.
    false_rate, true_rate = (torch.cat([torch.zeros(1), count_U / count_U[-1]]) for count_U in (false_U, true_U))
    figure = Figure(figsize=(4.5, 4.5))
    axes = figure.add_subplot()
    axes.plot(false_rate.numpy(), true_rate.numpy())
    axes.plot([0, 1], [0, 1], linestyle=":", color="gray")
    axes.set(xlabel="false positive rate", ylabel="true positive rate", title=f"{task.name}: AUROC {area:.3f}")
    figure.tight_layout()
    return figure


def reliability_figure(statements_by_name: dict[str, tuple[Tensor, Tensor]]) -> Figure:
    """How often statements came true (above) and how many there were (below), by stated probability."""
    figure = Figure(figsize=(4.8, 5.4))
    axes, below = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [3, 1]})
    axes.plot([0, 1], [0, 1], linestyle=":", color="gray")
    for name, (probability_X, true_X) in statements_by_name.items():
        bins = reliability(probability_X, true_X)
        filled = bins.count > 0
        label = f"{name}: ECE {bins.error:.3f}"
        axes.plot(bins.stated[filled].numpy(), bins.true[filled].numpy(), marker="o", markersize=4, label=label)
        below.step(torch.linspace(0, 1, len(bins.count) + 1)[:-1].numpy(), bins.count.numpy(), where="post")
    axes.set(ylabel="share that came true", xlim=(0, 1), ylim=(0, 1))
    axes.legend(fontsize=8)
    below.set(xlabel="stated probability", ylabel="number", yscale="symlog")
    below.set_ylim(bottom=0)
    figure.tight_layout()
    return figure


def missing_figure(curves: dict[str, dict[str, Any]]) -> Figure:
    """What is absent costs, for one or several runs: by share missing, one modality at a time, and by time hidden.

    A row for each task; several runs must have the same ones. Time has a panel where a run was measured for it.
    """
    tasks = {name: task_curves(curve) for name, curve in curves.items()}
    rows = len(next(iter(tasks.values())))
    columns = 3 if any(curve.get("last") for curve in curves.values()) else 2
    figure = Figure(figsize=(5.5 * columns, 4.6 * rows))
    panels = figure.subplots(rows, columns, squeeze=False)
    for row, (left, right, *time) in enumerate(panels):
        own = {name: found[row] for name, found in tasks.items()}
        metric = next(iter(own.values()))["metric"]
        for name, curve in own.items():
            if not by_rate(curve):  # labels that this metric needs are not there
                continue
            rate, middle, low, high = zip(*by_rate(curve), strict=True)
            left.plot(rate, middle, marker="o", markersize=4, label=name)
            left.fill_between(rate, low, high, alpha=0.2)
        left.set(xlabel="share of the present\nmodalities hidden", ylabel=metric, title="mean and range over draws")
        left.legend(fontsize=8)
        _without_bars(right, own, metric)
        for axes in time:
            _over_time(axes, own, metric)
    figure.tight_layout()
    return figure


def _over_time(axes: Axes, curves: dict[str, dict[str, Any]], metric: str) -> None:
    """The metric with a share of the observation window hidden: its end (full line), any stretch (broken line)."""
    for number, (name, curve) in enumerate(curves.items()):
        for what, line in (("last", "-"), ("window", "--")):
            if not by_rate(curve, what):
                continue
            rate, middle, low, high = zip(*by_rate(curve, what), strict=True)
            label = f"{name}: {'its end' if what == 'last' else 'any stretch'}"
            axes.plot(rate, middle, line, marker="o", markersize=4, color=f"C{number % 10}", label=label)
            axes.fill_between(rate, low, high, color=f"C{number % 10}", alpha=0.2)
    axes.set(xlabel="share of the observation\nwindow hidden", ylabel=metric, title="time hidden")
    axes.legend(fontsize=8)


def _without_bars(axes: Axes, curves: dict[str, dict[str, Any]], metric: str, most: int = 15) -> None:
    """How much the metric falls without each modality; those that matter most in the first run, at most `most`."""
    lost: dict[str, dict[str, float]] = {}
    for name, curve in curves.items():
        whole, rows = curve["whole"].get(metric), [row for row in curve["without"] if metric in row["metrics"]]
        lost[name] = {row["modality"]: whole - row["metrics"][metric] for row in rows if whole is not None}
    first = next(iter(lost.values()))
    shown = sorted(first, key=lambda modality: abs(first[modality]), reverse=True)[:most][::-1]
    height = 0.8 / len(lost)
    for number, (name, values) in enumerate(lost.items()):
        known = [(row + number * height, values[modality]) for row, modality in enumerate(shown) if modality in values]
        axes.barh([place for place, _ in known], [value for _, value in known], height=height, label=name)
    axes.set_yticks([row + 0.4 - height / 2 for row in range(len(shown))], shown, fontsize=8)
    axes.axvline(0, color="gray", linewidth=0.8)
    axes.set(xlabel=f"{metric}\nlost without it", title="one modality removed")


def confusion_figure(task: TaskSpec, logits_BC: Tensor, truth_B: Tensor) -> Figure:
    """Counts of true class (row) against predicted class (column)."""
    classes = logits_BC.shape[1]
    table = confusion(logits_BC.argmax(dim=1), truth_B, classes)
    side = max(4.0, 0.45 * classes + 1)
    figure = Figure(figsize=(side, side))
    axes = figure.add_subplot()
    axes.imshow(table.float().log1p().numpy(), cmap="Blues")
    if classes <= 30:
        for row, column in table.nonzero().tolist():
            axes.text(column, row, str(int(table[row, column])), ha="center", va="center", fontsize=7)
    axes.set_xticks(range(classes), task.classes, rotation=90, fontsize=8)
    axes.set_yticks(range(classes), task.classes, fontsize=8)
    axes.set(xlabel="predicted", ylabel="true", title=task.name)
    figure.tight_layout()
    return figure
