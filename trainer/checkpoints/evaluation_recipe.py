"""The recipe of a checkpoint, turned into an evaluation of it."""

from __future__ import annotations

from typing import Any

from trainer.checkpoints.checkpoint import Checkpoint
from trainer.checkpoints.pieces import CheckpointError
from trainer.config.run_config import RunConfig


def evaluation_config(
    checkpoint: Checkpoint,
    data_url: str | None = None,
    part: str = "test",
    drop: list[str] | None = None,
    **wishes: Any,
) -> RunConfig:
    """The recipe that a checkpoint was trained with, turned into an evaluation of it. Raises CheckpointError.

    Args:
        wishes: further fields of the evaluation section.
    """
    tree = dict(checkpoint.meta["config"])
    tree["job"] = "evaluate"
    of = checkpoint.meta["config"]["job"]
    tree["evaluation"] = {"checkpoint": checkpoint.url, "of": of, "part": part, "drop": drop or [], **wishes}
    if data_url is not None and tree["data"].get("mixture"):
        raise CheckpointError(
            f"{checkpoint.path} was trained on a mixture: instead of --data give data.mixture.NAME.url=... for "
            f"{' or '.join(tree['data']['mixture'])}"
        )
    if data_url is not None:
        tree["data"] = {**tree["data"], "url": data_url}
    return RunConfig.of(tree)
