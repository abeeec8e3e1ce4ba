"""Keys of a recipe that hold a place, and the URI of an MLflow database."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from data_shards.errors import PathError
from trainer.config.errors import RecipeError
from trainer.config.paths import absolute_paths, absolute_uri, database_file, database_uri
from trainer.config.recipe import load_recipe


def test_the_key_of_a_wrong_place_is_named() -> None:
    for key in ("data.url", "training.storage"):
        with pytest.raises(RecipeError, match=rf"{key}: a file:// URL begins with the name of a machine, 'a'"):
            absolute_paths(load_recipe("digits", [f"{key}=file://a/b"]), Path("/root"))


def test_every_key_is_read_by_one_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    words = ["data.url=file:///d#1", "training.storage=~/runs", "data.cache_dir=cache", "name=x"]
    run = absolute_paths(load_recipe("digits", words), Path("/root"))
    assert (run.data.url, run.training.storage, run.data.cache_dir) == ("/d#1", "/home/me/runs", "/root/cache")
    assert run.tracking.uri == "sqlite:////home/me/mlflow.db" and run.tracking.spool == "/home/me/runs/x/mlflow_spool"
    assert absolute_paths(run, Path("/elsewhere")) == run, "settled once and for all"


@pytest.mark.parametrize("name", ["mlflow.db", "a b#c.db", "what?.db", "100%20.db"])
def test_the_uri_of_a_database_opens_that_very_file(name: str, tmp_path: Path) -> None:
    sqlalchemy = pytest.importorskip("sqlalchemy")  # what MLflow opens it with
    file = tmp_path / name
    sqlite3.connect(file).execute("create table mine (x)").connection.commit()
    uri = database_uri(file)
    assert database_file(uri) == file and absolute_uri(uri) == uri
    assert sqlalchemy.inspect(sqlalchemy.create_engine(uri)).get_table_names() == ["mine"]


def test_relative_databases_and_servers(tmp_path: Path) -> None:
    assert absolute_uri("sqlite:///x/m.db?timeout=5", tmp_path) == f"sqlite:///{tmp_path}/x/m.db?timeout=5"
    assert absolute_uri("http://head:5000", tmp_path) == "http://head:5000"
    assert database_file("http://head:5000") is None
    with pytest.raises(PathError, match="begins options"):
        absolute_uri("sqlite:///what?.db", tmp_path)
