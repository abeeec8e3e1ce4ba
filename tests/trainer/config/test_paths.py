"""Keys of a recipe that hold a place, and the URI of an MLflow database."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from data_shards.errors import PathError
from trainer.config.errors import RecipeError
from trainer.config.paths import absolute_paths, absolute_uri, database_file, database_uri, refuse_relative_paths
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


def test_what_lies_on_this_machine_is_no_url() -> None:
    """A cache or a spool in a bucket were folders called s3: in the working folder."""
    for key in ("data.cache_dir", "tracking.spool"):
        with pytest.raises(RecipeError, match=f"{key}: 's3://bucket/x' is a URL"):
            absolute_paths(load_recipe("digits", [f"{key}=s3://bucket/x"]), Path("/root"))


def test_a_tower_is_a_folder_or_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "google" / "here").mkdir(parents=True)
    for typed, settled in (
        ("google/vit-base", "google/vit-base"),
        ("google/here", f"{tmp_path}/google/here"),
        ("./google/vit-base", f"{tmp_path}/google/vit-base"),
        ("~/towers/vit", f"{tmp_path}/home/towers/vit"),
        ("file:///towers/vit#1", "/towers/vit#1"),
        ("s3://bucket/runs/vit", "s3://bucket/runs/vit"),
    ):
        words = [f"mope.image.source={typed}", f"mope.text.tokenizer={typed}"]
        mope = absolute_paths(load_recipe("mope_easy_vqa", words), tmp_path).mope
        assert mope is not None and mope.image is not None and mope.text is not None
        assert (mope.image.source, mope.text.tokenizer) == (settled, settled)


def test_a_submitted_job_may_name_home_and_urls_but_nothing_relative() -> None:
    fine = ["data.url=file:///d#1", "training.storage=~nobody-here/runs"]  # whose home it is, the cluster knows
    refuse_relative_paths(load_recipe("digits", fine))
    with pytest.raises(RecipeError, match=r"^data.url must be absolute .* add data.url=\$PWD/d#1, on a cluster"):
        refuse_relative_paths(load_recipe("digits", [*fine, "data.url=d#1"]))
    with pytest.raises(RecipeError, match=r"^data.url: a file:// URL begins with"):
        refuse_relative_paths(load_recipe("digits", [*fine, "data.url=file://a/b"]))


@pytest.mark.parametrize("typed", ["/data/site #1", '"/data/site #1"', " /data/site #1 "])
def test_a_path_with_a_hash_is_an_override_like_any_other(typed: str) -> None:
    """YAML takes what follows ` #` for a remark: two folders were one, /data/site."""
    assert load_recipe("digits", [f"data.url={typed}"]).data.url == "/data/site #1"


def test_mlflow_own_setting_is_read_like_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///m.db")
    run = absolute_paths(load_recipe("digits", ["training.storage=s3://b/runs"]), Path("/root"))
    assert run.tracking.uri == "sqlite:////root/m.db"


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
