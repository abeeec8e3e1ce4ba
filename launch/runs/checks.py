"""What can be refused before workers start."""

from __future__ import annotations

from data_shards import ManifestError, open_data
from trainer.config.run_config import RunConfig, check_parallel
from trainer.models.job_type import job_type


def check(config: RunConfig) -> None:
    """Find in a moment what would otherwise be found after the workers have started.

    Raises RecipeError for parallel degrees that do not fit, ValueError for data that cannot be opened or have more
    modalities than there are pools of experts for.
    """
    check_parallel(config)
    try:
        manifest = open_data(config.data)
    except ManifestError as error:
        raise ManifestError(f"{error}; data sets are made with python -m launch pack") from None
    if not config.evaluates:
        manifest.column(config.data.split, "train")
        for task in config.training.tasks or []:
            manifest.schema.task(task)
        job_type(config.job).check(config, manifest.schema)
