"""What the prompt experts of a run are for: by class, by modality, by how sure their router is, by example.

Logged after the test of a fine-tuning run: a table of mean weights (site x class x expert), the entropy of the routing
at every site, and, for pictures with text, the records that an expert serves most, as a grid with their words.

Shapes: R records of the test part, S sites, K experts, C classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from matplotlib.figure import Figure
from torch import Tensor

from data_shards import Batch, ImageGroup, TaskSpec, TextGroup
from trainer.collectives import gather_rows
from trainer.models.mope.router import routing_entropy
from trainer.session import Session
from trainer.tracker import Tracker

EXAMPLES = 6
WORDS = 6


@dataclass
class Gallery:
    """Records with the highest weight of each expert at one site: (weight, picture (C, H, W), text)."""

    best: dict[int, list[tuple[float, Tensor | None, str]]] = field(default_factory=dict)

    def add(self, weights_BK: Tensor, pictures: dict[int, Tensor], texts: dict[int, str]) -> None:
        for expert in range(weights_BK.shape[1]):
            rows = [
                (float(weights_BK[row, expert]), pictures.get(row), texts.get(row, ""))
                for row in range(len(weights_BK))
                if not math.isnan(float(weights_BK[row, expert]))
            ]
            merged = sorted([*self.best.get(expert, []), *rows], key=lambda found: -found[0])
            unique: dict[str, tuple[float, Tensor | None, str]] = {}
            for found in merged:  # the same words again show nothing new
                unique.setdefault(found[2] or str(found[0]), found)
            self.best[expert] = list(unique.values())[:EXAMPLES]


def look_inside(session: Session, tracker: Tracker) -> dict[str, Tensor]:
    """Collect routing weights over the test part and log what they show; {site: (R, K)}. Collective."""
    if "test" not in session.manifest.splits[session.config.data.split]:
        return {}
    parts: list[tuple[Tensor, dict[str, Tensor], Tensor]] = []
    task = next((task for task in session.tasks if task.kind in ("binary", "multiclass")), None)
    gallery = Gallery()
    session.engine.eval()
    with torch.no_grad():
        for step in session.loader("test", shuffle=False).steps(0):
            for batch in step.micro_batches:
                batch = batch.to(session.device)
                experts = session.engine(batch).experts
                label_B = torch.full((len(batch),), torch.nan, device=session.device)
                if task is not None:
                    label_B = batch.targets[task.name][:, 0]
                parts.append((batch.index_B, experts, label_B))
                complete = [weights for weights in experts.values() if len(weights) == len(batch)]
                if complete and session.context.rank == 0 and len(batch):
                    gallery.add(complete[-1], _pictures(batch), _texts(batch))
    session.engine.train()
    sites = list(parts[0][1]) if parts else []
    if not sites:
        return {}
    gathered = {site: gather_rows(torch.cat([experts[site] for _, experts, _ in parts])) for site in sites}
    label_R = gather_rows(torch.cat([label for _, _, label in parts]))
    if session.context.rank == 0:
        _log(tracker, gathered, label_R, task, gallery)
    return gathered


def _log(
    tracker: Tracker, gathered: dict[str, Tensor], label_R: Tensor, task: TaskSpec | None, gallery: Gallery
) -> None:
    entropy = {site: float(routing_entropy(known(weights)).mean()) for site, weights in gathered.items()}
    tracker.log_json("mope/routing_entropy.json", entropy)
    tracker.log_metrics({"mope/entropy_mean": sum(entropy.values()) / len(entropy)}, 0)
    usage = {site: known(weights).mean(0).tolist() for site, weights in gathered.items()}
    tracker.log_json("mope/expert_by_site.json", usage)
    if task is not None:
        classes = list(task.classes) or ["0", "1"]
        tables = {
            site: class_table(weights, label_R, len(classes))
            for site, weights in gathered.items()
            if len(weights) == len(label_R)
        }
        named = {site: table_CK.tolist() for site, table_CK in tables.items()}
        tracker.log_json("mope/expert_by_class.json", {"classes": classes, "sites": named})
        if tables:
            tracker.log_figure("mope/expert_by_class.png", class_figure(tables, classes))
    if gallery.best:
        tracker.log_figure("mope/examples.png", gallery_figure(gallery))


def known(weights_RK: Tensor) -> Tensor:
    """Rows of records that have the site's modality."""
    return weights_RK[~weights_RK.isnan().any(1)]


