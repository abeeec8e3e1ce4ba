"""Which expert serves which modality, as a figure."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor


def routing_figure(modalities: list[str], counts: list[Tensor]) -> Figure:
    """One panel per layer: the share of each modality's tokens (row) that each expert (column) serves."""
    experts = counts[0].shape[1]
    figure = Figure(figsize=(max(5.0, 0.28 * experts + 2.5), len(counts) * (0.28 * len(modalities) + 1.4)))
    for layer, count_ME in enumerate(counts):
        axes = figure.add_subplot(len(counts), 1, layer + 1)
        # A modality without any token has no share: 0 / 0 is NaN, and drawn as an empty row.
        share_ME = count_ME / count_ME.sum(dim=1, keepdim=True)
        image = axes.imshow(share_ME.numpy(), aspect="auto", cmap="viridis", vmin=0)
        axes.set_yticks(range(len(modalities)), modalities, fontsize=8)
        axes.set_title(f"block {layer}: share of a modality's routed tokens by expert", fontsize=9)
        axes.set_xlabel("expert", fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.colorbar(image, ax=axes)
    figure.tight_layout()
    return figure
