"""Run a function on several ranks of one machine: processes, gloo over the loopback interface, first error wins.

Ranks are forked from a helper process that has imported what `preload.py` names and done nothing else, so a rank
starts in a fraction of a second and inherits no threads. The function must be importable (module level) and return
plain values or NumPy arrays.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Collection
from datetime import timedelta
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "GLOO_SOCKET_IFNAME": "lo", "PYTHONWARNINGS": "ignore"}


_server_pid: dict[str, int] = {}


class RankError(AssertionError):
    """A rank failed; the message carries its number and traceback."""


def run_ranks(
    fn: Callable[..., Any], world: int, *args: Any, timeout_s: float = 120.0, lost: Collection[int] = ()
) -> list[Any]:
    """Call `fn(rank, world, *args)` on `world` ranks with a gloo process group; results in rank order.

    `lost` ranks are not waited for, as they are killed or stopped on the way; their results are None.

    Raises:
        RankError: with rank and traceback of the first rank that failed, died, or did not finish in `timeout_s`
        seconds.
    """
    context = multiprocessing.get_context("forkserver")
    # Port 0 and kept open: a number that is looked for first may be somebody else's by the time it is used.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    pipes, processes = [], []
    with _environment(ENVIRONMENT):
        _own_fork_server()
        for rank in range(world):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_entry, args=(rank, world, store.port, timeout_s, sender, fn, args))
            process.start()
            sender.close()
            pipes.append(receiver)
            processes.append(process)
    try:
        return _collect(pipes, timeout_s, lost)
    finally:
        for process in processes:
            process.kill()
            process.join()


def _own_fork_server() -> None:
    """A process has one server to fork from. If a data loader of an earlier test started it, it has imported nothing of
    ours and every rank would do so again: end it, start ours, and let later loaders use that."""
    server = forkserver._forkserver  # type: ignore[attr-defined]
    if server._forkserver_pid is None or server._forkserver_pid != _server_pid.get("ours"):
        server._stop()
        forkserver.set_forkserver_preload(["tests.preload"])
        forkserver.ensure_running()
        _server_pid["ours"] = server._forkserver_pid


def _collect(pipes: list[Connection], timeout_s: float, lost: Collection[int]) -> list[Any]:
    deadline = time.monotonic() + timeout_s
    results: dict[int, Any] = dict.fromkeys(lost)
    while len(results) < len(pipes):
        pending = [pipe for rank, pipe in enumerate(pipes) if rank not in results]
        ready = wait(pending, timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            missing = [rank for rank in range(len(pipes)) if rank not in results]
            raise RankError(f"ranks {missing} of {len(pipes)} did not finish within {timeout_s:g} s")
        for pipe in ready:
            rank = pipes.index(pipe)  # type: ignore[arg-type]
            try:
                ok, value = pipe.recv()  # type: ignore[union-attr]
            except EOFError:
                raise RankError(f"rank {rank} of {len(pipes)} died without a word") from None
            if not ok:
                raise RankError(f"rank {rank} of {len(pipes)} failed:\n{value}")
            results[rank] = value
    return [results[rank] for rank in range(len(pipes))]


def _entry(
    rank: int, world: int, port: int, timeout_s: float, sender: Connection, fn: Callable[..., Any], args: Any
) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    patience = timedelta(seconds=timeout_s)
    try:
        store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=patience)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=patience)
        sender.send((True, fn(rank, world, *args)))
    except BaseException:
        sender.send((False, traceback.format_exc()))
    # Nothing is torn down, for a peer may still be inside a collective: the parent ends us, or its death does.
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join(timeout_s)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Any:
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
