"""Pictures of what prompt experts do: their weights by class, by site and modality, and records that they serve.

Shapes: C classes, K experts.
"""

from __future__ import annotations

from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor


def class_figure(tables: dict[str, Tensor], classes: list[str], entropy: dict[str, float], most: int = 12) -> Figure:
    """A panel for each of the last sites: mean weights of the experts (columns) for records of a class (rows)."""
    shown = dict(list(tables.items())[-most:])
    return _panels({f"{site}, entropy {entropy[site]:.2f}": (classes, table) for site, table in shown.items()})


def site_figure(usage: dict[str, Tensor], entropy: dict[str, float], most: int = 12) -> Figure:
    """Mean weights of the experts at every site: a panel a tower, its layers as rows; or a block, its modalities."""
    rows: dict[str, list[str]] = {}
    for site in usage:
        rows.setdefault(_place(site)[0], []).append(site)
    panels = {}
    for panel, sites in list(rows.items())[-most:]:
        names = [f"{_place(site)[1]}, entropy {entropy[site]:.2f}" for site in sites]
        panels[panel] = (names, torch.stack([usage[site].cpu() for site in sites]))
    return _panels(panels, shared_rows=False)


def _place(site: str) -> tuple[str, str]:
    """Panel and row: `image.3` is layer 3 of the image tower, `block.1.lab` modality lab at block 1 of a host."""
    if site.startswith("block."):
        _, number, modality = site.split(".", 2)
        return f"block {number}", modality
    tower, _, layer = site.rpartition(".")
    return tower, f"layer {layer}"


def _panels(panels: dict[str, tuple[list[str], Tensor]], shared_rows: bool = True) -> Figure:
    """Tables of weights in [0, 1], all on one scale of colours."""
    columns = min(4, len(panels))
    lines = -(-len(panels) // columns)
    most = max(len(names) for names, _ in panels.values())
    experts = max(table.shape[1] for _, table in panels.values())
    label = 0.07 * max(len(name) for names, _ in panels.values() for name in names)
    wide = max(2.2, 0.3 * experts)
    figure = Figure(
        figsize=(columns * wide + label * (1 if shared_rows else columns) + 1, lines * max(1.6, 0.22 * most + 0.9))
    )
    figure.set_layout_engine("constrained")
    image: Any = None
    every: list[Axes] = []
    for place, (title, (names, table_CK)) in enumerate(panels.items()):
        axes = figure.add_subplot(lines, columns, place + 1)
        image = axes.imshow(table_CK.cpu().numpy(), aspect="auto", cmap="viridis", vmin=0, vmax=1)
        shown = names if not shared_rows or place % columns == 0 else [""] * len(names)
        axes.set_yticks(range(len(names)), shown, fontsize=7)
        axes.set_xticks(range(table_CK.shape[1]))
        axes.tick_params(axis="x", labelsize=7)
        axes.set_title(title, fontsize=8)
        axes.set_xlabel("expert", fontsize=7)
        every.append(axes)
    bar = figure.colorbar(image, ax=every, fraction=0.03)
    bar.set_label("mean weight", fontsize=7)
    bar.ax.tick_params(labelsize=7)
    return figure
