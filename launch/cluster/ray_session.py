"""The Ray that a command runs on: one that is there, or a local one that lives as long as the command.

A local Ray is closed to strangers: every connection needs a token that only this process and its children know.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import tempfile
import time
from collections.abc import Iterator

import ray

from launch.cluster.environment import in_submitted_job, ray_address
from launch.versions import ROOT
from trainer.config.run_config import RunConfig

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def ray_session(config: RunConfig, debug: bool = False) -> Iterator[None]:
    """Connect to `cluster.address` or RAY_ADDRESS, else start a local Ray and stop it at the end.

    Raises ConnectionError, with what to do, if the given Ray cannot be reached.
    """
    address = ray_address(config)
    started = time.monotonic()
    with connected(address, debug) if address else _local(config, debug):
        what = f"connected to Ray at {address}" if address else "started a local Ray"
        logger.info("%s in %.1f s", what, time.monotonic() - started)
        yield


def gpus_wanted(config: RunConfig) -> bool:
    """Whether each worker takes a GPU; `auto` looks at what the connected cluster has."""
    if config.cluster.use_gpu == "auto":
        return ray.cluster_resources().get("GPU", 0) > 0
    return config.cluster.use_gpu


@contextlib.contextmanager
def connected(address: str, debug: bool = False) -> Iterator[None]:
    """Connect to the Ray at `address` ("auto": the one of this machine). Raises ConnectionError."""
    # Inside a submitted job Ray has unpacked the code everywhere already; else it is shipped, less .rayignore.
    environment = None if in_submitted_job() else {"working_dir": str(ROOT)}
    _refuse_dead(address)
    try:
        ray.init(address=address, runtime_env=environment, log_to_driver=debug, logging_level=_level(debug))
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise _no_ray(address, error) from error
    try:
        yield
    finally:
        ray.shutdown()


def _refuse_dead(address: str) -> None:
    """Ray waits for minutes for an address where nobody answers; a connection attempt knows within seconds."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return  # "auto" and the like: Ray knows where to look
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise _no_ray(address, error) from error


def _no_ray(address: str, error: Exception) -> ConnectionError:
    return ConnectionError(
        f"no Ray at {address} ({_first_line(error)}): check the address and the token, or leave cluster.address and "
        "RAY_ADDRESS empty for a local Ray"
    )


@contextlib.contextmanager
def _local(config: RunConfig, debug: bool) -> Iterator[None]:
    with tempfile.TemporaryDirectory(prefix="ray_", ignore_cleanup_errors=True) as folder:
        try:
            try:
                _start(config, debug, f"{folder}/1")
            except Exception as error:  # Ray raises many types here, some with whole logs in them
                # Ray gives its parts 30 s, which a machine at its limits can miss once.
                logger.warning("a local Ray did not start (%s); trying once more", _first_line(error))
                ray.shutdown()
                try:
                    _start(config, debug, f"{folder}/2")
                except Exception as again:
                    raise ConnectionError(
                        f"a local Ray did not start, twice ({_first_line(again)}): this machine is too busy for it; "
                        "end what else runs, or give the address of a Ray that runs (cluster.address, RAY_ADDRESS)"
                    ) from again
            yield
        finally:
            ray.shutdown()


def _start(config: RunConfig, debug: bool, folder: str) -> None:
    needed = math.ceil(config.parallel.workers * config.cluster.cpus_per_worker)
    ray.init(
        address="local",
        num_cpus=max(os.cpu_count() or 1, needed),
        include_dashboard=False,
        log_to_driver=debug,
        logging_level=_level(debug),
        object_store_memory=config.cluster.object_store_mb << 20,
        _temp_dir=folder,
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:200]


def _level(debug: bool) -> int:
    return logging.INFO if debug else logging.ERROR
