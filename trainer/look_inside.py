"""What the prompt experts of a run are for: by class, by modality, by how sure their router is, by example.

Logged after the test of a fine-tuning run: tables of mean weights (site x class x expert, site x expert, which for a
FuseMoE host is modality x expert), the entropy of the routing at every site, and, for pictures with text, the records
that an expert serves most, as a grid with their words.

Shapes: R records of the test part, B of a batch, K experts, C classes.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor

from data_shards import Batch, ImageGroup, TaskSpec, TextGroup
from trainer.collectives import gather_rows
from trainer.models.mope.router import routing_entropy
from trainer.session import Session
from trainer.tracker import Tracker

EXAMPLES = 6
WORDS = 6


@dataclass(frozen=True)
class Example:
    """A record that an expert serves: its weight, picture (C, H, W), text."""

    weight: float
    picture: Tensor | None
    text: str


@dataclass
class Gallery:
    """What each expert of one site serves: the records with the highest weights, and how often which word."""

    site: str = ""
    best: dict[int, list[Example]] = field(default_factory=dict)
    words: dict[int, dict[str, float]] = field(default_factory=dict)
    everywhere: Counter[str] = field(default_factory=Counter)

    def add(self, weights_BK: Tensor, pictures: dict[int, Tensor], texts: dict[int, str]) -> None:
        """Take in a batch."""
        rows = (~weights_BK.isnan().any(1)).nonzero()[:, 0].tolist()
        found = {row: words_of(texts.get(row, "")) for row in rows}
        for words in found.values():
            self.everywhere.update(words)
        for expert, weight_B in enumerate(weights_BK.T.tolist()):
            counts = self.words.setdefault(expert, {})
            for row, words in found.items():
                for word in words:
                    counts[word] = counts.get(word, 0.0) + weight_B[row]
            new = [Example(weight_B[row], pictures.get(row), texts.get(row, "")) for row in rows]
            self.best[expert] = _varied(sorted([*self.best.get(expert, []), *new], key=lambda one: -one.weight))

    def typical(self, expert: int) -> list[str]:
        """Words that this expert's records have more often than all have, weighted by how often and how much more."""
        own, total = self.words.get(expert, {}), sum(self.everywhere.values())
        share = sum(own.values())
        score = {
            word: mass / share * math.log(mass / share / (self.everywhere[word] / total))
            for word, mass in own.items()
            if mass > 0
        }
        ranked = sorted(score, key=lambda word: (-score[word], word))
        return [word for word in ranked if score[word] > 0][:WORDS]


def words_of(text: str) -> set[str]:
    """Lower-case words of a text, each once."""
    return set("".join(c if c.isalnum() else " " for c in text.lower()).split())


def _varied(examples: list[Example]) -> list[Example]:
    """The first few, leaving out those that repeat the words or the picture of one that is shown."""
    shown: list[Example] = []
    for one in examples:
        repeated = any((one.text and one.text == other.text) or _same(one.picture, other.picture) for other in shown)
        if not repeated:
            shown.append(one)
        if len(shown) == EXAMPLES:
            break
    return shown


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and torch.equal(one, other)


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
                if experts and session.context.rank == 0 and len(batch):
                    gallery.site, weights_BK = list(experts.items())[-1]
                    gallery.add(weights_BK, _pictures(batch), _texts(batch))
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
    # A modality that no record of the part has leaves nothing to tell of its sites.
    gathered = {site: weights for site, weights in gathered.items() if len(known(weights))}
    if not gathered:
        return
    entropy = {site: float(routing_entropy(known(weights)).mean()) for site, weights in gathered.items()}
    tracker.log_json("mope/routing_entropy.json", entropy)
    tracker.log_metrics({"mope/entropy_mean": sum(entropy.values()) / len(entropy)}, 0)
    # Imported late: a restarted worker has no time for a plotting library.
    from trainer.mope_figures import class_figure, gallery_figure, site_figure

    usage = {site: known(weights).mean(0) for site, weights in gathered.items()}
    tracker.log_json("mope/expert_by_site.json", {site: mean_K.tolist() for site, mean_K in usage.items()})
    tracker.log_figure("mope/expert_by_site.png", site_figure(usage, entropy))
    if task is not None:
        classes = list(task.classes) or ["0", "1"]
        tables = {site: class_table(weights, label_R, len(classes)) for site, weights in gathered.items()}
        named = {site: [_numbers(row_K) for row_K in table_CK] for site, table_CK in tables.items()}
        tracker.log_json("mope/expert_by_class.json", {"classes": classes, "sites": named})
        if tables:
            tracker.log_figure("mope/expert_by_class.png", class_figure(tables, classes, entropy))
    if any(one.picture is not None or one.text for best in gallery.best.values() for one in best):
        tracker.log_figure("mope/examples.png", gallery_figure(gallery))


def _numbers(row_K: Tensor) -> list[float] | None:
    """None for a class without records: JSON has no NaN."""
    return None if row_K.isnan().any() else row_K.tolist()


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
