"""A RunConfig on Ray Train: a group of workers, restarts, stopping, and a truthful end in MLflow.

Ray places the workers and makes their process group; each then runs `trainer.jobs.job.run` like under any other
launcher. After a failure Ray starts a new group, and the job finds its newest checkpoint in the run's folder by
itself, so nothing about checkpoints passes through Ray.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from typing import Any

import fsspec
import pyarrow.fs
import ray
import ray.train
import ray.train.torch
from ray.train import FailureConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from data_shards.errors import LeaseDoubtError
from data_shards.lease.lease import Lease
from data_shards.lease.record import Parent
from data_shards.paths import is_local
from launch.cluster.environment import job_tags
from launch.cluster.nodes import Sizes, fitting_workers, placement_problem, staying_nodes
from launch.cluster.ray_session import gpus_wanted, ray_session
from launch.errors import RunFailedError, UsageError
from launch.ray_train.controller import FailurePolicy, RightSize, first_line
from launch.ray_train.mailbox import POLL_SECONDS, Failure, open_mailbox, print_lines
from launch.ray_train.node_watch import NodeWatch
from launch.ray_train.worker import work
from trainer.config.run_config import RunConfig
from trainer.run_lease import take_run
from trainer.tracking.mlflow_run import close_run, open_run
from trainer.tracking.operations import Status
from trainer.worker.context import StopOnSignal
from trainer.worker.provenance import source_tags

logger = logging.getLogger(__name__)


# Ray's own resizing kills workers; ours asks them first.
NEVER_S = 1e9


def train_on_ray(config: RunConfig, debug: bool = False, under: Parent | None = None) -> dict[str, Any]:
    """Train on Ray and return rank 0's result; every path in `config` must be absolute.

    The driver owns the run's name from before the first write until the end, through all restarts of its workers; what
    they write they write on its behalf. SIGTERM or SIGINT asks the workers for a checkpoint and an end; the result's
    `status` is then "stopped".

    Args:
        under: the lease of the sweep that this is a trial of.

    Raises:
        LeaseHeldError: another process is at work on the run. LeaseLostError: it has taken the run over.
        RunFailedError: with the worker's own sentence if it raised one.
    """
    tags = {**source_tags(), **job_tags()}
    status: Status = "FAILED"
    with StopOnSignal(gentle=False), take_run(config, under) as lease:
        run_id = open_run(config.tracking, config.name, tags, config.run_dir)
        config.tracking.run_id = run_id
        if run_id is not None:
            logger.info("run %s is MLflow run %s at %s", config.name, run_id, config.tracking.uri)
        try:
            result = _fit(config, tags, debug, lease)
            status = "KILLED" if result["status"] == "stopped" else "FINISHED"
            return result
        except (KeyboardInterrupt, RunFailedError) as error:
            if isinstance(error, KeyboardInterrupt) or error.stopped_by:
                status = "KILLED"
            raise
        finally:
            if not lease.lost:
                close_run(config.tracking, run_id, status)


def evaluate_on_ray(config: RunConfig, debug: bool = False) -> dict[str, Any]:
    """Evaluate on Ray and return rank 0's result. Raises as `train_on_ray`, but owns no name."""
    with StopOnSignal(gentle=False):
        return _fit(config, {**source_tags(), **job_tags()}, debug, None)


def _fit(config: RunConfig, tags: dict[str, str], debug: bool, lease: Lease | None) -> dict[str, Any]:
    # Ray replaces signal handlers when it starts, so those for the run itself are set after that.
    with ray_session(config, debug), StopOnSignal() as signals:
        result = _Fit(config, tags, signals, lease).wait()
    return {**result, "signal": signals.received} if result["status"] == "stopped" else result


