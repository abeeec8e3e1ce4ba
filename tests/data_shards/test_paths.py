"""What people write for a place, and what it means; the same for commands, recipes and the Python API."""

from __future__ import annotations

import json
import string
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_shards.errors import PathError
from data_shards.paths import absolute_path, absolute_url, is_local, is_relative
from tests.launch.commands import environment, last_json, python

ROOT = Path("/work folder")
MEANINGS = [
    ("data/x", "/work folder/data/x"),
    ("./x", "/work folder/x"),
    ("/a b#c?d%20e", "/a b#c?d%20e"),
    ("file:///a b#c?d%20e", "/a b#c?d%20e"),
    ("file://localhost/x", "/x"),
    ("FILE:///X", "/X"),
    ("local:///x", "/x"),
    ("~/x", "/home/of/me/x"),
    ("./~/x", "/work folder/~/x"),
    ("a~b", "/work folder/a~b"),
    ("s3://bucket/x y#1", "s3://bucket/x y#1"),
    ("S3://Bucket/x", "s3://Bucket/x"),
    ("https://host/x?y=1", "https://host/x?y=1"),
]
REFUSED = [
    ("", "an empty path names no place"),
    ("file://a/b", "begins with the name of a machine, 'a'"),
    ("local://a/b", "begins with the name of a machine, 'a'"),
    ("file://", "has no path"),
    ("file:x", "is half a URL"),
    ("pipe:cat x", "chained and pipe: URLs"),
    ("simplecache::s3://b/x", "chained and pipe: URLs"),
    ("~nobody-is-called-this/x", "there is no user 'nobody-is-called-this' here"),
]


@pytest.mark.parametrize(("typed", "meant"), MEANINGS)
def test_what_is_meant(typed: str, meant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/of/me")
    assert absolute_url(typed, ROOT) == meant == absolute_url(meant, ROOT)
    assert is_local(typed) == meant.startswith("/")
    assert is_relative(typed) == (meant.startswith("/work folder"))


@pytest.mark.parametrize(("typed", "sentence"), REFUSED)
def test_what_is_refused(typed: str, sentence: str) -> None:
    with pytest.raises(PathError, match=sentence):
        absolute_url(typed, ROOT)
    with pytest.raises(PathError):
        absolute_path(typed, ROOT)


def test_what_must_lie_here_is_no_url() -> None:
    with pytest.raises(PathError, match="'s3://bucket/x' is a URL, and this has to be a file or folder"):
        absolute_path("s3://bucket/x")


NAMES = st.text(
    st.sampled_from(string.ascii_letters + string.digits + " #?%&+;=@!$'()*,[]{}|^`\"<>\\é世._-"), min_size=1
)
FILE_NAMES = NAMES.filter(lambda name: name not in (".", "..") and "::" not in name)


@given(FILE_NAMES, FILE_NAMES)
def test_every_name_survives_as_path_and_as_url_and_no_two_meet(name: str, other: str) -> None:
    path = absolute_url(f"/folder/{name}")
    assert path == absolute_url(f"file:///folder/{name}") == f"/folder/{name}"
    assert (absolute_url(f"file:///folder/{other}") == path) == (other == name)
    fs, opened = fsspec.url_to_fs(path)
    assert opened == path and "file" in fs.protocol, "what opens it takes it for the same place"


# By the commands, with values.

OPTIONS = ["-o", "modalities=vector:1", "--workers", "1"]


def packed(out: str, records: int, home: Path) -> dict[str, object]:
    words = ("-m", "launch", "pack", "synthetic", "--out", out, "-o", f"records={records}", *OPTIONS)
    return last_json(python(*words, env=environment(HOME=str(home))))


def inspected(url: str, home: Path) -> dict[str, object]:
    return last_json(python("-m", "launch", "inspect", url, "--json", env=environment(HOME=str(home))))


def test_home_is_home_for_pack_inspect_and_train(tmp_path: Path) -> None:
    packed("~/made", 40, tmp_path)
    assert (tmp_path / "made" / "manifest.json").exists()
    assert inspected("~/made", tmp_path)["records"] == 40
    words = ["data.url=~/made", "training.storage=~/runs", "name=x", "training.max_steps=1", "tracking.mlflow=false"]
    words += ["parallel.expert_parallel=1"]
    done = python("-m", "trainer", "synthetic_small", *words, env=environment(HOME=str(tmp_path)))
    assert last_json(done)["checkpoint"].startswith(f"{tmp_path}/runs/x/checkpoints/")
    assert json.loads((tmp_path / "runs" / "x" / "result.json").read_text())["step"] == 1


@pytest.mark.long
def test_two_urls_are_two_data_sets(tmp_path: Path) -> None:
    """Fragments and queries are parts of names: they were cut off, and the second data set replaced the first."""
    for number, mark in enumerate(("#1", "#2", "?x=1", "%20"), 1):
        packed(f"file://{tmp_path}/site{mark}", 10 * number, tmp_path)
    for number, mark in enumerate(("#1", "#2", "?x=1", "%20"), 1):
        assert (tmp_path / f"site{mark}" / "manifest.json").exists()
        assert inspected(f"file://{tmp_path}/site{mark}", tmp_path)["records"] == 10 * number
    assert len(list(tmp_path.iterdir())) == 4


def test_a_file_url_with_a_host_is_refused_and_writes_nothing(tmp_path: Path) -> None:
    done = python("-m", "launch", "pack", "synthetic", "--out", "file://no_such_place/b", *OPTIONS)
    assert done.returncode == 2 and "write file:///PATH with three slashes" in done.stderr
    assert done.stderr.count("\n") == 1 and not Path("/b").exists() and not Path("/no_such_place").exists()
