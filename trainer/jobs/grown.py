"""A run whose data set has grown: it goes on with the version that it knows, or moves to the newer one if told to.

A run that moves begins an epoch of the newer version. What its model has learned stays as it is, and so do the
statistics that it scales values by; scores are begun anew, as the validation part may have grown, too.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from data_shards import DataSet, Manifest
from data_shards.errors import ManifestError
from data_shards.records.statistics import SplitStatistics
from data_shards.shards.versions import ancestors_of
from trainer.checkpoints.checkpoint import Checkpoint
from trainer.checkpoints.description import statistics_from_json
from trainer.checkpoints.find import recorded
from trainer.checkpoints.pieces import ForeignCheckpointError
from trainer.config.run_config import RunConfig
from trainer.session import Session
from trainer.tracking.tracker import Tracker
from trainer.training.progress import Progress
from trainer.worker.collectives import broadcast_json
from trainer.worker.context import Context

logger = logging.getLogger("fleximoe")


@dataclass(frozen=True)
class Growth:
    """What a run that goes on finds of its data.

    Attributes:
        ancestors: digest -> URL of the versions that the data set has grown from, where it is not the run's own.
        statistics: those of the run's model, where the data's may be others.
    """

    ancestors: dict[str, str] = field(default_factory=dict)
    statistics: SplitStatistics | None = None

    @staticmethod
    def of(config: RunConfig, manifest: DataSet, context: Context) -> Growth:
        """Rank 0 looks, for all. Collective."""
        told = broadcast_json(_look(config, manifest) if context.rank == 0 else None)
        return Growth(told["ancestors"], statistics_from_json(told["statistics"]) if told["statistics"] else None)

    def allows(self, config: RunConfig, manifest: DataSet, digest: str) -> None:
        """Raise ForeignCheckpointError if a run that has seen the data of this digest cannot go on with these."""
        if digest == manifest.digest or (config.data.follow and digest in self.ancestors):
            return
        said = f"run {config.name} was trained on data with digest {digest[:12]}, and {manifest.url} has "
        if digest in self.ancestors:
            raise ForeignCheckpointError(
                f"{said}grown since: go on with what it was by data.url={self.ancestors[digest]}, or with all of it by "
                "data.follow=true"
            )
        raise ForeignCheckpointError(f"{said}{manifest.digest[:12]}: the data changed; give the run another name")


def _look(config: RunConfig, manifest: DataSet) -> dict[str, object]:
    meta = recorded(config.run_dir)
    other, moved = meta.get("data_digest", manifest.digest) != manifest.digest, meta.get("progress", {}).get("moves")
    ancestors: dict[str, str] = {}
    if other and isinstance(manifest, Manifest):
        try:
            ancestors = ancestors_of(manifest)
        except (ManifestError, OSError) as error:
            logger.warning("earlier versions of %s are not known: %s", manifest.url, error)
    return {"ancestors": ancestors, "statistics": meta["statistics"] if moved or (other and ancestors) else None}


def version_of(manifest: DataSet) -> int:
    """Number of a data set's version; 1 of one that has not grown, and of a mixture."""
    lineage = manifest.lineage if isinstance(manifest, Manifest) else None
    return 1 if lineage is None else lineage.number


def move(session: Session, tracker: Tracker, progress: Progress, checkpoint: Checkpoint) -> None:
    """From the checkpoint's data to the newer version, said in the log and in the run's tag `dataset.moved`."""
    before, manifest = checkpoint.meta["data_digest"], session.manifest
    left = f"; {progress.offset} samples of epoch {progress.epoch} had been taken, the rest of it is left out"
    words = (
        f"moved at step {progress.step} from data {before[:12]} to {manifest.digest[:12]}, version "
        f"{version_of(manifest)} of {manifest.url}{left if progress.offset else ''}"
    )
    progress.move(before, manifest.digest)
    tracker.set_tags({"dataset.moved": words})
    if session.context.rank == 0:
        logger.info("%s", words)
