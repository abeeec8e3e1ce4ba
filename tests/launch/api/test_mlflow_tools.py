"""MLflow's own tools take a registered model like any other: `mlflow models serve`, `mlflow.models.evaluate`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

import fleximoe
from benchmarks.equal_answers import SMALL, compared, made_up, plain, thinned
from tests.launch.commands import ROOT, environment, wait_until
from tests.ports import free_port

pytestmark = [pytest.mark.together, pytest.mark.long]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("tools")


@pytest.fixture(scope="module")
def uri(place):
    return f"sqlite:///{place}/mlflow.db"


@pytest.fixture(scope="module")
def run(place, uri):
    records, schema = made_up(160)
    data = fleximoe.pack(records, schema=schema, out=place / "data")
    training = {**SMALL["training"], "storage": place / "runs"}
    tracking = {"uri": uri, "register_as": "made_up", "flush_seconds": 1}
    return fleximoe.fit(data, **{**SMALL, "training": training, "tracking": tracking}, name="tools", progress=False)


def thin() -> list[Any]:
    records, schema = made_up(3)
    return thinned(records, schema.modality_names)


def frame(records: list[Any]) -> pd.DataFrame:
    _, schema = made_up(0)
    rows = [plain(record, schema) for record in records]
    return pd.DataFrame({name: [row.get(name) for row in rows] for name in ("key", *schema.modality_names)})


def test_mlflow_serves_what_the_run_predicts(run, uri, tmp_path):
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/made_up/1", "--env-manager", "local"]
    command += ["--port", str(port), "--host", "127.0.0.1"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # it runs `uvicorn`
    env = environment(MLFLOW_TRACKING_URI=uri, PATH=path, PYTHONPATH=str(ROOT))
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=env, start_new_session=True)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def up() -> bool:
        assert process.poll() is None, (tmp_path / "log").read_text()
        try:
            return bool(opener.open(f"http://127.0.0.1:{port}/ping", timeout=10).status == 200)
        except OSError:
            return False

    try:
        wait_until(up, "MLflow's server answers", 240)
        body = json.dumps({"dataframe_split": json.loads(frame(thin()).to_json(orient="split", index=False))})
        head = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{port}/invocations", body.encode(), head)
        said = pd.DataFrame(json.loads(opener.open(request, timeout=240).read())["predictions"])
    finally:
        os.killpg(process.pid, signal.SIGTERM)  # its server is a process of its own
        process.wait(60)
    wanted = run.predict(thin()).set_index("key").loc[said["key"]]
    assert len(said) == len(thin()) > 150
    np.testing.assert_allclose(said["ill.logits"], wanted["ill.logits"], atol=1e-5)
    np.testing.assert_allclose(np.stack(said["ward.logits"]), np.stack(wanted["ward.logits"]), atol=1e-5)


def test_mlflow_measures_what_we_measure(run, uri):
    tested = run.predict(part="test").set_index("key")
    records = [record for record in made_up(160)[0] if record.key in tested.index]
    data = frame(records).assign(ill=[record.targets["ill"] for record in records])
    assert 0 < data["ill"].sum() < len(data)
    mlflow.set_tracking_uri(uri)
    try:
        model = mlflow.pyfunc.load_model("models:/made_up/1")
        # Lists in cells are no columns that MLflow's evaluator could describe, so it takes what the model says.
        said = model.predict(data.drop(columns="ill")).assign(ill=data["ill"])
        about = {"targets": "ill", "evaluators": "default", "extra_metrics": []}
        shown = said[["ill", "ill.prediction", "ill.probability"]]
        by_class = mlflow.models.evaluate(data=shown, predictions="ill.prediction", model_type="classifier", **about)
        by_chance = mlflow.models.evaluate(data=shown, predictions="ill.probability", model_type="regressor", **about)
    finally:
        mlflow.set_tracking_uri(None)
    metrics = run.evaluate("test")
    assert by_class.metrics["accuracy_score"] == pytest.approx(metrics["test/ill/accuracy"], abs=1e-6)
    assert by_class.metrics["f1_score"] == pytest.approx(metrics["test/ill/f1"], abs=1e-6)
    assert by_chance.metrics["mean_squared_error"] == pytest.approx(metrics["test/ill/brier"], abs=1e-6)
    auroc = roc_auc_score(said["ill"], said["ill.probability"])
    assert auroc == pytest.approx(metrics["test/ill/auroc"], abs=1e-6)


@pytest.mark.ray
def test_all_that_opens_a_model_says_the_same_whatever_is_missing(tmp_path):
    records, schema = made_up(60)
    data = fleximoe.pack(records, schema=schema, out=tmp_path / "data")
    found = compared("made_up", data, records[:5], schema, tmp_path)
    assert list(found) == ["command predict", "fleximoe.load", "MLflow pyfunc", "serve"]
    assert max(found.values()) <= 1e-5
