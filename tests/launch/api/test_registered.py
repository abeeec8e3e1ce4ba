"""A registered version is a model that MLflow loads, and it predicts what `predict` does."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient

import fleximoe
from tests.launch.api.test_portable import patterns, records
from tests.launch.api.ward import SMALL

pytestmark = pytest.mark.together


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture(scope="module")
def registered(data, place, uri):
    """A run whose model is version 1 of `wards`."""
    settings = {
        **SMALL,
        "training": {**SMALL["training"], "epochs": 1, "storage": place / "registered"},
        "tracking": {"uri": uri, "register_as": "wards", "flush_seconds": 1},
    }
    return fleximoe.fit(data, **settings, name="kept", progress=False)


@pytest.fixture(scope="module")
def loaded(registered, uri):
    mlflow.set_tracking_uri(uri)
    yield mlflow.pyfunc.load_model("models:/wards/1")
    mlflow.set_tracking_uri(None)


def frame(plain: list[dict[str, Any]]) -> pd.DataFrame:
    """What a user has: a column a modality, None where it is absent."""
    names = ["key", "vitals", "numbers", "categories", "notes"]
    return pd.DataFrame({name: [fields.get(name) for fields in plain] for name in names})


def test_it_predicts_what_the_run_predicts_whatever_is_missing(registered, loaded):
    said, wanted = loaded.predict(frame(patterns())), registered.predict(records())
    assert said["key"].tolist() == wanted["key"].tolist() and len(said) == 15
    np.testing.assert_allclose(said["died.logits"], wanted["died.logits"], atol=1e-5)
    assert said["died.prediction"].tolist() == wanted["died.prediction"].tolist()
    assert said["died.logits"].round(6).nunique() > 10


def test_signature_and_example_are_there(loaded):
    inputs, outputs = loaded.metadata.signature.inputs, loaded.metadata.signature.outputs
    assert set(inputs.input_names()) == {"key", "vitals", "numbers", "categories", "notes"}
    assert not inputs.required_input_names()
    assert outputs.input_names()[:3] == ["record", "key", "died.prediction"]
    example = loaded.input_example
    assert example["vitals"][0]["channels"] == ["HR", "SpO2"]
    assert len(loaded.predict(example)) == 1 and 0 < loaded.predict(example)["died.probability"][0] < 1


def test_nothing_of_it_is_a_pickle(registered, uri):
    client = MlflowClient(uri)
    (version,) = client.search_model_versions("name = 'wards'")
    folder = Path(version.source.removeprefix("file://"))
    files = {str(Path(at) / name).removeprefix(f"{folder}/") for at, _, names in os.walk(folder) for name in names}
    assert {"MLmodel", "mlflow_code.py", "artifacts/export/model.safetensors"} <= files
    assert not [name for name in files if name.endswith((".pkl", ".pickle", ".pt", ".bin"))]
    assert "loader_module: mlflow.pyfunc.loaders.code_model" in (folder / "MLmodel").read_text()
    assert version.tags["uri"].startswith(f"{registered.url}/checkpoints/") and version.run_id == registered.mlflow_id


def test_a_column_that_is_no_modality_is_named(loaded):
    with pytest.raises(Exception, match="lists are not of one length"):
        loaded.predict(frame([{"key": "a", "vitals": {"times": [1.0], "channels": ["HR"], "values": []}}]))


def test_a_second_start_adds_no_version(registered, uri):
    from trainer.config.sections import TrackingConfig
    from trainer.tracking.mlflow_models import register_checkpoint

    client = MlflowClient(uri)
    (version,) = client.search_model_versions("name = 'wards'")
    config = TrackingConfig(uri=uri)
    about = {"uri": version.tags["uri"]}
    said = register_checkpoint(config, "wards", registered.mlflow_id, about, f"{registered.url}/registered")
    assert said == "wards version 1" and len(client.search_model_versions("name = 'wards'")) == 1
    assert (
        json.loads((Path(registered.url) / "registered" / "mlflow_form.json").read_text())["example"]["key"]
        == "example"
    )


@pytest.mark.long
def test_an_ensemble_is_a_version_too(registered, uri, place):
    beside: dict[str, Any] = {"training": {"storage": place / "registered"}}
    data = registered.recipe["data"]["url"]
    other = fleximoe.baseline(data, family="linear", name="beside", **beside, tracking={"mlflow": False})
    tracking = {"uri": uri, "register_as": "together", "flush_seconds": 1}
    both = fleximoe.ensemble([registered], blend=other, name="together", **beside, tracking=tracking)
    mlflow.set_tracking_uri(uri)
    said = mlflow.pyfunc.load_model("models:/together/1").predict(frame(patterns()))
    np.testing.assert_allclose(said["died.probability"], both.predict(records())["died.probability"], atol=1e-6)
