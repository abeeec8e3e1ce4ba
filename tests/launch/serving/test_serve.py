"""A model over HTTP: what `predict` says, in batches, for those who have the token; anything else is one sentence."""

from __future__ import annotations

import base64
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import fleximoe
from benchmarks.served import serving
from tests.launch.api.test_portable import patterns, records
from tests.launch.api.ward import SMALL, notes, stays, vitals
from tests.launch.commands import environment
from tests.ports import free_port

pytest.importorskip("grpc_reflection", reason="the extra `serve` is not installed")
pytestmark = [pytest.mark.ray, pytest.mark.together, pytest.mark.long]


@pytest.fixture(scope="module")
def ward(tmp_path_factory):
    place = tmp_path_factory.mktemp("served")
    data = fleximoe.pack(records=stays(), vitals=vitals(), notes=notes(), tasks="died", out=place / "ward")
    training = {**SMALL["training"], "epochs": 1, "storage": place / "runs"}
    return fleximoe.fit(data, **{**SMALL, "training": training}, name="ward", progress=False)


@pytest.fixture(scope="module")
def client(ward):
    with serving(
        ward.url, free_port(), "--batch-ms", "60", "--max-records", "40", "--max-mb", "1", env=environment()
    ) as found:
        yield found


def test_predictions_are_those_of_the_run_whatever_is_missing(client, ward):
    status, said = client.ask("/predict", {"records": patterns()})
    wanted = ward.predict(records())
    assert status == 200 and [row["key"] for row in said["predictions"]] == wanted["key"].tolist()
    np.testing.assert_allclose([row["died.logits"] for row in said["predictions"]], wanted["died.logits"], atol=1e-5)
    status, one = client.ask("/predict", patterns()[3])
    assert status == 200 and one["predictions"][0]["died.logits"] == pytest.approx(wanted["died.logits"][3], abs=1e-5)


def test_explained_are_the_modalities_that_are_there(client, ward):
    status, said = client.ask("/explain", [patterns()[-1]])
    share = said["predictions"][0]["died.modality_share"]
    assert status == 200 and sum(share.values()) == pytest.approx(1.0, abs=1e-4) and len(share) == 4


def test_requests_that_come_together_are_one_batch(client, ward):
    def batches() -> float:
        lines = client.ask("/metrics")[1].splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("fleximoe_batches_total"))

    before, wanted = batches(), ward.predict(records())["died.logits"].tolist()
    with ThreadPoolExecutor(15) as pool:
        said = list(pool.map(lambda fields: client.again().ask("/predict", fields), patterns()))
    assert [status for status, _ in said] == [200] * 15
    np.testing.assert_allclose([one["predictions"][0]["died.logits"] for _, one in said], wanted, atol=1e-5)
    assert batches() - before <= 5


def test_strangers_are_kept_out_and_health_is_open(client):
    assert client.ask("/predict", patterns()[0], token="no")[0] == 401
    status, said = client.ask("/schema", token="")
    assert status == 401 and said["error"].startswith("the token is missing or wrong")
    assert client.ask("/healthz", token="") == (200, {"status": "ok"})


def test_the_schema_says_what_to_send_and_its_example_is_taken(client):
    status, said = client.ask("/schema")
    forms = {own["name"]: own["form"] for own in said["modalities"]}
    assert status == 200 and forms["vitals"] == "an object of the lists times, channels and values"
    count = sum(said["calibration"]["tasks"]["died"]["count"])
    assert count == said["calibration"]["records"] > 0 and said["version"] == "ward-step-3"
    assert said["tasks"][0]["name"] == "died" and client.ask("/predict", said["example"])[0] == 200


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (b"{", 422, "the request is no JSON"),
        (b"[" * 100_000, 422, "the request is no JSON"),
        ([], 422, "the request holds no record"),
        ([1], 422, "record 0 is no object"),
        ([{"age": 4}], 422, "record 0 has an entry 'age', which is no modality"),
        ([{"key": "a", "numbers": [1]}], 422, "record a, modality numbers is 1 numbers, and 2 are wanted"),
        ([{"notes": {"times": [1], "values": [7]}}], 422, "value 0 is a number, and text is wanted"),
        ([{"vitals": {"times": [1], "channels": ["BP"], "values": [7]}}], 422, "there is no channel 'BP'"),
        ([{"vitals": {"times": [99], "channels": ["HR"], "values": [7]}}], 422, "record 0, modality vitals"),
        ([{}] * 41, 413, "the request holds 41 records, at most 40 are taken"),
        (base64.b64encode(bytes(1 << 20)), 413, "the request is larger than 1,048,576 bytes"),
    ],
)
def test_what_does_not_fit_is_one_sentence(client, body, status, sentence):
    found, said = client.ask("/predict", body)
    assert found == status and sentence in said["error"] and "\n" not in said["error"]
    assert client.ask("/healthz")[0] == 200


def test_paths_and_methods(client):
    assert client.ask("/nothing")[0] == 404 and client.ask("/predict")[0] == 405 and client.ask("/schema", {})[0] == 405
