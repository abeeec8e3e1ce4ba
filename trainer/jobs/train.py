"""The job `train`: train a model, or continue a run; then measure its best checkpoint."""

from __future__ import annotations

import itertools
import json
import logging
import uuid
from collections.abc import Iterator
from functools import partial
from typing import Any

import fsspec
import torch

from data_shards import Batch, DataSet, Manifest, open_data
from data_shards.inspection.presence import first_without
from data_shards.lease.lease import Guard
from data_shards.loading.schema_map import statistics_in
from data_shards.records.statistics import SplitStatistics
from parallel import init_distributed
from parallel.moe.initial import check_filled
from trainer.checkpoints.checkpoint import Checkpoint, read_checkpoint
from trainer.checkpoints.description import embedded_to_json, statistics_to_json
from trainer.checkpoints.find import committed_paths, recorded_recipe
from trainer.checkpoints.pieces import CheckpointError, ForeignCheckpointError
from trainer.checkpoints.restore import load_engine, restore
from trainer.checkpoints.writer import CheckpointWriter
from trainer.config.preset import recorded, said
from trainer.config.run_config import RunConfig, as_recorded
from trainer.jobs.grown import Growth, move
from trainer.jobs.origin import lineage, log_origin, model_size
from trainer.models.encoders.own.embedded import with_embedded
from trainer.models.job_type import job_type
from trainer.models.pretrained.lineage import check_frozen, encoder_counts, encoders_of
from trainer.models.pretrained.loading.backbone import backbone_of
from trainer.run_folder import REGISTERED, RESULT, remove, stored_run_id
from trainer.session import Session, build_session
from trainer.tracking.create import create_tracker
from trainer.tracking.tracker import FINISH_SECONDS, Tracker
from trainer.training.early_stopping import other_ranking
from trainer.training.loop import TrainingLoop
from trainer.training.preconditions import check_preconditions
from trainer.training.progress import Progress
from trainer.worker.collectives import broadcast_json, sum_over_ranks
from trainer.worker.context import Context
from trainer.worker.heartbeat import doing
from trainer.worker.mailbox import job_mailbox

logger = logging.getLogger("fleximoe")


def train(config: RunConfig, context: Context, tags: dict[str, str], guard: Guard) -> dict[str, Any]:
    """Train a model, or continue the run of this name; then evaluate its best checkpoint on the test part.

    `guard` stands before everything that is written under the name.
    """
    manifest = open_data(config.data)
    schema = job_type(config.model_job).schema(config, manifest.schema)
    statistics = statistics_in(_statistics(manifest, config), manifest.schema, schema)
    config = with_embedded(config, schema, manifest.embedded)
    init_distributed(context.device, config.parallel.timeout_s)
    # The same list on every rank: whether there is something to continue from decides how the model is made.
    paths = broadcast_json(committed_paths(config.run_dir) if context.rank == 0 else None)
    growth = Growth.of(config, manifest, context) if paths else Growth()
    statistics = growth.statistics or statistics
    if paths and (config.unnamed or config.model.image.network is None):
        config = as_recorded(config, broadcast_json(recorded_recipe(config.run_dir) if context.rank == 0 else None))
    config, asked = job_type(config.job).sized(config, schema, statistics, manifest.splits[config.data.split]), config
    if context.rank == 0 and asked.unnamed:
        logger.info(said(asked.preset, recorded(config.model_dump(mode="json"), asked.unnamed)))
    session = build_session(config, context, manifest, schema, statistics, filled=bool(paths))
    session.guard = guard
    check_preconditions(session)
    check_records(session)
    context.start.mark("model")
    run_id = config.tracking.run_id
    tracker = create_tracker(config.tracking, config.name, run_id, tags, context.rank, config.run_dir, guard)
    status = "FAILED"
    try:
        result = _train(session, tracker, paths, growth)
        status = "FINISHED" if result["status"] == "finished" else "KILLED"
        # The other ranks wait for what MLflow says at the end, so it has less time than they.
        tracker.finish(status, min(FINISH_SECONDS, config.parallel.timeout_s / 2))  # type: ignore[arg-type]
        run_id = tracker.run_id or stored_run_id(config.run_dir, config.tracking.uri)  # known, if not open: deleted
        told = broadcast_json({"run_id": run_id, "mlflow": tracker.delivery})
        return {**told, **result}
    finally:
        tracker.finish(status)  # type: ignore[arg-type]
        session.close()


