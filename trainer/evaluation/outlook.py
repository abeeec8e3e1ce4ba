"""What can be measured on a part, known before anything is computed: from the labels in its indexes.

`labels_of` looks on the first rank and tells the others, so all of them decide alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from data_shards import Manifest, TaskSpec
from data_shards.errors import ShardError
from data_shards.inspection.labels import PartLabels, part_labels
from data_shards.loading.mixture import Mixture
from data_shards.loading.schema_map import same_question
from trainer.metrics.by_record import record_metric_names
from trainer.metrics.main_metric import BY_RECORD
from trainer.metrics.scores import metric_names
from trainer.session import Session
from trainer.worker.collectives import broadcast_json


@dataclass(frozen=True)
class Outlook:
    """A part as metrics see it.

    Attributes:
        records: of the part. labelled: tasks with a label. marked: whether what the model measures of each record
            itself (masks) is there; None for a model that measures nothing.
        names: metrics that can be computed, `part/...`.
    """

    part: str
    records: int
    labelled: tuple[str, ...]
    marked: bool | None
    names: frozenset[str]

    @property
    def measurable(self) -> bool:
        """Whether there is a label of anything that the model answers."""
        return bool(self.labelled) or bool(self.marked)


def labels_of(session: Session, part: str, metric: str | None = None) -> Outlook | None:
    """What can be measured on a part. Collective, the same on every rank.

    Args:
        metric: look until it is certain that this one can be computed; None = until every task has a label.

    Returns:
        None where it is not known: an index is damaged, and `data.on_error` is `skip`.

    Raises:
        ValueError: an index is damaged; on every rank.
    """
    told: dict[str, Any] = {}
    if session.context.rank == 0:
        try:
            told = asdict(_look(session, part, metric))
        except ShardError as error:
            told = {"damaged": str(error)}
        told = {key: sorted(value) if isinstance(value, frozenset) else value for key, value in told.items()}
    told = broadcast_json(told)
    if "damaged" in told and session.config.data.on_error == "raise":
        raise ValueError(told["damaged"])
    if "damaged" in told:
        return None
    return Outlook(told["part"], told["records"], tuple(told["labelled"]), told["marked"], frozenset(told["names"]))


def _look(session: Session, part: str, metric: str | None) -> Outlook:
    found = Outlook(part, 0, (), None, frozenset())
    manifest = session.manifest
    members = manifest.members if isinstance(manifest, Mixture) else []
    if not members:
        assert isinstance(manifest, Manifest)
        return _part(session, found, manifest, session.config.data.split, "", metric)
    for member in members:
        found = _part(session, found, member.manifest, member.split, f"{member.name}-", metric)
    return found


def _part(
    session: Session, before: Outlook, manifest: Manifest, split: str, prefix: str, metric: str | None
) -> Outlook:
    """What is known from other members of a mixture, and what this data set adds."""
    pairs = [(own, task) for own in manifest.schema.tasks for task in session.tasks]
    asked = {own.name: task for own, task in pairs if same_question(own, task, prefix)}
    mask = _mask_modality(session)
    labels = part_labels(manifest, split, before.part, list(asked), _enough(session, before.part, asked, metric, mask))
    labelled = [asked[name].name for name, number in labels.labelled.items() if number]
    names = {name for key, task in asked.items() for name in _names(session, before.part, task, labels, key)}
    marked = None if mask is None else bool(before.marked) or mask in labels.present
    names |= {f"{before.part}/{measure}" for measure in _measures(session) if marked}
    if marked or any(session.config.training.task_weight(name) for name in labelled):
        names |= {f"{before.part}/loss", *([f"{before.part}/loss{BY_RECORD}"] if labels.peaks else [])}
    return Outlook(
        before.part,
        before.records + labels.records,
        tuple(dict.fromkeys([*before.labelled, *labelled])),
        marked,
        before.names | names,
    )


def _enough(
    session: Session, part: str, asked: dict[str, TaskSpec], metric: str | None, mask: str | None
) -> Callable[[PartLabels], bool]:
    def enough(seen: PartLabels) -> bool:
        if not all(seen.labelled.values()) or (mask is not None and mask not in seen.present):
            return False
        names = {name for key, task in asked.items() for name in _names(session, part, task, seen, key)}
        return metric is None or metric in names or metric.removesuffix(BY_RECORD) == f"{part}/loss"

    return enough


def _names(session: Session, part: str, task: TaskSpec, seen: PartLabels, own: str) -> set[str]:
    """Metrics of a task, which the data set knows by its `own` name."""
    prefix = part if len(session.tasks) == 1 else f"{part}/{task.name}"
    names = metric_names(task, seen.values[own])
    if own in seen.peaks:
        names |= record_metric_names(task, seen.values[own], seen.peaks[own])
    return {f"{prefix}/{name}" for name in names}


def _measures(session: Session) -> tuple[str, ...]:
    return tuple(getattr(session.engine.module, "measures", ()))


def _mask_modality(session: Session) -> str | None:
    """The modality that stands for labels, of a model that measures each record itself."""
    found: str | None = getattr(session.engine.module, "label_modality", None)
    return found


def unlabelled(session: Session, found: Outlook) -> str:
    """In words: what a part lacks of what the model answers."""
    if not found.records:
        return f"part {found.part} of {session.manifest.url} holds no record"
    without = [task.name for task in session.tasks if task.name not in found.labelled]
    return f"no record of part {found.part} of {session.manifest.url} has a label of {', '.join(without) or 'a mask'}"
