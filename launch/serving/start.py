"""The verb `serve`: a model of a run or an export on Ray Serve, until it is stopped."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_shards.paths import absolute_path, absolute_url, is_local
from launch.cluster.environment import prepare_for_ray, ray_address
from launch.errors import UsageError
from launch.output.tables import people, print_json_line
from launch.serving.follow import APP, Copies, Follower
from launch.serving.limits import Limits
from launch.serving.source import Newest, Version, newest, put
from trainer.config.run_config import RunConfig

logger = logging.getLogger(__name__)

ONGOING = 256  # requests that a copy has at a time
# Ray Serve kills a proxy that is not up within 5 s, which a busy machine misses; of a local Ray, a cluster has its own.
PATIENCE = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60", "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "30"}
MOST_WAITING = 1_000  # requests that wait for one; further ones are answered 503 at once


@dataclass(frozen=True)
class Service:
    """What is served, where, and how.

    Attributes:
        model: folder or URL of a run, a checkpoint, or an export; or a registered model, models:/NAME.
        export: where versions are written; None: a folder that ends with the command.
        follow_s: seconds after which it is looked whether the model has a newer version; 0: never.
        token: file with the token; None: one is made, and printed.
        certificate, key: files of TLS; None: none.
    """

    model: str
    host: str = "127.0.0.1"
    port: int = 8000
    replicas: int = 1
    wait_ms: float = 5.0
    batch_records: int = 64
    limits: Limits = field(default_factory=Limits)
    token: str | None = None
    certificate: str | None = None
    key: str | None = None
    export: str | None = None
    follow_s: float = 0.0


def serve_until_stopped(service: Service, debug: bool = False) -> None:
    """Serve; the last line of stdout says where, and with which token, once it answers. Ctrl-C ends it.

    Raises:
        UsageError: Ray Serve is not installed, a port is taken, or files do not fit. CheckpointError: no such model.
    """
    token = _token(service.token)
    _check(service)
    with _place(service) as place:
        found = newest(service.model)
        _check_follow(service, found)
        version = put(found, place)
        config = _recipe(version.url, service.replicas)
        prepare_for_ray(config)
        for name, seconds in PATIENCE.items():
            os.environ.setdefault(name, seconds)
        try:
            from ray import serve
        except ImportError as error:
            raise UsageError(f"serving needs an extra ({error}): pip install 'fleximoe[serve]'") from None
        from launch.cluster.ray_session import gpus_wanted, ray_session

        with ray_session(config, debug):
            if ray_address(config) and is_local(version.url):
                logger.warning("%s must be seen from every node: give --export URL of a storage that all see", place)
            board = _deploy(serve, service, version, token, gpus_wanted(config), debug)
            where = f"{'https' if service.certificate else 'http'}://{service.host}:{service.port}"
            people.print(f"serving {version.name} at {where}; every request needs the token", markup=False)
            told = {"token": token if service.token is None else None, "model": version.url, "version": version.name}
            print_json_line({"url": where, **told})
            try:
                _until_stopped(service, Follower(service.model, place, found, version, Copies(serve, board)))
            finally:
                serve.shutdown()


def _deploy(serve: Any, service: Service, version: Version, token: str, gpu: bool, debug: bool) -> Any:
    """Start door and copies; the board that says which version they answer by."""
    import ray

    from launch.serving.door import Door
    from launch.serving.replica import Board, Replica

    http: dict[str, Any] = {"host": service.host, "port": service.port}
    if service.certificate:
        http |= {"ssl_certfile": service.certificate, "ssl_keyfile": service.key}
    level = "INFO" if debug else "ERROR"
    serve.start(http_options=http, logging_config={"log_level": level, "enable_access_log": False})
    board = ray.remote(Board).options(num_cpus=0).remote(version)
    copies = serve.deployment(Replica).options(
        num_replicas=service.replicas,
        max_ongoing_requests=ONGOING,
        max_queued_requests=MOST_WAITING,
        ray_actor_options={"num_cpus": 0.5, "num_gpus": 1 if gpu else 0},
    )
    # It takes more than waits behind it, so that it is the door that says so when there is too much.
    door = serve.deployment(Door).options(
        max_ongoing_requests=ONGOING * service.replicas + 2 * MOST_WAITING, ray_actor_options={"num_cpus": 0}
    )
    gather = service.batch_records, service.wait_ms, "cuda" if gpu else "cpu"
    bound = door.bind(copies.bind(board, service.limits, *gather), token, service.limits)
    serve.run(bound, name=APP, route_prefix="/")
    return board


@contextmanager
def _place(service: Service) -> Iterator[str]:
    """Where versions lie."""
    if service.export:
        yield absolute_url(service.export)
        return
    with tempfile.TemporaryDirectory(prefix="fleximoe-served-") as folder:
        yield folder


def _recipe(url: str, replicas: int) -> RunConfig:
    """The model's own recipe, for what it says of the cluster."""
    from trainer.config.recipe import apply_overrides
    from trainer.inference.exported import export_recipe

    changes = [f"parallel.workers={replicas}", "parallel.expert_parallel=1", "cluster.cpus_per_worker=1"]
    return apply_overrides(export_recipe(url), changes)


def _token(file: str | None) -> str:
    if file is None:
        return secrets.token_urlsafe(32)
    path = Path(absolute_path(file))
    if not path.is_file():
        raise UsageError(f"--token-file {path}: there is no such file")
    token = path.read_text(encoding="utf-8").strip()
    if len(token) < 16:
        raise UsageError(f"--token-file {path} holds {len(token)} characters, and a token has at least 16")
    return token


def _check(service: Service) -> None:
    """Raises UsageError for what would only fail in a replica, or silently."""
    if (service.certificate is None) != (service.key is None):
        raise UsageError("TLS needs two files: --certificate FILE and --key FILE")
    for file in (service.certificate, service.key):
        if file is not None and not Path(file).is_file():
            raise UsageError(f"{file}: there is no such file")
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((service.host, service.port))
        except OSError as error:
            raise UsageError(
                f"cannot listen on {service.host}:{service.port} ({error.strerror}): give another --port"
            ) from None


def _check_follow(service: Service, found: Newest | Version) -> None:
    if service.follow_s and isinstance(found, Version):
        raise UsageError(
            f"--follow: {service.model} is an export, which stays as it is; follow a run, or models:/NAME of MLflow"
        )


def _until_stopped(service: Service, follower: Follower) -> None:
    """Until SIGINT or SIGTERM; meanwhile the newest version is looked for."""
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    while not stopped.wait(service.follow_s or None):
        follower.look()
