"""Draws the figures of the documentation. Where a figure shows what the code computes, the code computes it.

python -m docs.figures.make_figures
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from data_shards import create_source
from data_shards.records.record import Codes, Objects
from parallel.moe.gates import Gate
from parallel.moe.routers import expert_pools

HERE = Path(__file__).parent
BLUE, ORANGE, GREEN, GREY = "#2f6db5", "#d9822b", "#3a8f5c", "#c9d1d9"
COLOURS = (BLUE, ORANGE, GREEN)


def gates() -> Figure:
    """Share of the nearer of two experts as a token moves from one prototype to the other, by the real gates."""
    dim = 16
    generator = torch.Generator().manual_seed(1)
    prototypes_DE = torch.nn.functional.normalize(torch.randn(dim, 2, generator=generator), dim=0)
    place_N = torch.linspace(-0.5, 1.5, 101)
    line_ND = torch.lerp(prototypes_DE[:, 0], prototypes_DE[:, 1], place_N[:, None])
    figure = Figure(figsize=(7.5, 3), layout="constrained")
    axes = figure.add_subplot()
    for kind, colour in zip(("softmax", "laplace", "gaussian"), COLOURS, strict=True):
        gate = Gate(kind, dim, 2)  # type: ignore[arg-type]
        with torch.no_grad():
            gate.prototypes[0] = prototypes_DE
            share_NE = gate(line_ND).softmax(dim=1)
        axes.plot(place_N, share_NE[:, 1], color=colour, label=kind)
    axes.set(xlabel="from the prototype of expert 0 (at 0) to that of expert 1 (at 1)", ylabel="weight of expert 1")
    axes.legend(frameon=False)
    return _plain(figure)


def routers() -> Figure:
    """Which experts a modality's tokens may reach."""
    names, experts = ("vitals", "notes", "X-ray"), 12
    figure = Figure(figsize=(7.5, 2.6), layout="constrained")
    pools = expert_pools(experts, len(names), 2)
    for place, router in enumerate(("joint", "per_modality", "disjoint")):
        axes = figure.add_subplot(1, 3, place + 1)
        for row in range(len(names)):
            for expert in range(experts):
                reach = router != "disjoint" or expert in pools[row]
                colour = BLUE if router == "joint" else COLOURS[row]
                axes.scatter(expert, row, s=60, color=colour if reach else "#eef1f4")
        axes.set_yticks(range(len(names)), names if place == 0 else [""] * len(names))
        axes.set_xticks([0, experts - 1])
        axes.set_title(router, fontsize=10)
        axes.set_xlabel("expert", fontsize=9)
        axes.invert_yaxis()
        axes.margins(0.08, 0.25)
    return _plain(figure)


def irregular() -> Figure:
    """A real irregular series (rows of a digit, jittered and partly observed) and the common grid it is brought to."""
    source = create_source("digits", {"missing": "0"})
    record = next(source.read(source.units()[0], Counter()))
    series, bins = record.values["rows"], 8
    figure = Figure(figsize=(7.5, 2.8), layout="constrained")
    axes = figure.add_subplot()
    for edge in range(bins + 1):
        axes.axvline(edge, color=GREY, linewidth=1)
    for channel, colour in zip((2, 3, 5), COLOURS, strict=True):
        own = series.channels_O == channel  # type: ignore[union-attr]
        time, value = series.times_O[own], series.values_O[own]  # type: ignore[union-attr]
        axes.scatter(time, value, color=colour, s=28, zorder=3, label=f"channel {channel}")
        edges = np.arange(1, bins + 1)
        last = [value[time < edge][-1] if (time < edge).any() else np.nan for edge in edges]
        axes.step(edges, last, where="post", color=colour, alpha=0.5)
    axes.set(xlabel="time; grey lines are bins of the common grid", ylabel="value")
    axes.legend(frameon=False, fontsize=8, loc="upper right")
    return _plain(figure)


