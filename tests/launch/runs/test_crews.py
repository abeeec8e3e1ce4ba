"""Who works for a command on data: a Ray only where one is asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from data_shards.crew import Here, Processes
from launch.cluster import environment, ray_session
from launch.runs.crews import crew_at
from launch.runs.ray_crew import RayCrew
from trainer.config.run_config import RunConfig

JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"


@pytest.fixture
def addresses(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """What a Ray was looked for at; none is."""
    found = list[str | None]()

    @contextlib.contextmanager
    def session(config: RunConfig, debug: bool) -> Iterator[None]:
        found.append(environment.ray_address(config))
        yield

    monkeypatch.setattr(ray_session, "ray_session", session)
    monkeypatch.delenv(JOB, raising=False)
    for name in (*environment.SETTINGS, "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"):
        monkeypatch.setenv(name, "")  # put back what a session sets
    return found


def test_an_address_in_the_environment_asks_for_nothing(
    monkeypatch: pytest.MonkeyPatch, addresses: list[str | None]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with crew_at(None, 1, debug=False) as crew:
        assert isinstance(crew, Here)
    with crew_at(None, 2, debug=False) as crew:
        assert isinstance(crew, Processes) and crew.count == 2
    assert addresses == []


def test_an_address_or_a_submitted_job_does(monkeypatch: pytest.MonkeyPatch, addresses: list[str | None]) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with crew_at("10.0.0.2:6379", 3, debug=False) as crew:
        assert isinstance(crew, RayCrew) and crew.workers == 3
    monkeypatch.setenv(JOB, "{}")
    with crew_at(None, 0, debug=False) as crew:
        assert isinstance(crew, RayCrew) and crew.workers == 0
    assert addresses == ["10.0.0.2:6379", "10.0.0.1:6379"]
