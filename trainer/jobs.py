"""What a worker does: train, or evaluate. Every launcher ends here, with the same arguments.

`run` is called on every rank. Rank 0's answer is what the command prints as its last line; it is also written to
`result.json` in the run's folder.
"""

from __future__ import annotations

import json
import logging
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import torch
import yaml

from data_shards import DataSet, open_data
from data_shards.loading.mixture import Mixture
from trainer.checkpoint import Checkpoint, committed_paths, load_engine, read_checkpoint, restore
from trainer.checkpoint_files import CheckpointError
from trainer.checkpoint_writer import CheckpointWriter
from trainer.collectives import broadcast_json, sum_over_ranks
from trainer.config import RunConfig
from trainer.context import Context
from trainer.describe import describe_run
from trainer.evaluation import evaluate
from trainer.evaluation_job import evaluate_checkpoint
from trainer.flops import parameter_counts
from trainer.job_types import backbone_of, check_backbone, check_records
from trainer.loop import TrainingLoop
from trainer.metrics import Predictions
from trainer.provenance import environment_lock
from trainer.run_progress import Progress
from trainer.session import Session, build_session
from trainer.tracker import Tracker
from trainer.tracking import create_tracker

logger = logging.getLogger("fleximoe")


def run(config: RunConfig, context: Context, tags: dict[str, str] | None = None) -> dict[str, Any]:
    """Do the job of `config` on this rank. Collective.

    Returns (on every rank): `run_id`, `checkpoint`, `metrics`, `samples`, `seconds`, `status`.

    Raises:
        ValueError: a wrong recipe, data set or checkpoint, in a sentence. FloatingPointError: training diverged.
    """
    start = time.perf_counter()
    result = evaluate_checkpoint(config, context) if config.job == "evaluate" else train(config, context, tags or {})
    result["seconds"] = round(time.perf_counter() - start, 2)
    if context.rank == 0 and config.job != "evaluate":
        fs, root = fsspec.url_to_fs(config.run_dir)
        fs.makedirs(root, exist_ok=True)
        fs.pipe_file(f"{root}/result.json", json.dumps(result, indent=1).encode())
    return result


def train(config: RunConfig, context: Context, tags: dict[str, str]) -> dict[str, Any]:
    """Train a model, or continue the run of this name; then evaluate its best checkpoint on the test part."""
    manifest = open_data(config.data)
    session = build_session(config, context, manifest, manifest.schema, _statistics(manifest, config))
    check_records(session)
    context.start.mark("model")
    tracker = create_tracker(config.tracking, config.name, config.tracking.run_id, tags, context.rank, config.run_dir)
    status = "FAILED"
    try:
        result = _train(session, tracker)
        status = "FINISHED" if result["status"] == "finished" else "KILLED"
        return result
    finally:
        tracker.finish(status)  # type: ignore[arg-type]
        session.close()


def _train(session: Session, tracker: Tracker) -> dict[str, Any]:
    config, context = session.config, session.context
    _log_origin(session, tracker)
    size = _model_size(session, tracker)
    checkpoint = _restore(session)
    context.start.mark("restore")
    progress = Progress(**checkpoint.meta["progress"]) if checkpoint else Progress()
    if checkpoint and context.rank == 0:
        logger.info("continuing %s at step %d", config.name, progress.step)
    attempt = broadcast_json(uuid.uuid4().hex, session.device)
    keep = config.training.checkpoint
    writer = CheckpointWriter(
        config.run_dir,
        context.rank,
        context.world,
        attempt,
        keep.keep_last,
        keep.keep_best,
        _agree(session),
        tracker.flush,
    )
    _prepare(session)
    loop = TrainingLoop(session, tracker, writer, describe_run(session, tracker.run_id), progress, size)
    progress = loop.run()
    result: dict[str, Any] = {
        "run_id": broadcast_json(tracker.run_id, session.device),
        "name": config.name,
        "status": "stopped" if loop.stopped else "finished",
        "step": progress.step,
        "samples": progress.samples_seen,
        "metrics": {},
    }
    if loop.stopped:
        return {**result, "checkpoint": writer.url(progress.step)}
    best = _load_best(session, progress)
    result["metrics"] = _test(session, tracker, progress.step, loop.routing_total)
    made = _save_adapter(session, tracker, best)
    tracker.log_model(made.get("adapter", best.url), _lineage(session, best), result["metrics"])
    return {**result, "checkpoint": best.url, **made}


