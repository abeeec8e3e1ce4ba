"""Under load a version is switched, and a copy is killed, and no request is lost."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import fleximoe
from benchmarks.served import Client, processes, serving
from tests.browser import open_browser
from tests.launch.api.test_portable import patterns
from tests.launch.api.ward import SMALL, notes, stays, vitals
from tests.launch.commands import environment, wait_until
from tests.launch.serving.test_page import asked, enter, until
from tests.ports import free_port

pytest.importorskip("grpc_reflection", reason="the extra `serve` is not installed")
pytestmark = [pytest.mark.ray, pytest.mark.together, pytest.mark.long]

CLIENTS = 8


class Load:
    """Clients that ask one record after the other, until the block is left."""

    def __init__(self, client: Client) -> None:
        self._client, self._stopped = client, threading.Event()
        self.answers: list[tuple[int, Any, int]] = []  # status, JSON, which record

    def ask(self, number: int) -> None:
        own, plain = self._client.again(), patterns()
        while not self._stopped.is_set():
            which = (number + len(self.answers)) % len(plain)
            status, said = own.ask("/predict", plain[which])
            self.answers.append((status, said, which))

    @contextmanager
    def going(self) -> Iterator[None]:
        threads = [threading.Thread(target=self.ask, args=(number,)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            for thread in threads:
                thread.join(120)

    def versions(self) -> list[str]:
        return [said["version"] for status, said, _ in self.answers if status == 200]


@pytest.fixture(scope="module")
def wards(tmp_path_factory):
    """A data set, and what makes a run on it that is registered as a version of `wards`."""
    place = tmp_path_factory.mktemp("switched")
    data = fleximoe.pack(records=stays(), vitals=vitals(), notes=notes(), tasks="died", out=place / "ward")
    uri = f"sqlite:///{place}/mlflow.db"

    def fit(seed: int) -> Any:
        training = {**SMALL["training"], "epochs": 1, "storage": place / "runs", "seed": seed}
        tracking = {"uri": uri, "register_as": "wards", "flush_seconds": 1}
        settings = {**SMALL, "training": training, "tracking": tracking}
        return fleximoe.fit(data, **settings, name=f"seed{seed}", progress=False)

    return fit, uri


def logits(run: Any) -> list[float]:
    run.export(f"{run.url}/out")
    model = fleximoe.load(f"{run.url}/out")
    return [float(model.rows([plain])["died.logits"][0]) for plain in patterns()]


def test_a_newer_version_is_switched_to_under_load_and_no_request_is_lost(wards, tmp_path):
    fit, uri = wards
    first = fit(0)
    env = environment(MLFLOW_TRACKING_URI=uri)
    with serving("models:/wards", free_port(), "--follow", "1", "--replicas", "2", env=env) as client:
        load = Load(client)
        with load.going():
            wait_until(lambda: len(load.answers) > 50, "answers of version 1", 120)
            second = fit(1)
            wait_until(lambda: "wards/2" in load.versions(), "an answer of version 2", 120)
            wait_until(lambda: load.versions()[-40:] == ["wards/2"] * 40, "answers of version 2 alone", 120)
            count = len(load.answers)
            wait_until(lambda: len(load.answers) > count + 100, "more answers", 120)
        assert {status for status, _, _ in load.answers} == {200}
        assert set(load.versions()) == {"wards/1", "wards/2"} and set(load.versions()[count:]) == {"wards/2"}
        wanted = {"wards/1": logits(first), "wards/2": logits(second)}
        assert np.abs(np.subtract(*wanted.values())).min() > 1e-4  # the two can be told apart
        for _, said, which in load.answers:
            assert abs(said["predictions"][0]["died.logits"] - wanted[said["version"]][which]) < 1e-5
        assert client.ask("/schema")[1]["version"] == "wards/2"
        with open_browser(tmp_path) as browser:
            page = browser.open(f"{client.url}/")
            enter(page, client.token)
            until(page, "!$('inside').hidden")
            drawn = asked(page)
            _, said = client.ask("/predict", client.ask("/schema")[1]["example"])
            chance = said["predictions"][0]["died.probability"]
            assert f"with a chance of {100 * max(chance, 1 - chance):.1f} %" in drawn and page.problems == []
            assert "statements on the test part" in drawn and "on the vitals" not in page.problems


def test_a_copy_that_is_killed_costs_nobody_an_answer(wards):
    fit, uri = wards
    run = fit(0)
    with serving(run.url, free_port(), "--replicas", "2", env=environment(MLFLOW_TRACKING_URI=uri)) as client:
        load = Load(client)
        with load.going():
            wait_until(lambda: len(load.answers) > 50, "answers", 120)
            copies = processes(client.process or 0, ":Replica")
            assert len(copies) == 2
            os.kill(copies[0], signal.SIGKILL)
            count = len(load.answers)
            wait_until(lambda: len(load.answers) > count + 200, "answers after the kill", 120)
        assert Counter(status for status, _, _ in load.answers) == {200: len(load.answers)}
        wait_until(lambda: "fleximoe_copies 2" in client.ask("/metrics")[1], "another copy", 120)
        assert json.dumps(load.answers)  # all of them are whole
