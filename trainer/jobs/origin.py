"""What another person needs to repeat a run: recipe, data, packages, sizes, backbone."""

from __future__ import annotations

import logging

from data_shards.loading.mixture import Mixture
from data_shards.yaml_file import to_yaml
from trainer.checkpoints.checkpoint import Checkpoint
from trainer.jobs.grown import version_of
from trainer.models.flops import parameter_counts, parameter_share
from trainer.models.pretrained.loading.backbone import backbone_of
from trainer.run_folder import CONFIG, RECIPE, REQUIREMENTS
from trainer.session import Session
from trainer.tracking.tracker import Tracker
from trainer.worker.provenance import environment_lock

logger = logging.getLogger("fleximoe")


def log_origin(session: Session, tracker: Tracker) -> None:
    """The recipe with everything in it, the data, the packages: what another person needs to repeat the run."""
    config, manifest = session.config, session.manifest
    whole = config.model_dump(mode="json", exclude={"evaluation"})
    number = version_of(manifest)
    data = {"name": manifest.schema.name, "digest": manifest.digest, "records": manifest.records, "version": number}
    # MLflow's compare page shows what differs; of these two that is no news, as the run has that name.
    told = config.model_dump(mode="json", exclude={"evaluation": True, "name": True, "tracking": {"spool"}})
    tracker.log_params({**told, "dataset": data})
    tracker.log_json(CONFIG, whole)
    for one in [member.manifest for member in manifest.members] if isinstance(manifest, Mixture) else [manifest]:
        tracker.log_dataset(one.schema.name, one.url, one.digest, "training")
    backbone = backbone_of(session.engine.module)
    if backbone is not None:
        runs = {"backbone.runs": ",".join(backbone["runs"])} if backbone["runs"] else {}
        tracker.set_tags({"job": config.job, "backbone.digest": backbone["digest"], **runs})
    about = {"name": manifest.schema.name, "digest": manifest.digest, "version": str(number)}
    tracker.set_tags({"job_type": config.job, **{f"dataset.{key}": value for key, value in about.items()}})
    if session.context.rank == 0:
        tracker.log_text(RECIPE, to_yaml(whole))
        tracker.log_text(REQUIREMENTS, environment_lock())


def lineage(session: Session, checkpoint: Checkpoint) -> dict[str, str]:
    """What a model says about where it comes from."""
    own = {"format": "fleximoe-checkpoint", "step": str(checkpoint.step), "data.digest": session.manifest.digest}
    tags = session.config.tracking.tags
    parent = tags.get("mlflow.parentRunId")
    backbone = backbone_of(session.engine.module)
    if backbone is not None:
        own |= {"backbone.digest": backbone["digest"], "backbone.runs": ",".join(backbone["runs"])}
    return {**own, "data.url": session.manifest.url, **({"parent_run": parent} if parent else {})}


def model_size(session: Session, tracker: Tracker) -> dict[str, float]:
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
    share = parameter_share(session.engine.module)
    if session.context.rank == 0:
        logger.info("%d trained parameters are %.3g %% of %d frozen ones", *_percent(share))
    return share


def _percent(share: dict[str, float]) -> tuple[int, float, int]:
    return int(share["trained"]), 100 * share["share"], int(share["frozen"])
