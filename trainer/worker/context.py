"""What a worker needs from whatever started it: who am I, where do I compute, should I stop.

Training code knows only the `Context` protocol. This file holds the two versions that need no cluster; the one for Ray
is in `launch.ray_train.worker`, so that nothing here imports Ray.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from types import FrameType
from typing import Protocol, runtime_checkable

import torch

from trainer.worker.start_clock import StartClock


@runtime_checkable
class Context(Protocol):
    """The launcher's side of a worker."""

    rank: int
    world: int
    local_rank: int
    device: torch.device
    start: StartClock
    """Runs until the first step."""

    def should_stop(self) -> bool:
        """Whether this rank was asked to write a checkpoint and return.

        It is cheap, local and not collective: ranks may learn of it at different steps, so the loop must combine
        their answers (any rank -> all ranks) before it acts on one.
        """
        ...

    def should_save(self) -> bool:
        """Whether a checkpoint is wanted now, as a node may soon be gone. Asking grants it; else as `should_stop`."""
        ...


class StopOnSignal:
    """Turns the first SIGTERM or SIGINT into a flag; the second one acts as usual, so nobody is locked in.

    While `gentle` is False, because nothing runs yet that could look at the flag, a signal raises KeyboardInterrupt
    with its number. A context manager, because the handlers that were there before must come back. Works in the main
    thread only, which is where Python delivers signals.
    """

    signals = (signal.SIGTERM, signal.SIGINT)

    def __init__(self, gentle: bool = True, doing: str = "finishing this step and writing a checkpoint") -> None:
        self.gentle, self.doing = gentle, doing
        self.received: int | None = None
        self._previous: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> StopOnSignal:
        for number in self.signals:
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()
        if not self.gentle:
            raise KeyboardInterrupt(number)
        os.write(2, f"signal {number}: {self.doing}\n".encode())

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}


class SingleContext:
    """One process, no launcher: notebooks, tests, evaluation on a laptop."""

    def __init__(self, device: torch.device | str | None = None, stop: StopOnSignal | None = None) -> None:
        self.rank, self.world, self.local_rank = 0, 1, 0
        self.device = torch.device(device) if device is not None else default_device(0)
        self.start = StartClock()
        self._stop = stop

    def should_stop(self) -> bool:
        """Whether a signal asked for it."""
        return self._stop is not None and self._stop.received is not None

    def should_save(self) -> bool:
        """Nobody announces here that a host will leave."""
        return False


class TorchrunContext(SingleContext):
    """A worker started by `torchrun`, which describes the group in RANK, WORLD_SIZE and LOCAL_RANK."""

    def __init__(self, stop: StopOnSignal | None = None, environ: Mapping[str, str] = os.environ) -> None:
        missing = [name for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK") if name not in environ]
        if missing:
            raise ValueError(
                f"{', '.join(missing)} not set: start workers with `torchrun --nproc-per-node N -m trainer RECIPE`"
            )
        local_rank = int(environ["LOCAL_RANK"])
        super().__init__(default_device(local_rank), stop)
        self.rank, self.world, self.local_rank = int(environ["RANK"]), int(environ["WORLD_SIZE"]), local_rank


def default_device(local_rank: int) -> torch.device:
    """The GPU of this local rank where there are GPUs, else the CPU. Raises ValueError when ranks outnumber GPUs."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise ValueError(
            f"local rank {local_rank} has no GPU: this host has {torch.cuda.device_count()}; start fewer workers on it"
        )
    return torch.device("cuda", local_rank)
