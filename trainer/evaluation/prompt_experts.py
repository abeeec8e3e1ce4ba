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
from trainer.figures.gallery import Gallery
from trainer.models.mope.prompts.router import routing_entropy
from trainer.session import Session
from trainer.tracking.tracker import Tracker
from trainer.worker.collectives import gather_rows


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
    from trainer.figures.gallery import gallery_figure
    from trainer.figures.prompt_experts import class_figure, site_figure

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
