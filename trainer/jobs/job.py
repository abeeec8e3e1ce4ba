"""Where every launcher ends: one job, on every rank, with the same arguments.

`run` is called on every rank. Rank 0's answer is what the command prints as its last line; it is also written to
`result.json` in the run's folder.
"""

from __future__ import annotations

import time
from typing import Any

from trainer.config.run_config import RunConfig
from trainer.jobs.evaluate import evaluate
from trainer.jobs.train import train
from trainer.run_folder import RESULT, write_json
from trainer.worker.context import Context


def run(config: RunConfig, context: Context, tags: dict[str, str] | None = None) -> dict[str, Any]:
    """Do the job of `config` on this rank. Collective.

    Returns (on every rank): `run_id`, `checkpoint`, `metrics`, `samples`, `seconds`, `status`.

    Raises:
        ValueError: a wrong recipe, data set or checkpoint, in a sentence. FloatingPointError: training diverged.
    """
    start = time.perf_counter()
    result = evaluate(config, context) if config.evaluates else train(config, context, tags or {})
    result["seconds"] = round(time.perf_counter() - start, 2)
    if context.rank == 0 and not config.evaluates:
        write_json(config.run_dir, RESULT, result)
    return result