def _train(session: Session, tracker: Tracker, paths: list[str], growth: Growth) -> dict[str, Any]:
    config, context = session.config, session.context
    log_origin(session, tracker)
    size = model_size(session, tracker)
    checkpoint = _restore(session, paths, growth)
    context.start.mark("restore")
    progress = Progress(**checkpoint.meta["progress"]) if checkpoint else Progress()
    tracker.rewind(progress.step)
    if checkpoint and checkpoint.meta["data_digest"] != session.manifest.digest:
        move(session, tracker, progress, checkpoint)
    if checkpoint and context.rank == 0:
        logger.info("continuing %s at step %d", config.name, progress.step)
    # One word for this start of the run on all ranks, by which rank 0 tells their files from an earlier start's.
    attempt = broadcast_json(uuid.uuid4().hex)
    keep = config.training.checkpoint
    writer = CheckpointWriter(
        config.run_dir,
        context.rank,
        context.world,
        attempt,
        keep.keep_last,
        keep.keep_best,
        _agree,
        tracker.flush,
        session.guard,
        job_mailbox(),
    )
    _prepare(session)
    if context.rank == 0:
        # Of an earlier end of this run: from here on it has none until it ends again
        session.guard.check()
        remove(config.run_dir, RESULT)
    loop = TrainingLoop(session, tracker, writer, describe_run(session, tracker.run_id), progress, size)
    progress = loop.run()
    result: dict[str, Any] = {
        "name": config.name,
        "status": "stopped" if loop.stopped else "finished",
        "step": progress.step,
        "samples": progress.samples_seen,
        "metrics": {},
    }
    if counts := _encoder_counts(session):
        result["encoders"] = counts
    # It goes on another time: no test, and nothing is handed on.
    if loop.stopped:
        return {**result, "checkpoint": writer.url(progress.step)}
    doing("the test")
    best = _load_best(session, progress)
    # Imported late: a restarted worker has no time for a plotting library.
    from trainer.jobs.results import look_inside, save_adapter, test_best

    result["metrics"] = test_best(session, tracker, progress.step, best, loop.routing_total)
    made = save_adapter(session, tracker, best)
    look_inside(session, tracker)
    export = _registered(session, best)
    tracker.log_model(made.get("adapter", best.url), lineage(session, best), result["metrics"], export)
    return {**result, "checkpoint": best.url, **made}


def _registered(session: Session, best: Checkpoint) -> str | None:
    """The folder of the model that a registered version holds, of rank 0; None where none is registered."""
    config = session.config
    if session.context.rank or config.tracking.register_as is None or not config.tracking.mlflow:
        return None
    from trainer.inference.portable.registered import write_registered

    session.guard.confirm()
    return write_registered(best.url, f"{config.run_dir}/{REGISTERED}")


def _encoder_counts(session: Session) -> dict[str, dict[str, int]]:
    """What pretrained encoders have read in this start of the run, over all ranks; what was cut is said. Collective."""
    found = encoder_counts(session.engine.module)
    for name, counts in found.items():
        total = sum_over_ranks(torch.tensor(list(counts.values()), dtype=torch.int64)).tolist()
        found[name] = dict(zip(counts, total, strict=True))
        if found[name]["cut"] and session.context.rank == 0:
            logger.warning("encoder of %s: %d of %d objects were cut", name, found[name]["cut"], found[name]["read"])
    return found


def _prepare(session: Session) -> None:
    """What the type of job does with the training records before the first step. Collective."""

    def batches() -> Iterator[Batch]:  # a loader starts processes, so it is made when the first batch is asked for
        for step in session.steps_of("train"):
            yield from (batch.to(session.device) for batch in step.micro_batches)

    done = session.job.prepare(session.config, session.engine.module, batches(), session.manifest.records)
    if done and session.context.rank == 0:
        logger.info("features of the frozen towers are read")


