"""Where the doctor goes: this machine, a Ray that can be joined, or a cluster behind its dashboard.

A laptop reaches a cluster by its dashboard only. There the doctor is sent as a job, which is also the best proof that
jobs work; what it finds inside comes back as JSON.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Sequence
from typing import Any

from data_shards.paths import absolute_url
from launch.cluster.environment import SETTINGS, in_submitted_job
from launch.cluster.job_board import JobBoard
from launch.cluster.token import token_source
from launch.doctor import mlflow_server, storage
from launch.doctor.facts import gather
from launch.doctor.findings import Finding, worst
from launch.doctor.machine import judge_machine, token
from launch.doctor.open_ports import ask_dashboard
from launch.doctor.targets import Wanted
from trainer.config.paths import absolute_uri


def examine_all(cluster: str | None, wanted: Wanted) -> Iterator[Finding]:
    """Every finding, this machine's first."""
    cluster = cluster or os.environ.get("RAY_ADDRESS") or os.environ.get("RAY_API_SERVER_ADDRESS")
    if not in_submitted_job():
        yield from _here(wanted, cluster is None)
    if cluster is None:
        text = "neither --cluster nor RAY_ADDRESS nor RAY_API_SERVER_ADDRESS is set: `train` starts a local Ray"
        yield Finding("Ray", "ok", text)
    elif cluster.startswith(("http://", "https://")):
        yield from _behind_dashboard(cluster.rstrip("/"), wanted)
    else:
        yield from _joined(cluster, wanted)


def wanted(storage: str | None, mlflow: str | None) -> Wanted:
    """With absolute paths, and MLflow's own setting as the default."""
    uri = mlflow or os.environ.get("MLFLOW_TRACKING_URI")
    return Wanted(absolute_url(storage) if storage else None, absolute_uri(uri) if uri else None)


def _here(wanted: Wanted, alone: bool) -> Iterator[Finding]:
    yield from judge_machine(gather(wanted.folders()))
    yield from token(alone)
    if alone and wanted.storage:
        yield storage.judge(wanted.storage, storage.use(wanted.storage, ""), "")
    if alone and wanted.mlflow:
        yield mlflow_server.judge(wanted.mlflow, mlflow_server.reach(wanted.mlflow), "", False)


def _joined(address: str, wanted: Wanted) -> Iterator[Finding]:
    os.environ.update(SETTINGS)
    if token_source() is not None:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    from launch.cluster.ray_session import connected
    from launch.doctor.cluster import examine

    try:
        with connected(address):
            yield from examine(wanted)
    except ConnectionError as error:
        yield Finding("Ray", "fail", str(error), "is it running? `ray status --address ADDRESS` on its head tells more")


def _behind_dashboard(url: str, wanted: Wanted) -> Iterator[Finding]:
    doors = ask_dashboard(url)
    yield from doors
    if any(finding.check == "Ray" for finding in doors):
        return  # nobody there
    if worst(doors) == "fail":
        os.environ["RAY_AUTH_MODE"] = "disabled"  # open, as has been said; the rest is worth knowing too
    try:
        board = JobBoard(url)
        said = _as_job(board, wanted.arguments())
    except (ValueError, ConnectionError, RuntimeError, TimeoutError) as error:
        yield Finding("jobs", "fail", " ".join(str(error).split())[:500], "see `python -m launch list`")
        return
    yield Finding("jobs", "ok", "a job was submitted and ran")
    for finding in said:
        yield Finding(**_known(finding))


def _as_job(board: JobBoard, arguments: Sequence[str], timeout: float = 600.0) -> list[dict[str, Any]]:
    """Send the doctor as a job, and return its findings. Raises RuntimeError if it comes back without any."""
    job_id = f"doctor-{secrets.token_hex(4)}"
    board.start(["doctor", "--json", *arguments], job_id, {"RAY_USAGE_STATS_ENABLED": "0"}, {"run": "doctor"})
    job = board.wait(board.find(job_id), timeout)
    log = board.logs(job)
    for line in reversed(log.splitlines()):
        if line.startswith('{"state"'):
            findings: list[dict[str, Any]] = json.loads(line)["findings"]
            return findings
    raise RuntimeError(f"job {job_id} ended as {job.status}: {job.message} {log[-300:]}")


def _known(finding: dict[str, Any]) -> dict[str, Any]:
    return {key: finding[key] for key in Finding.__dataclass_fields__ if key in finding}
