"""What can be refused before workers start."""

from __future__ import annotations

from data_shards import ManifestError, open_data
from trainer.config.run_config import RunConfig, check_parallel


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
    if config.job != "evaluate":
        manifest.column(config.data.split, "train")
        for task in config.training.tasks or []:
            manifest.schema.task(task)
        if config.job == "fusemoe" and config.model.moe.router == "disjoint":
            from parallel import expert_pools

            expert_pools(config.model.moe.experts, len(manifest.schema.modalities), config.model.moe.top_k)
