"""Whether a run can learn, choose and measure what its recipe asks, decided before the first step.

What the recipe cannot do is refused; what it merely cannot measure is said, and has no figure later.
"""

from __future__ import annotations

import logging

from data_shards.records.survival import seen_and_censored
from trainer.evaluation.outlook import Outlook, labels_of, unlabelled
from trainer.metrics.main_metric import is_count, measured
from trainer.session import Session
from trainer.training.early_stopping import mode_of

logger = logging.getLogger("fleximoe")


def check_preconditions(session: Session) -> None:
    """Before anything is trained or written. Collective, with the same outcome on every rank.

    Raises:
        ValueError: the training part has no record or no label, or the metric that chooses cannot be computed, or
            would choose the worst, or the best checkpoint would not be kept; says what to do.
    """
    _can_learn(session)
    _say_moments(session)
    _say_nothing_to_hide(session)
    _can_choose(session)
    _can_measure(session)


def _can_learn(session: Session) -> None:
    """From the statistics of the training part, which the manifest holds."""
    config, split = session.config.training, session.config.data.split
    where = f"part train of {session.manifest.url}"
    if not session.manifest.splits[split].get("train"):
        raise ValueError(f"{where} holds no record, so there is nothing to learn: pack data with a part train")
    _known_weights(session)
    if not session.tasks:
        found = labels_of(session, "train")
        if found is not None and found.marked is False:
            raise ValueError(f"{unlabelled(session, found)}, so there is nothing to learn: label it")
        return
    without = [task.name for task in session.tasks if not _labelled(session, task.name)]
    if len(without) == len(session.tasks) or (config.tasks and without):
        more = "" if len(without) == len(session.tasks) else ", or leave it out of training.tasks"
        raise ValueError(
            f"no record of {where} has a label of {', '.join(without)}, so there is nothing to learn: label it{more}"
        )
    if without:
        _say(session, f"no record of {where} has a label of {', '.join(without)}: the run learns the other tasks only")
    _something_happens(session)
    _weighty(session, [task.name for task in session.tasks if task.name not in without])
    _balanced(session)


def _something_happens(session: Session) -> None:
    """Raises ValueError: a survival task of which nothing was seen; without it every hazard falls to 0."""
    for task in session.tasks:
        if task.kind != "survival" or not _labelled(session, task.name):
            continue
        seen, censored = seen_and_censored(session.statistics.tasks[task.name].counts)
        if not seen:
            raise ValueError(
                f"none of the {censored} records of part train of {session.manifest.url} that have a time of "
                f"{task.name} was seen, all are censored, so there is no hazard to learn: add records with seen = 1, "
                "or leave the task out of training.tasks"
            )


def _say_moments(session: Session) -> None:
    """What a sample is, where it is not a record. Collective, as the loader is made."""
    if not session.schema.has_moments:
        return
    samples = session.loader("train", shuffle=True).samples
    if session.context.rank == 0:
        logger.info(
            "part train has %d samples, the moments of %d records: batch sizes, epochs and all counts are of samples",
            samples,
            session.manifest.splits[session.config.data.split]["train"],
        )


def _say_nothing_to_hide(session: Session) -> None:
    """What the recipe wants hidden while training, and these data cannot have hidden."""
    model, modalities = session.config.model, session.schema.modalities
    if model.time_dropout and not any(spec.has_times for spec in modalities):
        _say(session, f"model.time_dropout={model.time_dropout:g} hides nothing: no modality of these data has times")
    if model.modality_dropout and len(modalities) == 1:
        _say(
            session,
            f"model.modality_dropout={model.modality_dropout:g} hides nothing: {modalities[0].name} is the only "
            "modality, and at least one always stays",
        )


def _weighty(session: Session, labelled: list[str]) -> None:
    """Raises ValueError: every task that has labels has weight 0."""
    if not any(map(session.config.training.task_weight, labelled)):
        raise ValueError(
            f"training.task_weights is 0 for {', '.join(labelled)}, and part train of {session.manifest.url} has "
            "labels of no other task that is trained, so there is nothing to learn: give one of them a weight"
        )


def _labelled(session: Session, task: str) -> int:
    table = session.statistics.tasks.get(task)
    return table.labelled if table is not None else 0


def _known_weights(session: Session) -> None:
    wrong = sorted(set(session.config.training.task_weights) - set(session.schema.task_names))
    if wrong:
        raise ValueError(
            f"training.task_weights names {', '.join(wrong)}, and data set {session.schema.name} has the tasks "
            f"{', '.join(session.schema.task_names)}"
        )


def _balanced(session: Session) -> None:
    """`class_weighting: balanced` has no weight to give where a class is not there."""
    if session.config.training.class_weighting != "balanced":
        return
    for task in session.tasks:
        counts = session.statistics.tasks[task.name].counts if _labelled(session, task.name) else ()
        if task.kind in ("binary", "multiclass") and counts and not all(counts):
            _say(
                session,
                f"training.class_weighting=balanced has no effect on {task.name}: part train has no record of "
                f"{sum(not count for count in counts)} of its {len(counts)} classes",
            )


def _can_choose(session: Session) -> None:
    """The metric that ranks evaluations and stops early."""
    stopping, parts = session.config.training.early_stopping, session.manifest.splits[session.config.data.split]
    if "val" not in parts:
        if stopping.patience is not None:
            raise ValueError(
                f"training.early_stopping.patience={stopping.patience} needs a part val to judge by, and "
                f"{session.manifest.url} has {', '.join(sorted(parts))}: pack data with a part val, or set it to null"
            )
        return
    if not session.config.training.checkpoint.keep_best:
        raise ValueError(
            f"training.checkpoint.keep_best=0 would remove the best checkpoint by {stopping.metric}, which the run "
            "tests at its end: set it to 1 or more, or pack without a part val"
        )
    found = labels_of(session, "val", stopping.metric)
    if found is not None and stopping.metric not in found.names and not is_count(stopping.metric):
        raise ValueError(
            f"training.early_stopping.metric = {stopping.metric!r} is not computed; there are "
            f"{', '.join(measured(found.names)) or 'none'}{_because(session, found)}"
        )
    # Last: a name that is merely misspelt has no direction, either.
    mode_of(stopping)
    if found is None:
        _say(session, f"an index of {session.manifest.url} is damaged, so nobody knows yet what val can measure")
        return
    _say_unlabelled(session, found)


def _because(session: Session, found: Outlook) -> str:
    if not found.records or len(found.labelled) < len(session.tasks) or found.marked is False:
        return f" ({unlabelled(session, found)}: label it, or pack without a part val)"
    return ""


def _can_measure(session: Session) -> None:
    """The test part, at the end."""
    if "test" not in session.manifest.splits[session.config.data.split]:
        return
    found = labels_of(session, "test")
    if found is not None:
        _say_unlabelled(session, found)


def _say_unlabelled(session: Session, found: Outlook) -> None:
    if not found.records or len(found.labelled) < len(session.tasks) or found.marked is False:
        _say(session, f"{unlabelled(session, found)}: there will be no figure of it")


def _say(session: Session, sentence: str) -> None:
    if session.context.rank == 0:
        logger.warning("%s", sentence)
