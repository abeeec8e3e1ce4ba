"""The environment that Ray reads, and the one it leaves. Imports no Ray: Ray reads its settings when it is imported."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path

from trainer.config.paths import absolute_paths, refuse_lost_tracking, refuse_relative_paths
from trainer.config.run_config import RunConfig

_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"

# An elastic run starts on what is there. If that turns out to be gone, it should look again soon.
ELASTIC_START_S = 20.0
# Read by Ray in this process; Ray Train hands its own on to the controller and the workers.
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how soon a dead worker is noticed
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_worker_niceness": "0",  # a local Ray would let every other program go first, by 15
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # the driver watches nodes itself, without a process for it
}


def ray_address(config: RunConfig) -> str | None:
    """The Ray to connect to; None for a local one."""
    return config.cluster.address or os.environ.get("RAY_ADDRESS")


def prepare_for_ray(config: RunConfig) -> None:
    """Call before the first `import ray`: it reads settings and token then, and never again.

    A local Ray is closed to strangers by a token that only this process and its children know. For another Ray the
    token is the user's own (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token), and is used if there is one.
    """
    os.environ.update(SETTINGS)
    patience = config.cluster.start_timeout_s
    if config.cluster.min_workers is not None:
        patience = min(patience, ELASTIC_START_S)
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(patience)
    if ray_address(config) is None:
        os.environ.update({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)})


def in_submitted_job() -> bool:
    """Whether this process was started by `ray job submit`."""
    return _JOB in os.environ


def job_tags() -> dict[str, str]:
    """Tags that link a run with its Ray job: the submission id, the job's name and its metadata."""
    metadata = json.loads(os.environ.get(_JOB, "{}")).get("metadata") or {}
    named = {"job_submission_id": "ray.submission_id", "job_name": "ray.job_name"}
    return {named.get(key, f"ray.metadata.{key}"): str(value) for key, value in metadata.items()}


def settle_paths(config: RunConfig) -> RunConfig:
    """The run with absolute paths. Raises RecipeError for what a submitted job would write where it vanishes."""
    if in_submitted_job():
        refuse_relative_paths(config)
        refuse_lost_tracking(config)
    return absolute_paths(config, Path.cwd())
