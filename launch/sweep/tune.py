"""The trials of a sweep on Ray Tune: as many at once as there are resources, an early end for those that are behind."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import tempfile
from collections.abc import Container
from typing import TYPE_CHECKING, Any

import ray
from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from data_shards.errors import LeaseDoubtError, LeaseLostError
from data_shards.lease.record import Parent
from launch.cluster.ray_session import gpus_wanted, ray_session
from launch.sweep.trial import failure_of, mark_pruned, run_trial, was_pruned
from trainer.config.run_config import RunConfig
from trainer.run_folder import stored_result, stored_run
from trainer.tracking.mlflow_run import close_run, deliver_lines
from trainer.worker.context import StopOnSignal

if TYPE_CHECKING:
    from data_shards.lease.lease import Lease
    from launch.sweep.definition import Sweep

logger = logging.getLogger("fleximoe")

LONGEST = 100_000  # evaluations: trials end by their own recipe


def tune_trials(sweep: Sweep, lease: Lease, debug: bool) -> tuple[dict[int, str], int | None]:
    """Run all trials that have not ended yet, on behalf of the sweep's lease; once that is lost they end.

    Returns:
        The errors of the trials that failed, by number, and the signal that ended the sweep early, if one did.
    """
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # our runs log for themselves
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # its own would end a sweep as if it were complete
    os.environ.setdefault("TUNE_WARN_SLOW_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "60")
    # Ray replaces signal handlers when it starts, so ours come after that.
    with (
        ray_session(sweep.config, debug),
        tempfile.TemporaryDirectory(prefix="tune_") as folder,
        StopOnSignal(doing="ending the trials; the same command continues from their checkpoints") as signals,
    ):
        watcher = _Watcher(sweep, lease, signals)
        # Trials are processes of their own, which find this Ray by its address.
        address = ray.get_runtime_context().gcs_address
        settings = [
            {
                "number": trial.number,
                "config": run.model_dump(mode="json"),
                "metric": sweep.metric,
                "address": address,
                "under": lease.parent.to_json(),
            }
            for trial, run in zip(sweep.trials, sweep.runs, strict=True)
        ]
        tuner = tune.Tuner(
            tune.with_resources(_trial, needs(sweep.config)),
            param_space={"run": tune.grid_search(settings)},
            tune_config=tune.TuneConfig(
                scheduler=_scheduler(sweep), max_concurrent_trials=_at_once(sweep.config), reuse_actors=False
            ),
            # What Tune keeps of its own is never read again: a sweep continues from its runs.
            run_config=tune.RunConfig(name="tune", storage_path=folder, callbacks=[watcher], verbose=0),
        )
        tuner.fit()
    # Only now, as their processes are gone.
    if not lease.lost:
        _deliver_stopped(sweep, watcher.stopped)
        if signals.received is not None:
            _close_cut_off(sweep, watcher.failures)
    return watcher.failures, signals.received


def _trial(settings: dict[str, Any]) -> None:
    """What Tune calls for each trial, in a process of its own."""
    run = settings["run"]
    config, under = RunConfig.of(run["config"]), Parent.from_json(run["under"])
    for number, (step, value) in enumerate(run_trial(config, run["metric"], run["address"], under), start=1):
        tune.report({"score": value, "evaluation": number, "step": step})


def needs(config: RunConfig) -> dict[str, float]:
    """What Tune sets aside for a trial: what its worker takes, or of several nearly nothing: Ray places them later."""
    if config.parallel.workers > 1:
        return {"memory": 1}  # a byte: Tune refuses a request for nothing, and any share of a core would lack a worker
    return {"CPU": config.cluster.cpus_per_worker, **({"GPU": 1} if gpus_wanted(config) else {})}


def _at_once(config: RunConfig) -> int | None:
    """How many trials of several workers fit on the cluster together; None: resources alone decide."""
    if config.parallel.workers == 1:
        return None
    per_worker = {"CPU": config.cluster.cpus_per_worker, **({"GPU": 1.0} if gpus_wanted(config) else {})}
    # Tune asks for nothing on their behalf, and trials that each hold part of their workers would wait for ever.
    there = ray.cluster_resources()
    rooms = [there.get(name, 0.0) / (amount * config.parallel.workers) for name, amount in per_worker.items()]
    return max(1, int(min(rooms)))


def _scheduler(sweep: Sweep) -> TrialScheduler:
    if not sweep.space.stops_early:
        return FIFOScheduler()
    return ASHAScheduler(
        time_attr="evaluation",
        metric="score",
        mode=sweep.mode,
        grace_period=sweep.space.grace,
        reduction_factor=sweep.space.reduction,
        max_t=LONGEST,
    )


class _Watcher(tune.Callback):
    """In the driver: says how trials end, remembers those that were stopped, and passes a signal on to Tune."""

    def __init__(self, sweep: Sweep, lease: Lease, signals: StopOnSignal) -> None:
        self._sweep, self._lease, self._signals, self._told = sweep, lease, signals, False
        self.failures, self.stopped, self._ended = dict[int, str](), set[int](), 0

    def __getstate__(self) -> dict[str, Any]:
        """Tune stores a copy that is never read; it would have no lease."""
        return {key: value for key, value in self.__dict__.items() if key != "_lease"}

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        """Often: Tune ends all trials on SIGUSR1."""
        if self._cut_off() and not self._told:
            self._told = True
            signal.raise_signal(signal.SIGUSR1)

    def _cut_off(self) -> bool:
        """Whether trials end because the sweep does."""
        return self._signals.received is not None or self._lost()

    def _lost(self) -> bool:
        """Whether the sweep's name is another process's by now. While its storage is away that is not known."""
        with contextlib.suppress(LeaseLostError, LeaseDoubtError):
            try:
                self._lease.check()
            except LeaseDoubtError:  # this process was frozen, or the storage was away
                self._lease.confirm()
        return self._lease.lost

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Finished by itself, or stopped by the scheduler; one that a signal cut off may go on another time."""
        number = trial.config["run"]["number"]
        run, last = self._sweep.runs[number], trial.last_result
        finished = stored_result(run.run_dir) is not None
        if self._cut_off() and not finished:
            return  # `_close_cut_off` deals with it once Tune has returned
        # Tune has ended a trial that was not done: it was behind. Said in its folder, so that it stays ended.
        if not finished and not was_pruned(run):
            mark_pruned(run, int(last.get("evaluation", 0)))
            self.stopped.add(number)
        score = f"{self._sweep.metric} {last['score']:.4f}" if "score" in last else "no evaluation"
        self._say(number, f"{'finished' if finished else 'stopped early'} at step {last.get('step')}, {score}")

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Failed: the others go on. A trial that was cut off did not fail."""
        if self._cut_off():
            return
        number = trial.config["run"]["number"]
        text = failure_of(self._sweep.runs[number]) or "its process died"
        self.failures[number] = text
        self._say(number, f"failed: {text}")

    def _say(self, number: int, what: str) -> None:
        self._ended += 1
        trial, total = self._sweep.trials[number], len(self._sweep.trials)
        logger.info("%d/%d trial %d (%s, seed %d) %s", self._ended, total, number, trial.variant, trial.seed, what)


def _deliver_stopped(sweep: Sweep, stopped: Container[int]) -> None:
    """MLflow gets what trials that were behind could not deliver: they were killed, and never go on.

    `stopped`: those of this go; of an earlier go, which may have been killed itself, those that MLflow never saw.
    """
    for number, run in enumerate(sweep.runs):
        if number in stopped or (was_pruned(run) and _run_id(run) is None):
            deliver_lines(run.tracking, run.name, run.run_dir, "KILLED")


def _close_cut_off(sweep: Sweep, failures: dict[int, str]) -> None:
    """MLflow shows the runs that a signal ended as killed, until they go on."""
    for number, run in enumerate(sweep.runs):
        if number not in failures and _run_id(run) and stored_result(run.run_dir) is None and not was_pruned(run):
            close_run(run.tracking, _run_id(run), "KILLED")


def _run_id(run: RunConfig) -> str | None:
    stored = stored_run(run.run_dir)
    return stored["run_id"] if stored else None
