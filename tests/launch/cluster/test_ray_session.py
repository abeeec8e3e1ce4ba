"""A local Ray that does not start: tried once more, and then one sentence."""

from __future__ import annotations

from typing import Any

import pytest

from launch.cluster import ray_session
from trainer.config.run_config import RunConfig

BUSY = "The current node timed out during startup.\nA log."


def test_a_ray_that_does_not_start_twice_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = RunConfig.of({"name": "run", "data": {"url": "nowhere"}})
    folders: list[str] = []

    def start(failures: int) -> Any:
        def call(config: RunConfig, debug: bool, folder: str) -> None:
            folders.append(folder)
            if len(folders) <= failures:
                raise Exception(BUSY)

        return call

    monkeypatch.setattr(ray_session, "_start", start(2))
    with pytest.raises(ConnectionError) as error, ray_session.ray_session(config):
        raise AssertionError("it has not started")
    assert str(error.value) == (
        "a local Ray did not start, twice (The current node timed out during startup.): this machine is too busy for "
        "it; end what else runs, or give the address of a Ray that runs (cluster.address, RAY_ADDRESS)"
    )
    assert [folder.rsplit("/", 1)[1] for folder in folders] == ["1", "2"]
    folders.clear()
    monkeypatch.setattr(ray_session, "_start", start(1))
    with ray_session.ray_session(config):
        assert len(folders) == 2, "the second one did"
