"""Runs as Ray jobs: submitted, followed, stopped with a checkpoint, found again by the run's name.

A job is one attempt at a run. Its metadata holds the run's name, so `stop NAME` needs no id, and submitting a name
again continues that run: the job is new, the run's folder and its MLflow run are the same.
"""

from __future__ import annotations

import asyncio
import http.client
import logging
import os
import re
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any

from data_shards.paths import absolute_path
from launch.cluster.token import MAKE_ONE, answer_to_strangers, bring_token
from launch.errors import UsageError
from launch.versions import ROOT
from trainer.config.errors import RecipeError
from trainer.config.paths import refuse_relative_paths
from trainer.config.recipe import load_recipe
from trainer.config.run_config import RunConfig, check_parallel
from trainer.models.job_type import job_type

logger = logging.getLogger(__name__)

DASHBOARD = "http://127.0.0.1:8265"
LIVE = ("PENDING", "RUNNING")
POLL_SECONDS = 0.5
RECONNECTS = 20


@dataclass(frozen=True)
class Job:
    """One job. Times are seconds since the epoch; `exit_code` is the command's, None while it runs or if it was
    stopped."""

    id: str
    run: str
    status: str
    exit_code: int | None
    started: float
    ended: float | None
    metadata: dict[str, str]
    message: str

    @property
    def live(self) -> bool:
        return self.status in LIVE

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def dashboard_url(address: str | None) -> str:
    """Where jobs are submitted: the address given, else Ray's own setting, else a dashboard (or its tunnel) here."""
    url = address or os.environ.get("RAY_API_SERVER_ADDRESS") or DASHBOARD
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"{url!r} is not the URL of a Ray dashboard: give http://HOST:8265, or a tunnel to it")
    return url.rstrip("/")


class JobBoard:
    """The jobs of one cluster.

    Raises ConnectionError if nobody answers, UsageError if the token is missing or wrong, or none is asked for.
    """

    def __init__(self, address: str | None) -> None:
        self.url = dashboard_url(address)
        bring_token()
        self._refuse_open()
        from ray.exceptions import AuthenticationError
        from ray.job_submission import JobSubmissionClient

        for chatty in ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
            logging.getLogger(chatty).setLevel(logging.ERROR)  # they list every file that is left out
        try:
            self._client = JobSubmissionClient(self.url)
        except AuthenticationError:
            raise UsageError(f"{self.url} refuses this token: it is not the cluster's. {MAKE_ONE}") from None

    def _refuse_open(self) -> None:
        try:
            answer = answer_to_strangers(f"{self.url}/api/jobs/")
        except (OSError, http.client.HTTPException) as error:
            raise ConnectionError(
                f"no Ray dashboard at {self.url} ({error}): is the cluster up, and the tunnel "
                "(`ray dashboard ray_cluster.yaml`, kubectl port-forward or ssh -L 8265:127.0.0.1:8265 HEAD)?"
            ) from None
        if answer.lists_jobs and os.environ.get("RAY_AUTH_MODE") != "disabled":
            raise UsageError(
                f"the Ray at {self.url} asks for no token, so whoever reaches it runs commands on all of its machines: "
                "start it with RAY_AUTH_MODE=token, or say RAY_AUTH_MODE=disabled here if that is meant"
            )

    def all(self) -> list[Job]:
        """Every submitted job, the newest first."""
        found = [_job(details) for details in self._client.list_jobs() if details.submission_id]
        return sorted(found, key=lambda job: job.started, reverse=True)

    def find(self, name: str) -> Job:
        """The job with this id, else the newest one of the run with this name. Raises UsageError."""
        jobs = self.all()
        by_id = [job for job in jobs if job.id == name]
        matches = by_id or [job for job in jobs if job.run == name]
        if matches:
            return matches[0]
        known = sorted({job.run for job in jobs})
        near = get_close_matches(name, known, n=1)
        hint = f", did you mean {near[0]}?" if near else f"; there are {', '.join(known) or 'none'}"
        raise UsageError(f"no job of a run {name!r} at {self.url}{hint}")

    def submit(self, recipe: str, overrides: Sequence[str]) -> Job:
        """Check a run as far as that goes from here, and submit it.

        Raises RecipeError; UsageError if a job of this run is at work, for two would write the same checkpoints.
        """
        config = load_recipe(recipe, overrides)
        check_parallel(config)
        refuse_relative_paths(config)
        earlier = [job for job in self.all() if job.run == config.name]
        if any(job.live for job in earlier):
            raise UsageError(
                f"run {config.name} is at work as job {earlier[0].id}: follow it with `python -m launch logs "
                f"{config.name} --follow`, or stop it first with `python -m launch stop {config.name}`"
            )
        words = [_shipped(recipe), *overrides]
        if not any(word.startswith("name=") for word in overrides):
            words.append(f"name={config.name}")  # the job's clock is another
        job_id = f"{config.name}-{1 + max([len(earlier), *(_number(job) for job in earlier)])}"
        self.start(
            [job_type(config.job).verb, *words],
            job_id,
            job_environment(config),
            job_metadata(config, recipe),
        )
        logger.info("job %s of run %s submitted to %s", job_id, config.name, self.url)
        return self.find(job_id)

    def start(self, words: Sequence[str], job_id: str, env: dict[str, str], metadata: dict[str, str]) -> None:
        """Submit `python -m launch WORDS`, with this project's code."""
        self._client.submit_job(
            entrypoint=shlex.join(["python", "-m", "launch", *words]),
            submission_id=job_id,
            runtime_env={"working_dir": str(ROOT), "env_vars": env},
            metadata=metadata,
        )

    def follow(self, job: Job, write: Callable[[str], Any]) -> Job:
        """Hand on what the job prints until it ends, through lost connections too; returns the job as it ended."""
        asyncio.run(self._tail(job.id, write))
        return self.wait(job, timeout=60)

    async def _tail(self, job_id: str, write: Callable[[str], Any]) -> None:
        from aiohttp import ClientError

        written, failures = 0, 0
        while failures <= RECONNECTS:
            seen = 0  # each connection starts at the beginning
            try:
                async for text in self._client.tail_job_logs(job_id):
                    seen += len(text)
                    if seen > written:
                        write(text[written - seen :])
                        written, failures = seen, 0
                return
            except (OSError, RuntimeError, ClientError) as error:
                failures += 1
                logger.debug("the connection to %s broke (%s)", self.url, error)
                await asyncio.sleep(POLL_SECONDS)
        raise ConnectionError(f"lost the connection to {self.url}; job {job_id} goes on without it")

    def stop(self, job: Job, timeout: float) -> Job:
        """Ask a job to write a checkpoint and end, and wait until it has. Raises TimeoutError, UsageError."""
        if not job.live:
            raise UsageError(f"job {job.id} of run {job.run} does not run: it is {job.status}")
        self._client.stop_job(job.id)
        return self.wait(job, timeout)

    def wait(self, job: Job, timeout: float) -> Job:
        """The job, once it has ended. Raises TimeoutError."""
        deadline = time.monotonic() + timeout
        while job.live:
            try:
                job = _job(self._client.get_job_info(job.id))
            except OSError:  # a tunnel may break for a moment
                logger.debug("the connection to %s broke", self.url)
            if job.live and time.monotonic() > deadline:
                raise TimeoutError(f"job {job.id} has not ended within {timeout:g} s; it is {job.status}")
            if job.live:
                time.sleep(POLL_SECONDS)
        return job

    def logs(self, job: Job) -> str:
        """All that the job has printed."""
        return self._client.get_job_logs(job.id)