def record() -> Figure:
    """One record on one time axis; pale is what a prediction at the moment does not see."""
    rng = np.random.default_rng(5)
    moment, horizon, end = 30.0, 24.0, 48.0
    hours = np.sort(rng.uniform(0, end, 40))
    pulse = 85 + 12 * np.sin(hours / 7) + rng.normal(0, 2.5, len(hours))
    lactate = (np.array([1.0, 7.5, 15.0, 22.0, 27.5, 36.0, 44.0]), np.array([1.2, 1.4, 2.6, 3.9, 3.1, 2.2, 1.5]))
    notes = Objects(np.array([2.0, 14.0, 26.5, 41.0]), ["admission", "night round", "radiology", "transfer"])
    pictures = Objects(np.array([9.0, 25.0]), [_lungs(0.25), _lungs(0.75)])
    ecg = Objects(np.array([3.0, 20.0]), [_beats(rng), _beats(rng)])
    codes = Codes(["heparin", "norepinephrine", "antibiotic", "antibiotic", "stopped"],
                  np.array([3.0, 16.5, 22.0, 27.4, 38.0]))  # fmt: skip
    rows = ("static", "codes", "ECG", "X-ray", "notes", "labs", "vitals")
    figure = Figure(figsize=(10, 5), layout="constrained")
    axes = figure.add_subplot()

    def seen(times: np.ndarray) -> list[float]:
        return [1.0 if moment - horizon < time <= moment else 0.35 for time in times.tolist()]

    for y, times, values, colour in ((6, hours, pulse, BLUE), (5, *lactate, BLUE)):
        level = y - 0.3 + 0.6 * (values - values.min()) / np.ptp(values)
        axes.scatter(times, level, s=22, color=colour, alpha=seen(times), linewidths=0)
    for time, text, alpha in zip(notes.times_N.tolist(), notes.values, seen(notes.times_N), strict=True):
        style = {"boxstyle": "round,pad=0.3", "facecolor": "white", "edgecolor": ORANGE, "alpha": alpha}
        axes.text(time, 4, f"{text}", ha="center", va="center", fontsize=10, bbox=style, alpha=max(alpha, 0.5))
    shade = {"cmap": "gray", "vmin": 0, "vmax": 1, "aspect": "auto"}
    for time, picture, alpha in zip(pictures.times_N.tolist(), pictures.values, seen(pictures.times_N), strict=True):
        axes.imshow(picture, extent=(time - 1.3, time + 1.3, 2.56, 3.44), alpha=alpha, **shade)
    for time, wave, alpha in zip(ecg.times_N.tolist(), ecg.values, seen(ecg.times_N), strict=True):
        axes.plot(time + np.linspace(-2, 2, len(wave)), 2 + 0.35 * np.asarray(wave), color=GREEN, alpha=alpha)
    assert codes.times_O is not None
    for time, code, alpha in zip(codes.times_O.tolist(), codes.codes, seen(codes.times_O), strict=True):
        axes.scatter(time, 1.12, marker="D", s=36, color=ORANGE, alpha=alpha)
        axes.text(time, 0.88, code, ha="center", va="top", fontsize=9, alpha=max(alpha, 0.5))
    axes.text(0, 0, "sex=f   ward=north   age 61   (codes and a vector without times: always seen)",
              va="center", fontsize=10)  # fmt: skip
    axes.axvspan(moment - horizon, moment, color=BLUE, alpha=0.08)
    axes.axvline(moment, color="#b03030", linewidth=1.5)
    axes.text(moment + 0.4, 6.75, "moment: a label is predicted here", color="#b03030", fontsize=10, va="center")
    axes.text(moment - horizon + 0.3, 6.75, "horizon: what it sees", color=BLUE, fontsize=10, va="center")
    axes.set(xlim=(-1.5, end + 1), ylim=(-0.5, 7.1), xlabel="hours since the record's time 0")
    axes.set_yticks(range(len(rows)), rows, fontsize=11)
    axes.set_xticks(np.arange(0, end + 1, 6))
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    return _plain(figure)


def _lungs(cloud: float) -> np.ndarray:
    """float [32, 32]: two dark ovals on grey, one of them clouded."""
    y, x = np.mgrid[-1:1:32j, -1:1:32j]
    picture = np.full((32, 32), 0.75)
    for middle, dark in ((-0.45, 0.15), (0.45, 0.15 + 0.5 * cloud)):
        picture[((x - middle) / 0.32) ** 2 + (y / 0.75) ** 2 < 1] = dark
    return picture


