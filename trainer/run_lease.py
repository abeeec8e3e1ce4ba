"""The lease of a run's name: of its driver, of the rank 0 that writes on the driver's behalf, or of rank 0 alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from data_shards.errors import LeaseHeldError, LeaseLostError
from data_shards.lease.lease import BEATS, Guard, Lease, take
from data_shards.lease.record import Parent
from data_shards.lease.watch import Follower
from parallel import init_distributed
from trainer.config.run_config import RunConfig
from trainer.worker.collectives import broadcast_json
from trainer.worker.context import Context

_REFUSALS = {kind.__name__: kind for kind in (LeaseHeldError, LeaseLostError, OSError)}


def take_run(config: RunConfig, under: Parent | None = None) -> Lease:
    """The name of a run, or, on behalf of its driver, the right to write under it. Raises as `take`."""
    stem = "writer" if under is not None and under.place == config.run_dir else "owner"
    return take(
        config.run_dir,
        f"run {config.name}",
        "give this run another name=",
        lease_s=config.training.lease_s,
        stem=stem,
        under=under,
    )


@contextmanager
def held_run(config: RunConfig, context: Context, under: Parent | None) -> Iterator[Guard]:
    """The same for all ranks of a job, until its end: rank 0 takes it and looks at it, the others hear of it.

    Collective. Raises as `take`, on every rank.
    """
    with _held(config, context, lambda: take_run(config, under)) as guard:
        yield guard


@contextmanager
def held_results(config: RunConfig, context: Context, run_dir: str) -> Iterator[Guard]:
    """The right to add results to a run, which may itself be at work, for all ranks of a job. As `held_run`."""
    lease_s, advice = config.training.lease_s, "evaluate one after the other"

    def take_results() -> Lease:
        return take(run_dir, "adding results", advice, lease_s=lease_s, stem="results")

    with _held(config, context, take_results) as guard:
        yield guard


@contextmanager
def _held(config: RunConfig, context: Context, taken: Callable[[], Lease]) -> Iterator[Guard]:
    init_distributed(context.device, config.parallel.timeout_s)
    lease: Lease | None = None
    refusal: list[str] | None = None
    if context.rank == 0:
        try:
            lease = taken()
        except (LeaseHeldError, LeaseLostError, OSError) as error:
            kind = type(error).__name__
            refusal = [kind if kind in _REFUSALS else "OSError", str(error)]
    try:
        told = [refusal, lease.parent.to_json() if lease else None]
        refusal, held = broadcast_json(told)
        if refusal is not None:
            raise _REFUSALS[refusal[0]](refusal[1])
        yield lease or Follower(Parent.from_json(held), config.training.lease_s / BEATS)
    finally:
        if lease is not None:
            lease.release()