def class_table(weights_RK: Tensor, label_R: Tensor, classes: int) -> Tensor:
    """(C, K) mean weight of each expert for records of a class; NaN for a class without records."""
    usable_R = ~weights_RK.isnan().any(1) & ~label_R.isnan()
    weights_RK, label_R = weights_RK[usable_R].double(), label_R[usable_R].long()
    total_CK = torch.zeros(classes, weights_RK.shape[1], dtype=torch.float64, device=weights_RK.device)
    total_CK.index_add_(0, label_R, weights_RK)
    return (total_CK / torch.bincount(label_R, minlength=classes)[:, None]).float().cpu()


def class_figure(tables: dict[str, Tensor], classes: list[str], most: int = 12) -> Figure:
    """A panel for each of the last sites: classes (rows) by experts (columns)."""
    shown = dict(list(tables.items())[-most:])
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(3.2 * columns, rows * (0.22 * len(classes) + 1.2)))
    for place, (site, table_CK) in enumerate(shown.items()):
        axes = figure.add_subplot(rows, columns, place + 1)
        axes.imshow(table_CK.numpy(), aspect="auto", cmap="viridis", vmin=0)
        axes.set_yticks(range(len(classes)), classes if place % columns == 0 else [""] * len(classes), fontsize=7)
        axes.set_title(site, fontsize=8)
        axes.set_xlabel("expert", fontsize=7)
    figure.tight_layout()
    return figure


def gallery_figure(gallery: Gallery) -> Figure:
    """A row an expert: the records it serves most, and the words that are typical of them."""
    experts = sorted(gallery.best)
    figure = Figure(figsize=(1.7 * EXAMPLES, 2.0 * len(experts)))
    every = [[text for _, _, text in gallery.best[expert]] for expert in experts]
    for row, expert in enumerate(experts):
        for column, (weight, picture, text) in enumerate(gallery.best[expert]):
            axes = figure.add_subplot(len(experts), EXAMPLES, row * EXAMPLES + column + 1)
            axes.set_axis_off()
            if picture is not None:
                pixels = picture.permute(1, 2, 0).cpu()
                axes.imshow(pixels.numpy() if pixels.shape[2] == 3 else pixels[..., 0].numpy(), cmap="gray")
            axes.set_title(f"{weight:.2f} {text[:28]}", fontsize=5)
            if column == 0:
                words = ", ".join(typical_words(every[row], every))
                axes.text(-0.1, -0.12, f"expert {expert}: {words}", fontsize=6, transform=axes.transAxes)
    figure.tight_layout()
    return figure


def typical_words(texts: list[str], every: list[list[str]]) -> list[str]:
    """Words that are frequent in these texts and rare in the groups of the other experts."""
    counts: dict[str, int] = {}
    for word in " ".join(texts).lower().replace("?", " ").split():
        counts[word] = counts.get(word, 0) + 1
    spread = {word: sum(any(word in text.lower() for text in group) for group in every) for word in counts}
    score = {word: number * math.log(1 + len(every) / max(1, spread[word])) for word, number in counts.items()}
    return sorted(score, key=lambda word: (-score[word], word))[:WORDS]


def _pictures(batch: Batch) -> dict[int, Tensor]:
    found: dict[int, Tensor] = {}
    for group in batch.groups.values():
        if isinstance(group, ImageGroup):
            for pair, row in enumerate(group.sample_P.tolist()):
                found.setdefault(row, group.values_PCHW[pair])
    return {row: value for row, value in found.items() if value.dtype == torch.uint8}


def _texts(batch: Batch) -> dict[int, str]:
    found: dict[int, str] = {}
    for group in batch.groups.values():
        if isinstance(group, TextGroup):
            data, ends = group.bytes_O.cpu().numpy().tobytes(), group.offsets.tolist()
            for pair, row in enumerate(group.sample_P.tolist()):
                found.setdefault(row, data[ends[pair] : ends[pair + 1]].decode("utf-8", "replace"))
    return found