def _save_adapter(session: Session, tracker: Tracker, best: Checkpoint) -> dict[str, str]:
    """Beside the checkpoints of a job with a frozen backbone: what was trained, as one small file to hand on."""
    if best.meta.get("backbone") is None:
        return {}
    from trainer.adapter import log_adapter, write_adapter
    from trainer.look_inside import look_inside

    url = f"{session.config.run_dir}/adapter"
    if session.context.rank == 0:
        write_adapter(best, url)
        log_adapter(tracker, url)
    look_inside(session, tracker)
    return {"adapter": url}


def _prepare(session: Session) -> None:
    """What a frozen tower says about the training records, once, where the recipe asks for it. Collective."""
    mope = session.config.mope
    if session.config.job != "mope" or mope is None or not mope.cache or mope.host is not None:
        return
    steps = session.loader("train", shuffle=False).steps(0)
    batches = (batch.to(session.device) for step in steps for batch in step.micro_batches)
    prepare: Callable[..., None] = session.engine.module.prepare  # type: ignore[assignment]
    prepare(batches, session.manifest.records)
    if session.context.rank == 0:
        logger.info("features of the frozen towers are read")


def _log_origin(session: Session, tracker: Tracker) -> None:
    """The recipe with everything in it, the data, the packages: what another person needs to repeat the run."""
    config, manifest = session.config, session.manifest
    whole = config.model_dump(mode="json", exclude={"evaluation"})
    data = {"name": manifest.schema.name, "digest": manifest.digest, "records": manifest.records}
    # MLflow's compare page shows what differs; of these two that is no news, as the run has that name.
    told = config.model_dump(mode="json", exclude={"evaluation": True, "name": True, "tracking": {"spool"}})
    tracker.log_params({**told, "dataset": data})
    tracker.log_json("config.json", whole)
    for one in [member.manifest for member in manifest.members] if isinstance(manifest, Mixture) else [manifest]:
        tracker.log_dataset(one.schema.name, one.url, one.digest, "training")
    backbone = backbone_of(session.engine.module)
    if backbone is not None:
        runs = {"backbone.runs": ",".join(backbone["runs"])} if backbone["runs"] else {}
        tracker.set_tags({"job": config.job, "backbone.digest": backbone["digest"], **runs})
    tracker.set_tags({"job_type": config.job, "dataset.name": manifest.schema.name, "dataset.digest": manifest.digest})
    if session.context.rank == 0:
        tracker.log_text("recipe.yaml", yaml.safe_dump(whole, sort_keys=False))
        tracker.log_text("requirements.txt", environment_lock())


def _lineage(session: Session, checkpoint: Checkpoint) -> dict[str, str]:
    """What a model says about where it comes from."""
    own = {"format": "fleximoe-checkpoint", "step": str(checkpoint.step), "data.digest": session.manifest.digest}
    tags = session.config.tracking.tags
    parent = tags.get("mlflow.parentRunId")
    backbone = backbone_of(session.engine.module)
    if backbone is not None:
        own |= {"backbone.digest": backbone["digest"], "backbone.runs": ",".join(backbone["runs"])}
    return {**own, "data.url": session.manifest.url, **({"parent_run": parent} if parent else {})}


def _statistics(manifest: DataSet, config: RunConfig):  # type: ignore[no-untyped-def]
    split = config.data.split
    manifest.column(split, "train")
    return manifest.statistics[split]


