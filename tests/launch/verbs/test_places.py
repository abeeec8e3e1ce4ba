"""Places on the command line, verb by verb: ~ is home, a file URL is its path, whatever characters the names have."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.commands import ROOT, SMALL, environment, last_json, python

pytestmark = [pytest.mark.together, pytest.mark.slow]
# Several verbs in one process, as most of a verb's time goes into imports; one JSON line each.
VERBS = """
import json, sys
from launch.cli import main
for words in json.loads(sys.argv[1]):
    sys.argv = ["launch", *words]
    try:
        main()
    except SystemExit as leaving:
        assert not leaving.code, (words, leaving.code)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home folder with an odd name; in it a data set and a run with its MLflow database, all by way of ~."""
    folder = tmp_path_factory.mktemp("home 100%20#1?x=2 ")
    env = environment(HOME=str(folder))
    options = ["-o", "records=60", "-o", "modalities=series:1,vector:1", "--workers", "1"]
    last_json(python("-m", "launch", "pack", "synthetic", "--out", "~/data", *options, env=env))
    words = ["data.url=~/data", "training.storage=~/runs", "name=x", "training.max_steps=2"]
    last_json(python("-m", "trainer", "synthetic_small", *SMALL, *words, "parallel.expert_parallel=1", env=env))
    return folder


def verbs(home: Path, *commands: list[str]) -> list[dict]:
    """The JSON objects of commands that run one after the other in an empty folder."""
    (home / "elsewhere").mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", VERBS, json.dumps(commands)],
        cwd=home / "elsewhere",
        env=environment(HOME=str(home), PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert list((home / "elsewhere").iterdir()) == [], "nothing went where nobody had asked for it"
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_a_run_leaves_everything_at_home(home):
    assert {"data", "mlartifacts", "mlflow.db", "runs"} <= {path.name for path in home.iterdir()}
    stored = json.loads((home / "runs" / "x" / "mlflow_run.json").read_text())
    assert stored["uri"] == "sqlite:///" + str(home / "mlflow.db").replace("%", "%25").replace("?", "%3F")


@pytest.mark.long
def test_every_verb_finds_home(home):
    run, url = "~/runs/x", f"file://localhost{home}"  # fsspec alone would look in ./localhost
    looked, page, listed, exported, evaluated, predicted, compared = verbs(
        home,
        ["inspect", f"{url}/data", "--json"],
        ["inspect", "~/data", "--json", "--html", f"{url}/data.html"],
        ["checkpoint", "verify", f"{url}/runs/x"],
        ["checkpoint", "export", run, "--out", "~/exported"],
        ["evaluate", f"{url}/runs/x", "--data", "~/data"],
        ["predict", run, "--data", f"{url}/data", "--out", "~/predicted.parquet"],
        ["compare", f"{url}/runs/x", "--html", "~/compared.html"],
    )
    assert looked == page and looked["records"] == 60 and looked["url"] == str(home / "data")
    (checkpoint,) = listed["checkpoints"]
    assert checkpoint["path"].startswith(f"{home}/runs/x/checkpoints/") and checkpoint["problem"] is None
    assert exported["model"] == str(home / "exported") and len(evaluated["metrics"]) > 1
    assert evaluated["checkpoint"] == checkpoint["path"]
    assert predicted["out"] == str(home / "predicted.parquet") and predicted["records"] == 60
    assert compared["html"] == str(home / "compared.html") and len(compared["variants"]) == 1
    for name in ("data.html", "exported/model.json", "predicted.parquet", "compared.html"):
        assert (home / name).is_file(), name


def test_files_of_this_machine_are_no_urls_and_nothing_is_written(home):
    """A page in a bucket was written to a folder called s3: in the working folder."""
    for words in (["inspect", "~/data"], ["compare", "~/runs/x"]):
        env = environment(HOME=str(home))
        done = python("-m", "launch", *words, "--html", "s3://bucket/page.html", env=env)
        assert done.returncode == 2 and not (ROOT / "s3:").exists()
        assert "'s3://bucket/page.html' is a URL, and this has to be a file or folder of this machine" in done.stderr


@pytest.mark.long
def test_recipes_spaces_and_cluster_files_are_found_at_home(home):
    (home / "mine.yaml").write_text((ROOT / "launch" / "recipes" / "synthetic_small.yaml").read_text())
    (home / "cluster.yaml").write_text((ROOT / "ray_cluster.yaml").read_text())
    schema = json.loads((home / "data" / "manifest.json").read_text())["schema"]
    (home / "schema.json").write_text(json.dumps(schema))
    packed, stated, checked = verbs(
        home,
        ["plan", "~/mine.yaml", "data.url=~/data", "--gpu", "a100"],
        ["plan", f"file://{home}/mine.yaml", "--schema", "~/schema.json", "--gpu", "a100"],
        ["cluster", "check", "~/cluster.yaml"],
    )
    assert packed["data"] == "manifest" and stated["data"].startswith("schema") and checked["problems"] == []
