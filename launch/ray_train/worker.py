"""What each worker of Ray Train runs."""

from __future__ import annotations

import logging
from typing import Any

import psutil
import ray
import ray.train
import ray.train.torch
import torch

from data_shards.lease.record import Parent
from launch.errors import RunFailedError
from launch.ray_train.mailbox import Attempt, Failure, MailboxHandler, WishWatch
from trainer.config.run_config import RunConfig
from trainer.worker.start_clock import StartClock

logger = logging.getLogger(__name__)


# Another attempt would end the same way: wrong input or a wrong program, not a lost worker.
HOPELESS = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError, ImportError)


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


def work(settings: dict[str, Any]) -> dict[str, Any] | None:
    """What each worker runs. Imports the trainer here: the driver may be on a machine without GPUs or DeepSpeed."""
    mailbox, rank = settings["mailbox"], ray.train.get_context().get_world_rank()
    handler = MailboxHandler(mailbox, rank)
    watch = WishWatch(mailbox) if rank == 0 else None
    try:
        start = _begin(mailbox) if rank == 0 else StartClock()
        world, node = ray.train.get_context().get_world_size(), ray.get_runtime_context().get_node_id()
        mailbox.arrive.remote(rank, world, node)
        from trainer.jobs.job import run

        start.mark("imports")
        under = Parent.from_json(settings["under"]) if settings["under"] else None
        result = run(RunConfig.of(settings["config"]), RayContext(start, watch), settings["tags"], under)
        if result["status"] == "stopped" and ray.get(mailbox.end.remote()) == "regroup":
            # An exception is what makes Ray start another group.
            raise RegroupError(f"rank {rank} ends at step {result['step']} with a checkpoint")
        return result if rank == 0 else None
    except RegroupError:  # no failure, so the mailbox is told of none
        raise
    except Exception as error:
        # Waited for: once this has been raised the process may be gone.
        ray.get(mailbox.fail.remote(Failure(rank, isinstance(error, HOPELESS), _text(error))))
        raise
    finally:
        if watch is not None:
            watch.close()
        handler.settle()


def _begin(mailbox: Any) -> StartClock:
    """Rank 0: the clock of this attempt, with what has already passed of it."""
    attempt: Attempt = ray.get(mailbox.begin_attempt.remote())
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