def job_environment(config: RunConfig) -> dict[str, str]:
    """Environment of a job: how long Ray waits for its checkpoint when it is stopped. Never secrets: jobs are public
    to everyone with the token."""
    return {"RAY_JOB_STOP_WAIT_TIME_S": str(int(config.cluster.stop_timeout_s)), "RAY_USAGE_STATS_ENABLED": "0"}


def job_metadata(config: RunConfig, recipe: str) -> dict[str, str]:
    """What a job says about itself, also in Ray's dashboard. The MLflow run carries the same as tags."""
    mlflow = config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or ""
    return {
        "run": config.name,
        "recipe": recipe,
        "run_dir": config.run_dir,
        "workers": str(config.parallel.workers),
        "expert_parallel": str(config.parallel.expert_parallel),
        **({"mlflow": mlflow, "mlflow_experiment": config.tracking.experiment} if config.tracking.mlflow else {}),
    }


def when(seconds: float | None) -> str:
    """A time for people, in UTC."""
    return "" if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"


def _shipped(recipe: str) -> str:
    """The recipe as the job sees it. Raises RecipeError for a file that does not travel with the code."""
    if not recipe.endswith((".yaml", ".yml")) and "/" not in recipe:
        return recipe
    path = absolute_path(recipe).resolve()
    if not path.is_relative_to(ROOT):
        raise RecipeError(
            f"recipe file {path} is outside of {ROOT}, and a job takes along only what is in there: copy it there"
        )
    return str(path.relative_to(ROOT))


def _number(job: Job) -> int:
    """The last part of an id like `wide-3`; 0 for an id of another making."""
    _, _, number = job.id.rpartition("-")
    return int(number) if number.isdigit() else 0


def _job(details: Any) -> Job:
    metadata = dict(details.metadata or {})
    named = re.search(r"(?:^|\s)name=([\w.-]+)", details.entrypoint)  # submitted with Ray's own command
    ended = details.end_time / 1000 if details.end_time else None
    return Job(
        id=details.submission_id,
        run=metadata.get("run") or (named[1] if named else details.submission_id),
        status=str(details.status.value),
        exit_code=details.driver_exit_code,
        started=(details.start_time or 0) / 1000,
        ended=ended,
        metadata=metadata,
        message=" ".join((details.message or "").split())[:300],
    )