def _beats(rng: np.random.Generator) -> np.ndarray:
    """float [120]: four beats of a made-up heart."""
    place = np.linspace(0, 4, 120) % 1
    beat = np.exp(-(((place - 0.4) / 0.03) ** 2)) + 0.25 * np.exp(-(((place - 0.65) / 0.08) ** 2))
    return np.asarray(beat - 0.3 + 0.02 * rng.standard_normal(120))


def expert_parallel() -> Figure:
    """Four ranks, eight experts: each holds two, and tokens travel to where their expert is."""
    figure = Figure(figsize=(7.5, 3.2), layout="constrained")
    axes = figure.add_subplot()
    rng = np.random.default_rng(3)
    for rank in range(4):
        _box(axes, rank * 2.5, 2.2, f"rank {rank}: its records", GREY)
        _box(axes, rank * 2.5, 0, f"experts {2 * rank}, {2 * rank + 1}", BLUE)
        for target in rng.choice(4, 2, replace=False):
            start, end = (rank * 2.5 + 1, 2.15), (target * 2.5 + 1, 0.85)
            arrow = {"arrowstyle": "->", "color": ORANGE, "alpha": 0.9}
            axes.annotate("", end, start, arrowprops=arrow)
    axes.text(4.75, 1.65, "all-to-all: tokens go, results come back", ha="center", fontsize=9, color=ORANGE,
              bbox={"color": "white", "pad": 1})  # fmt: skip
    axes.set(xlim=(-0.3, 9.8), ylim=(-0.3, 3.3))
    axes.axis("off")
    return figure


def flow() -> Figure:
    """The way of a run: packed once, streamed to workers, fused, measured; and what survives a worker."""
    figure = Figure(figsize=(9, 3.1), layout="constrained")
    axes = figure.add_subplot()
    steps = [
        (0.0, "your data\nany modalities,\nany of them missing", GREY),
        (2.6, "shards\nWebDataset tars,\nmanifest, checksums", GREEN),
        (5.2, "workers on Ray\nencoders → attention →\nrouter → experts", BLUE),
        (7.8, "MLflow\ncurves, comparison,\nexpert × modality", ORANGE),
    ]
    for x, text, colour in steps:
        _box(axes, x, 1.9, text, colour, height=1.1)
    for x, verb in ((2.05, "pack"), (4.65, "train"), (7.25, "track")):
        axes.annotate("", (x + 0.52, 2.45), (x + 0.02, 2.45), arrowprops={"arrowstyle": "->"})
        axes.text(x + 0.27, 2.6, verb, ha="center", fontsize=9)
    _box(axes, 5.2, 0, "checkpoints\nof no topology", GREY, height=0.8)
    axes.annotate("", (5.9, 0.9), (5.9, 1.8), arrowprops={"arrowstyle": "->"})
    axes.annotate("", (6.5, 1.8), (6.5, 0.9), arrowprops={"arrowstyle": "->"})
    axes.text(5.8, 1.35, "while training goes on", ha="right", va="center", fontsize=9)
    axes.text(6.6, 1.35, "on any number of workers", ha="left", va="center", fontsize=9)
    _box(axes, 2.6, 0, "finetune: prompt experts\non a frozen backbone", BLUE, height=0.8)
    axes.annotate("", (4.65, 0.4), (5.15, 0.4), arrowprops={"arrowstyle": "->"})
    axes.set(xlim=(-0.1, 9.95), ylim=(-0.15, 3.15))
    axes.axis("off")
    return figure


def _box(axes: Axes, x: float, y: float, text: str, colour: str, height: float = 0.8) -> None:
    axes.add_patch(FancyBboxPatch((x, y), 2, height, boxstyle="round,pad=0.05", color=colour, alpha=0.35))
    axes.text(x + 1, y + height / 2, text, ha="center", va="center", fontsize=9)


def _plain(figure: Figure) -> Figure:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    return figure


FIGURES = {
    "flow": flow,
    "gates": gates,
    "routers": routers,
    "irregular": irregular,
    "record": record,
    "expert_parallel": expert_parallel,
}


def main() -> None:
    """Write every figure beside this file; the same code gives the same bytes."""
    matplotlib.rcParams["svg.hashsalt"] = "fleximoe"
    for name, draw in FIGURES.items():
        draw().savefig(HERE / f"{name}.svg", metadata={"Date": None})
        print(HERE / f"{name}.svg")


if __name__ == "__main__":
    main()
