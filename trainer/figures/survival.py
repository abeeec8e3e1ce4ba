"""Figures of a survival task: predicted curves beside those of Kaplan and Meier, and whether chances come true."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from data_shards import TaskSpec
from trainer.metrics.censored import kaplan_meier
from trainer.metrics.survival_scores import Followed

THIRDS = ("least risk", "middle", "most risk")


def curves_figure(task: TaskSpec, own: Followed) -> Figure:
    """Chance not to have happened yet, for thirds of the records by risk: predicted (dashed) and Kaplan-Meier."""
    figure = Figure(figsize=(5.6, 4.5))
    axes = figure.add_subplot()
    groups = np.array_split(np.argsort(own.risk_B, kind="stable"), min(len(THIRDS), len(own.risk_B)))
    for number, (name, rows) in enumerate(zip(THIRDS, groups, strict=False)):
        found = kaplan_meier(own.time_B[rows], own.seen_B[rows])
        color, label = f"C{number}", f"{name}: {int(own.seen_B[rows].sum())} of {len(rows)} seen"
        time = np.concatenate([[0.0], found.time_U])
        axes.step(time, np.concatenate([[1.0], found.value_U]), where="post", color=color, label=label)
        edge, mean = np.concatenate([[0.0], own.edge_T]), own.survival_BT[rows].mean(axis=0)
        axes.plot(edge, np.concatenate([[1.0], mean]), linestyle="--", color=color, marker="o", markersize=2.5)
    # What is predicted ends at the last edge; how long some are followed beyond it is not what the figure is about.
    last = float(own.edge_T[-1])
    longer = int((own.time_B > last).sum())
    axes.set(xlabel=f"time [{task.unit}]" if task.unit else "time", ylabel="chance not to have happened yet")
    if longer:
        axes.set_xlabel(f"{axes.get_xlabel()}; {longer} of {len(own.time_B)} were followed beyond the last edge")
    axes.set(xlim=(0, 1.02 * last), ylim=(0, 1.02), title=f"{task.name}: predicted (dashed) and Kaplan-Meier")
    axes.legend(fontsize=8)
    figure.tight_layout()
    return figure


def survival_calibration_figure(task: TaskSpec, own: Followed) -> Figure:
    """Stated chance to live beyond a few times, against what Kaplan-Meier finds in groups of records."""
    figure = Figure(figsize=(4.8, 4.8))
    axes: Axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], linestyle=":", color="gray")
    for time, found in own.calibrations().items():
        label = f"{time:.4g} {task.unit}".strip() + f": gap {found.error:.3f}"
        axes.plot(found.stated, found.found, marker="o", markersize=4, label=label)
    axes.set(xlabel="stated chance to live beyond", ylabel="found (Kaplan-Meier)", xlim=(0, 1), ylim=(0, 1.02))
    axes.set(title=task.name)
    axes.legend(fontsize=8)
    figure.tight_layout()
    return figure