class _Fit:
    """`TorchTrainer.fit` in a thread, so that the main one can print, and pass on a signal, meanwhile."""

    def __init__(self, config: RunConfig, tags: dict[str, str], signals: StopOnSignal, lease: Lease | None) -> None:
        self._signals, self._lease = signals, lease
        self._mailbox = open_mailbox()
        sizes = _sizes(config)
        _check_nodes(config, sizes)
        self._trainer = _torch_trainer(config, tags, self._mailbox, sizes, lease)
        self._nodes = NodeWatch(self._mailbox, sizes)
        self._result: Any = None
        self._error: Exception | None = None

    def _run(self) -> None:
        try:
            self._result = self._trainer.fit()
        except Exception as error:  # raised again in the main thread
            self._error = error

    def wait(self) -> dict[str, Any]:
        thread = threading.Thread(target=self._run, name="fit", daemon=True)
        thread.start()
        asked = False
        while thread.is_alive():
            thread.join(POLL_SECONDS)
            print_lines(self._mailbox)
            if self._signals.received is not None and not asked:
                ray.get(self._mailbox.ask.remote("stop", f"signal {self._signals.received}"))
                asked = True
            self._nodes.look()
            self._check_lease()
        print_lines(self._mailbox)  # the last words
        self._check_lease()
        if self._error is not None:
            # What a worker said of itself; Ray's error says that a worker has failed.
            failure: Failure | None = ray.get(self._mailbox.worst_failure.remote())
            text = failure.text if failure is not None else first_line(self._error)
            raise RunFailedError(text, self._signals.received) from self._error
        result: dict[str, Any] = self._result.return_value
        return result

    def _check_lease(self) -> None:
        """Raises LeaseLostError: another driver has the run by now; leaving ends the workers."""
        with contextlib.suppress(LeaseDoubtError):
            if self._lease is not None:
                self._lease.check()


def _needs(config: RunConfig) -> dict[str, float]:
    """Resources of one worker."""
    return {"CPU": config.cluster.cpus_per_worker, **({"GPU": 1.0} if gpus_wanted(config) else {})}


def _sizes(config: RunConfig) -> Sizes:
    parallel, experts = config.parallel, config.model.moe.experts
    # The wanted degree first, then those that a smaller group may fall back to.
    degrees = [d for d in range(parallel.expert_parallel, 0, -1) if experts % d == 0]
    least = config.cluster.min_workers or parallel.workers
    return Sizes(_needs(config), least, parallel.workers, (1,) if parallel.experts_across_nodes else tuple(degrees))


def _check_nodes(config: RunConfig, sizes: Sizes) -> None:
    """Raises UsageError if the cluster's nodes cannot hold whole expert-parallel groups; elastic runs adapt.

    Warns of a database that is a file where there are several nodes.
    """
    fitting = [fitting_workers({name: node}, sizes.needs) for name, node in staying_nodes().items()]
    places = [count for count in fitting if count]
    problem = None if sizes.elastic else placement_problem(config.parallel, places)
    if problem:
        raise UsageError(problem)
    uri = config.tracking.uri or ""
    if config.tracking.mlflow and uri.startswith("sqlite:") and len(fitting) > 1:
        logger.warning(
            "MLflow at %s is a file, and this Ray has %d nodes: unless they share it, start a server "
            "(python -m launch ui --serve) and set tracking.uri=http://HOST:5000",
            uri,
            len(fitting),
        )


def _scaling(sizes: Sizes) -> ScalingConfig:
    workers: dict[str, Any] = {"num_workers": sizes.most}
    if sizes.elastic:
        workers = {"num_workers": (sizes.least, sizes.most), "elastic_resize_monitor_interval_s": NEVER_S}
    return ScalingConfig(use_gpu="GPU" in sizes.needs, resources_per_worker=dict(sizes.needs), **workers)


def _torch_trainer(
    config: RunConfig, tags: dict[str, str], mailbox: Any, sizes: Sizes, lease: Lease | None
) -> TorchTrainer:
    under = lease.parent.to_json() if lease is not None else None
    resize = [RightSize(mailbox, sizes)] if sizes.elastic else []
    fs, root = fsspec.url_to_fs(config.run_dir)
    # Ray keeps a few small files of its own beside ours.
    place: dict[str, Any] = {"storage_path": root}
    if not is_local(config.run_dir):
        place["storage_filesystem"] = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs))
    return TorchTrainer(
        work,  # type: ignore[arg-type]  # what it returns becomes Result.return_value
        train_loop_config={"config": config.model_dump(mode="json"), "tags": tags, "mailbox": mailbox, "under": under},
        torch_config=TorchConfig(timeout_s=int(config.parallel.timeout_s)),
        scaling_config=_scaling(sizes),
        run_config=ray.train.RunConfig(
            name="ray",
            failure_config=FailureConfig(max_failures=-1),  # FailurePolicy counts
            callbacks=[FailurePolicy(mailbox, config.cluster.max_failures), *resize],  # type: ignore[list-item]
            **place,
        ),
    )