def _statistics(manifest: DataSet, config: RunConfig) -> SplitStatistics:
    split = config.data.split
    manifest.column(split, "train")
    return manifest.statistics[split]


def _agree(ok: bool) -> bool:
    """Whether all ranks are fine. Collective; a rank may be late to it."""
    return float(sum_over_ranks(torch.tensor(float(not ok)))) == 0


def _restore(session: Session, paths: list[str], growth: Growth) -> Checkpoint | None:
    """Continue from the newest readable one of the run's checkpoints. Collective."""
    belongs = partial(_belongs, session, growth)
    checkpoint = restore(session.config.run_dir, paths, session.engine, _agree, belongs)
    if checkpoint is not None:
        check_filled(session.engine.module)
    elif paths:
        session.start_over()
    return checkpoint


def _belongs(session: Session, growth: Growth, checkpoint: Checkpoint) -> None:
    """Raises ForeignCheckpointError, ValueError: the run has other data, another split, backbone or ranking."""
    check_frozen(checkpoint.path, checkpoint.meta, session.engine.module)
    growth.allows(session.config, session.manifest, checkpoint.meta["data_digest"])
    before, now = _splits(checkpoint.meta["config"]["data"]), _splits(session.config.data.model_dump())
    if before != now:
        raise ForeignCheckpointError(
            f"run {session.config.name} was trained on split {', '.join(before.values())} and is to go on with "
            f"{', '.join(now.values())}, which would test it on records that it has learned; give the run another name"
        )
    other = other_ranking(session.config.training.early_stopping, checkpoint.ranked_by)
    if other is not None:
        raise ForeignCheckpointError(f"run {session.config.name} {other}")


def _splits(data: dict[str, Any]) -> dict[str, str]:
    """Data set (of a mixture) -> the split that is used, of a recipe's section `data`."""
    mixture = data.get("mixture") or {}
    return {name: entry["split"] for name, entry in mixture.items()} or {"": data["split"]}


def _load_best(session: Session, progress: Progress) -> Checkpoint:
    """Weights of the best evaluated step, or of the last one where nothing was evaluated."""
    paths = broadcast_json(committed_paths(session.config.run_dir) if session.context.rank == 0 else None)
    fs, _ = fsspec.url_to_fs(session.config.run_dir)
    wanted = progress.best_step if progress.best_step is not None else progress.step
    for path in paths:
        if int(path.rsplit("-", 1)[1]) == wanted:
            checkpoint = read_checkpoint(fs, path)
            load_engine(checkpoint, session.engine, moments=False)
            return checkpoint
    raise CheckpointError(f"the checkpoint of step {wanted} of run {session.config.name} is gone; there are {paths}")


def describe_run(session: Session, run_id: str | None) -> dict[str, Any]:
    """Everything needed to rebuild the model elsewhere: recipe, schema, statistics, digests."""
    return {
        "config": session.config.model_dump(mode="json"),
        "schema": json.loads(session.schema.to_json()),
        "schema_digest": session.schema.digest(),
        "statistics": statistics_to_json(session.statistics),
        "data_digest": session.manifest.digest,
        "embedded": embedded_to_json(session.manifest.embedded),
        "mlflow_run_id": run_id,
        "backbone": backbone_of(session.engine.module),
        "encoders": encoders_of(session.engine.module),
    }


def check_records(session: Session) -> None:
    """Before anything is trained or written: has every record what the model cannot do without? Collective.

    Raises ValueError: a record of any part has not.
    """
    model, manifest, split = session.engine.module, session.manifest, session.config.data.split
    needed = session.job.needed_modalities(model)
    if not needed or not isinstance(manifest, Manifest):
        return  # of a mixture, a record says so itself when it is met
    problem = None
    for part, modality in itertools.product(manifest.splits[split], needed) if session.context.rank == 0 else ():
        found = first_without(manifest, split, part, modality)
        if found is not None and problem is None:
            problem = (
                f"{found[1]} records of part {part}, the first is {found[0]}, have no {modality}, which a tower reads: "
                "leave them out when packing, or set mope.missing=learned"
            )
    problem = broadcast_json(problem)
    if problem is not None:
        raise ValueError(problem)
