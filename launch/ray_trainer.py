"""A RunConfig on Ray Train: a group of workers, restarts, stopping, and a truthful end in MLflow.

Ray places the workers and makes their process group; each then runs `trainer.jobs.job.run` like under any other
launcher. After a failure Ray starts a new group, and the job finds its newest checkpoint in the run's folder by
itself, so nothing about checkpoints passes through Ray.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

import fsspec
import psutil
import pyarrow.fs
import ray
import ray.train
import ray.train.torch
import torch
from ray.train import FailureConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from launch.cluster import gpus_wanted, ray_session
from launch.controller import FailurePolicy, RightSize, first_line
from launch.desk import POLL_SECONDS, Attempt, DeskHandler, Failure, WishWatch, open_desk, print_lines
from launch.environment import job_tags
from launch.errors import RunFailedError, UsageError
from launch.nodes import Sizes, fitting_workers, placement_problem, staying_nodes
from launch.watch import NodeWatch
from trainer.config.paths import is_local
from trainer.config.run_config import RunConfig
from trainer.tracking.mlflow_run import close_run, open_run
from trainer.tracking.tracker import Status
from trainer.worker.context import StopOnSignal
from trainer.worker.provenance import source_tags
from trainer.worker.start_clock import StartClock

logger = logging.getLogger(__name__)

# Another attempt would end the same way: wrong input or a wrong program, not a lost worker.
HOPELESS = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError, ImportError)


# Ray's own resizing kills workers; ours asks them first.
NEVER_S = 1e9


class RegroupError(RuntimeError):
    """Not a failure: a worker has written its checkpoint and ends, so that a group of another size can start."""


class RayContext:
    """A worker of Ray Train, as `trainer.worker.context.Context`."""

    def __init__(self, start: StartClock, wishes: WishWatch | None) -> None:
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.local_rank = context.get_local_rank()
        device = ray.train.torch.get_device()
        assert isinstance(device, torch.device)
        self.device = device
        self.start = start
        self._wishes = wishes

    def should_stop(self) -> bool:
        """Whether the driver asked for it; only rank 0 hears it, the loop tells the others."""
        return self._wishes is not None and self._wishes.should_end()

    def should_save(self) -> bool:
        """Whether the driver asked for it, because a node is about to leave."""
        return self._wishes is not None and self._wishes.should_save()


def train_on_ray(config: RunConfig, debug: bool = False) -> dict[str, Any]:
    """Run the job on Ray and return rank 0's result; every path in `config` must be absolute.

    SIGTERM or SIGINT asks the workers for a checkpoint and an end; the result's `status` is then "stopped".

    Raises:
        RunFailedError: with the worker's own sentence if it raised one.
    """
    tags = {**source_tags(), **job_tags()}
    tracked = config.job != "evaluate"
    status: Status = "FAILED"
    with StopOnSignal(gentle=False):
        run_id = open_run(config.tracking, config.name, tags, config.run_dir) if tracked else None
        config.tracking.run_id = run_id
        if run_id is not None:
            logger.info("run %s is MLflow run %s at %s", config.name, run_id, config.tracking.uri)
        try:
            # Ray replaces signal handlers when it starts, so those for the run itself are set after that.
            with ray_session(config, debug), StopOnSignal() as signals:
                result = _Fit(config, tags, signals).wait()
            stopped = result["status"] == "stopped"
            status = "KILLED" if stopped else "FINISHED"
            return {**result, "signal": signals.received} if stopped else result
        except (KeyboardInterrupt, RunFailedError) as error:
            if isinstance(error, KeyboardInterrupt) or error.stopped_by:
                status = "KILLED"
            raise
        finally:
            if tracked:
                close_run(config.tracking, run_id, status)


class _Fit:
    """`TorchTrainer.fit` in a thread, so that the main one can print, and pass on a signal, meanwhile."""

    def __init__(self, config: RunConfig, tags: dict[str, str], signals: StopOnSignal) -> None:
        self._signals = signals
        self._desk = open_desk()
        sizes = _sizes(config)
        _check_nodes(config, sizes)
        self._trainer = _torch_trainer(config, tags, self._desk, sizes)
        self._nodes = NodeWatch(self._desk, sizes)
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
            print_lines(self._desk)
            if self._signals.received is not None and not asked:
                ray.get(self._desk.ask.remote("stop", f"signal {self._signals.received}"))
                asked = True
            self._nodes.look()
        print_lines(self._desk)
        if self._error is not None:
            failure: Failure | None = ray.get(self._desk.worst_failure.remote())
            text = failure.text if failure is not None else first_line(self._error)
            raise RunFailedError(text, self._signals.received) from self._error
        result: dict[str, Any] = self._result.return_value
        return result


def _needs(config: RunConfig) -> dict[str, float]:
    """Resources of one worker."""
    return {"CPU": config.cluster.cpus_per_worker, **({"GPU": 1.0} if gpus_wanted(config) else {})}


def _sizes(config: RunConfig) -> Sizes:
    parallel, experts = config.parallel, config.model.moe.experts
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


def _torch_trainer(config: RunConfig, tags: dict[str, str], desk: Any, sizes: Sizes) -> TorchTrainer:
    resize = [RightSize(desk, sizes)] if sizes.elastic else []
    fs, root = fsspec.url_to_fs(config.run_dir)
    # Ray keeps a few small files of its own beside ours.
    place: dict[str, Any] = {"storage_path": root}
    if not is_local(config.run_dir):
        place["storage_filesystem"] = pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs))
    return TorchTrainer(
        _work,  # type: ignore[arg-type]  # what it returns becomes Result.return_value
        train_loop_config={"config": config.model_dump(mode="json"), "tags": tags, "desk": desk},
        torch_config=TorchConfig(timeout_s=int(config.parallel.timeout_s)),
        scaling_config=_scaling(sizes),
        run_config=ray.train.RunConfig(
            name="ray",
            failure_config=FailureConfig(max_failures=-1),  # FailurePolicy counts
            callbacks=[FailurePolicy(desk, config.cluster.max_failures), *resize],  # type: ignore[list-item]
            **place,
        ),
    )


def _work(settings: dict[str, Any]) -> dict[str, Any] | None:
    """What each worker runs. Imports the trainer here: the driver may be on a machine without GPUs or DeepSpeed."""
    desk, rank = settings["desk"], ray.train.get_context().get_world_rank()
    handler = DeskHandler(desk, rank)
    watch = WishWatch(desk) if rank == 0 else None
    try:
        start = _begin(desk) if rank == 0 else StartClock()
        world, node = ray.train.get_context().get_world_size(), ray.get_runtime_context().get_node_id()
        desk.sit.remote(rank, world, node)
        from trainer.jobs.job import run

        start.mark("imports")
        result = run(RunConfig.model_validate(settings["config"]), RayContext(start, watch), settings["tags"])
        if result["status"] == "stopped" and ray.get(desk.end.remote()) == "regroup":
            raise RegroupError(f"rank {rank} ends at step {result['step']} with a checkpoint")
        return result if rank == 0 else None
    except RegroupError:
        raise
    except Exception as error:
        ray.get(desk.fail.remote(Failure(rank, isinstance(error, HOPELESS), _text(error))))
        raise
    finally:
        if watch is not None:
            watch.close()
        handler.settle()


def _begin(desk: Any) -> StartClock:
    """Rank 0: the clock of this attempt, with what has already passed of it."""
    attempt: Attempt = ray.get(desk.begin_attempt.remote())
    if attempt.number > 1:
        logger.warning("attempt %d: continuing from the newest checkpoint", attempt.number)
    born = psutil.Process().create_time()
    clock = StartClock(attempt.failed_at or born, attempt.number)
    clock.mark("teardown", at=born)
    clock.mark("process")
    return clock


def _text(error: BaseException) -> str:
    """What an exception says; with its type in front unless it was written for people."""
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError | RunFailedError) and text else f"{type(error).__name__}: {text}"
