"""Where every launcher ends: one job, on every rank, with the same arguments.

`run` is called on every rank. Rank 0's answer is what the command prints as its last line; it is also written to
`result.json` in the run's folder.
"""

from __future__ import annotations

import time
from typing import Any

from data_shards.lease.record import Parent
from parallel import init_distributed
from trainer.config.run_config import RunConfig
from trainer.jobs.evaluate import evaluate
from trainer.jobs.train import train
from trainer.run_folder import RESULT, write_json
from trainer.run_lease import held_run
from trainer.worker.collectives import named_failures
from trainer.worker.context import Context
from trainer.worker.heartbeat import beating


def run(
    config: RunConfig, context: Context, tags: dict[str, str] | None = None, under: Parent | None = None
) -> dict[str, Any]:
    """Do the job of `config` on this rank. Collective.

    A job that trains owns the run's name until it ends; `under` is the lease on whose behalf it does, if one is held.

    Returns (on every rank): `run_id`, `checkpoint`, `metrics`, `samples`, `seconds`, `status`; of training also
    `mlflow`, which says whether MLflow has the whole record.

    Raises:
        ValueError: a wrong recipe, data set or checkpoint, in a sentence. FloatingPointError: training diverged.
        LeaseHeldError: another process is at work on the run. LeaseLostError: it has taken the run over.
        PeerError: another rank died or hung.
    """
    start, timeout_s = time.perf_counter(), config.parallel.timeout_s
    init_distributed(context.device, timeout_s)
    with beating(timeout_s), named_failures(timeout_s):
        return _run(config, context, tags or {}, under, start)


def _run(
    config: RunConfig, context: Context, tags: dict[str, str], under: Parent | None, start: float
) -> dict[str, Any]:
    if config.evaluates:
        return _timed(evaluate(config, context), start)
    with held_run(config, context, under) as guard:
        result = _timed(train(config, context, tags, guard), start)
        if context.rank == 0:
            guard.confirm()
            write_json(config.run_dir, RESULT, result)
    return result


def _timed(result: dict[str, Any], start: float) -> dict[str, Any]:
    return {**result, "seconds": round(time.perf_counter() - start, 2)}