def _model_size(session: Session, tracker: Tracker) -> dict[str, float]:
    """Metrics: parameters in all, of experts, and met by one token (logged as parameters of the run here, too), and the
    peak of a worker that `perf/mfu` is measured against: no parameter, as a measured one differs from run to run."""
    counts = parameter_counts(session.engine.logical_parameters(), session.config.model.moe.top_k)
    tracker.log_params({"parameters": counts, "peak": {"source": session.peak_source}})
    shares = {name: float(number) for name, number in counts.items()} | _backbone_share(session)
    if session.context.rank == 0:
        logger.info(
            "%s parameters, %s of them in experts, %s active a token; peak %.3g TFLOP/s a worker (%s)",
            *(f"{counts[name]:,}" for name in ("total", "experts", "active")),
            session.peak / 1e12,
            session.peak_source,
        )
    sizes = {f"parameters/{name}": number for name, number in shares.items()}
    return {**sizes, "perf/peak_tflops": session.peak / 1e12}


def _backbone_share(session: Session) -> dict[str, float]:
    """Trained and frozen parameters of a job with a frozen backbone."""
    if backbone_of(session.engine.module) is None:
        return {}
    share: dict[str, float] = session.engine.module.parameter_share()  # type: ignore[operator]
    if session.context.rank == 0:
        logger.info("%d trained parameters are %.3g %% of %d frozen ones", *_percent(share))
    return share


def _percent(share: dict[str, float]) -> tuple[int, float, int]:
    return int(share["trained"]), 100 * share["share"], int(share["frozen"])


def _agree(session: Session) -> Callable[[bool], bool]:
    """Collective: whether all ranks are fine."""

    def agree(ok: bool) -> bool:
        return float(sum_over_ranks(torch.tensor(float(not ok), device=session.device))) == 0

    return agree


def _restore(session: Session) -> Checkpoint | None:
    config = session.config
    paths = broadcast_json(committed_paths(config.run_dir) if session.context.rank == 0 else None, session.device)
    checkpoint = restore(config.run_dir, paths, session.engine, _agree(session))
    if checkpoint is None:
        return None
    check_backbone(checkpoint.path, checkpoint.meta.get("backbone"), session.engine.module)
    if checkpoint.meta["data_digest"] != session.manifest.digest:
        raise CheckpointError(
            f"run {config.name} was trained on data with digest {checkpoint.meta['data_digest'][:12]}, and "
            f"{session.manifest.url} has {session.manifest.digest[:12]}: the data changed; give the run another name"
        )
    return checkpoint


def _load_best(session: Session, progress: Progress) -> Checkpoint:
    """Weights of the best evaluated step, or of the last one where nothing was evaluated."""
    paths = broadcast_json(
        committed_paths(session.config.run_dir) if session.context.rank == 0 else None, session.device
    )
    fs, _ = fsspec.url_to_fs(session.config.run_dir)
    wanted = progress.best_step if progress.best_step is not None else progress.step
    for path in paths:
        if int(path.rsplit("-", 1)[1]) == wanted:
            checkpoint = read_checkpoint(fs, path)
            load_engine(checkpoint, session.engine, moments=False)
            return checkpoint
    raise CheckpointError(f"the checkpoint of step {wanted} of run {session.config.name} is gone; there are {paths}")


def _test(session: Session, tracker: Tracker, step: int, routing: list[torch.Tensor]) -> dict[str, float]:
    """Metrics of the test part (of no part, if there is none), with figures."""
    metrics: dict[str, float] = {}
    predictions = None
    if "test" in session.manifest.splits[session.config.data.split]:
        metrics, predictions = evaluate(session, "test")
        tracker.log_metrics(metrics, step)
    if session.context.rank == 0:
        # Imported late: a restarted worker has no time for a plotting library.
        from trainer.figures import log_routing_figures, log_test_figures

        log_routing_figures(tracker, session.schema, routing)
        if predictions is not None:
            log_test_figures(tracker, session.tasks, predictions)
            _log_predictions(tracker, session, predictions)
    return metrics


def _log_predictions(tracker: Tracker, session: Session, predictions: Predictions) -> None:
    """What was said about each test record: intervals and paired comparisons are made from it."""
    from trainer.prediction_files import write_predictions

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "test.parquet"
        write_predictions(path, session.tasks, predictions)
        tracker.log_file("predictions/test.parquet", path)
