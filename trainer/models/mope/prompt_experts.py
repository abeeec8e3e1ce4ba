"""What the prompt experts of a run are for: by class, by modality, by how sure their router is, by example.

Logged after the test of a fine-tuning run: tables of mean weights (site x class x expert, site x expert, which for a
FuseMoE host is modality x expert), the entropy of the routing at every site, and, for pictures with text, the records
that an expert serves most, as a grid with their words.

Shapes: R records of the test part, B of a batch, K experts, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from data_shards import Batch, ImageGroup, TaskSpec, TextGroup
from trainer.figures.gallery import Gallery, gallery_figure
from trainer.figures.prompt_experts import class_figure, site_figure
from trainer.models.mope.prompts.router import routing_entropy
from trainer.models.output import Fused
from trainer.run_folder import PROMPT_ENTROPY, PROMPT_SITES
from trainer.tracking.tracker import Tracker
from trainer.worker.collectives import rows_to_first


class PromptExperts:
    """Collects routing weights over a part, and logs what they show.

    Args:
        tasks: of the model; the first one with classes is the one that experts are compared by.
        rank: the first one shows examples, of its own share of the part.
    """

    def __init__(self, tasks: list[TaskSpec], rank: int) -> None:
        self.task = next((task for task in tasks if task.kind in ("binary", "multiclass")), None)
        self.rank = rank
        self.gallery = Gallery()
        self._parts: list[tuple[dict[str, Tensor], Tensor]] = []

    def add(self, batch: Batch, output: Fused) -> None:
        """Weights (B, K) of every site, and what the record is."""
        label_B = torch.full((len(batch),), torch.nan, device=batch.device)
        if self.task is not None:
            label_B = batch.targets[self.task.name][:, 0]
        self._parts.append((output.experts, label_B))
        if output.experts and self.rank == 0 and len(batch):
            self.gallery.site, weights_BK = list(output.experts.items())[-1]
            self.gallery.add(weights_BK, _pictures(batch), _texts(batch))

    def report(self, tracker: Tracker) -> None:
        """Bring the ranks' weights to the first one and log tables and figures. Collective."""
        sites = list(self._parts[0][0]) if self._parts else []
        if not sites:
            return
        found = {site: rows_to_first(torch.cat([experts[site] for experts, _ in self._parts])) for site in sites}
        label_R = rows_to_first(torch.cat([label for _, label in self._parts]))
        if label_R is not None:
            self._log(tracker, {site: weights for site, weights in found.items() if weights is not None}, label_R)

    def _log(self, tracker: Tracker, gathered: dict[str, Tensor], label_R: Tensor) -> None:
        # A modality that no record of the part has leaves nothing to tell of its sites.
        gathered = {site: weights for site, weights in gathered.items() if len(known(weights))}
        if not gathered:
            return
        entropy = {site: float(routing_entropy(known(weights)).mean()) for site, weights in gathered.items()}
        tracker.log_json(PROMPT_ENTROPY, entropy)
        tracker.log_metrics({"mope/entropy_mean": sum(entropy.values()) / len(entropy)}, 0)
        usage = {site: known(weights).mean(0) for site, weights in gathered.items()}
        tracker.log_json(PROMPT_SITES, {site: mean_K.tolist() for site, mean_K in usage.items()})
        tracker.log_figure("mope/expert_by_site.png", site_figure(usage, entropy))
        if self.task is not None:
            classes = list(self.task.classes) or ["0", "1"]
            tables = {site: class_table(weights, label_R, len(classes)) for site, weights in gathered.items()}
            named = {site: [_numbers(row_K) for row_K in table_CK] for site, table_CK in tables.items()}
            tracker.log_json("mope/expert_by_class.json", {"classes": classes, "sites": named})
            if tables:
                tracker.log_figure("mope/expert_by_class.png", class_figure(tables, classes, entropy))
        if any(one.picture is not None or one.text for best in self.gallery.best.values() for one in best):
            tracker.log_figure("mope/examples.png", gallery_figure(self.gallery))


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
