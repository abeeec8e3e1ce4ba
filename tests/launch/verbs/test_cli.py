"""The command line: exit codes, one sentence for each mistake, and a last line that scripts can read."""

from __future__ import annotations

import json
import sys

import pytest

from launch.cli import main
from tests.launch.commands import ROOT, environment, last_json, python


@pytest.fixture
def cli(monkeypatch, capfd):
    """Run a verb in this process; returns (exit code, stdout, stderr)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["launch", *arguments])
        with pytest.raises(SystemExit) as leaving:
            main()
        output = capfd.readouterr()
        return int(leaving.value.code or 0), output.out, output.err

    return run


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A small made-up data set, packed through the command, and what the command printed."""
    folder = tmp_path_factory.mktemp("data") / "made_up"
    options = ["-o", "records=60", "-o", "modalities=series:1,vector:1", "--workers", "1"]
    return folder, python("-m", "launch", "pack", "synthetic", "--out", str(folder), *options)


def test_help_teaches_and_loads_nothing_heavy():
    code = (
        "import sys; sys.argv = ['launch', '--help']\n"
        "from launch.cli import main\n"
        "try: main()\n"
        "finally: print('LOADED', [m for m in ('torch', 'ray', 'mlflow', 'deepspeed', 'sklearn') if m in sys.modules])"
    )
    done = python("-c", code)
    assert done.returncode == 0 and "LOADED []" in done.stdout
    assert "python -m launch train digits" in done.stdout and "one JSON" in done.stdout


@pytest.mark.parametrize("verb", ["init", "pack", "inspect", "train", "evaluate", "runs"])
def test_help_of_every_verb_shows_an_example_or_says_what_it_takes(cli, verb):
    code, out, _ = cli(verb, "--help")
    assert code == 0 and ("python -m launch" in out or "fleximoe" in out or "Folder or URL" in out)


def test_pack_prints_its_report_as_the_last_line(packed):
    folder, done = packed
    report = last_json(done)
    assert report["records"] == 60 and report["url"] == str(folder) and report["seconds"] > 0
    assert len(done.stdout.splitlines()) == 1 and "observations" in done.stderr


def test_inspect_shows_modalities_splits_and_labels(cli, packed):
    code, out, _ = cli("inspect", str(packed[0]))
    assert code == 0
    for word in ("60 records", "series", "vector", "train", "val", "test", "absent"):
        assert word in out
    code, out, _ = cli("inspect", str(packed[0]), "--json")
    assert code == 0 and json.loads(out)["records"] == 60


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["pack", "nope", "--out", "OUT"], 2, "unknown source 'nope'; sources are "),
        (["pack", "physionet2012", "--out", "OUT"], 2, "source physionet2012 needs --source"),
        (["pack", "digits", "--out", "OUT", "--source", "x"], 2, "source digits takes no --source"),
        (
            ["pack", "synthetic", "--out", "OUT", "-o", "seed=1", "-o", "seed=2"],
            2,
            "-o seed=2: seed is '1' already; give it once",
        ),
        (["pack", "digits", "--out", "OUT", "-o", "colour=1"], 2, "source digits takes missing"),
        (["pack", "physionet2012", "--source", "OUT", "--out", "OUT"], 1, "holds neither set-a nor set-a.tar.gz"),
        (["pack", "digits"], 2, "--out"),
        (["inspect", "OUT/nothing"], 1, "OUT/nothing is not a packed data set"),
        (["inspect", "ftp://host/x"], 2, "scheme 'ftp' is none of"),
        (["train", "digit"], 2, "unknown recipe 'digit', did you mean digits?"),
        (["train", "digits", "optim.learning_rate=1"], 2, "unknown key optim.learning_rate"),
        (["train", "digits", "optim.lr=fast"], 2, "optim.lr takes a number"),
        (["train", "digits", "data.url=OUT/nothing"], 1, "OUT/nothing is not a packed data set"),
        (["train", "digits", "data.url=DATA", "data.split=split9"], 1, "has no split 'split9'; it has default"),
        (["train", "digits", "data.url=DATA", "training.tasks=[sleep]"], 1, "has no task 'sleep'"),
        (["train", "digits", "data.url=DATA", "parallel.expert_parallel=3"], 2, "does not divide the world size 2"),
        (
            ["train", "digits", "data.url=DATA", "model.moe.router=disjoint", "model.moe.experts=2"],
            1,
            "moe.router=disjoint splits moe.experts=2 over",
        ),
        (["train", "digits", "data.url=DATA", "model.moe.experts=3"], 2, "moe.experts=3 cannot be spread evenly"),
        (["train", "digits", "data.url=DATA", "model.moe.top_k=9"], 2, "top_k"),
        (["evaluate", "OUT/nothing"], 1, "OUT/nothing"),
        (["evaluate", "OUT/nothing", "image"], 2, "modalities follow --drop"),
        (["teach"], 2, "No such command 'teach'"),
    ],
)
def test_bad_input_is_one_sentence_and_the_right_exit_code(cli, packed, tmp_path, arguments, code, sentence):
    places = (("OUT", str(tmp_path)), ("DATA", str(packed[0])))

    def fill(text: str) -> str:
        for name, place in places:
            text = text.replace(name, place)
        return text

    got, out, err = cli(*map(fill, arguments))
    assert (got, out) == (code, ""), err
    assert fill(sentence) in err and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []  # nothing half-written


def test_debug_shows_where_it_went_wrong(packed):
    done = python("-m", "launch", "inspect", str(packed[0] / "nothing"), "--debug")
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_a_cluster_that_is_not_there_is_noticed_at_once(packed, tmp_path):
    done = python(
        "-m", "launch", "train", "digits", f"data.url={packed[0]}", f"training.storage={tmp_path}/runs",
        "cluster.address=127.0.0.1:9", "tracking.mlflow=false",
    )  # fmt: skip
    assert done.returncode == 1
    assert (
        done.stderr.splitlines()[-1].startswith("error: no Ray at 127.0.0.1:9 (") and "check the address" in done.stderr
    )


def test_a_submitted_job_refuses_paths_that_would_be_lost(packed):
    job = {"metadata": {"job_submission_id": "raysubmit_1", "job_name": "raysubmit_1"}}
    env = environment(RAY_JOB_CONFIG_JSON_ENV_VAR=json.dumps(job))
    done = python("-m", "launch", "train", "digits", f"data.url={packed[0]}", env=env)
    assert done.returncode == 2 and "add training.storage=$PWD/runs" in done.stderr


def test_job_tags_name_submission_and_metadata(monkeypatch):
    from launch.cluster.environment import job_tags

    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"metadata": {"job_submission_id": "s1", "team": "icu"}}')
    assert job_tags() == {"ray.submission_id": "s1", "ray.metadata.team": "icu"}
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR")
    assert job_tags() == {}


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("r", ["runs", "report"]),
        ("in", ["init", "inspect"]),
        ("train di", ["digits"]),
        ("pack easy", ["easy_vqa"]),
        ("x", []),
    ],
)
def test_a_shell_completes_verbs_recipes_and_sources(tmp_path, line, offered):
    command = tmp_path / "fleximoe"
    command.write_text("from launch.cli import main\nmain()\n")
    asked = {
        "_FLEXIMOE_COMPLETE": "complete_bash",
        "COMP_WORDS": f"fleximoe {line}",
        "COMP_CWORD": str(len(line.split())),
    }
    done = python(str(command), env=environment(**asked, PYTHONPATH=str(ROOT)))
    assert done.stdout.split() == offered, done.stderr


def test_completion_is_installed_for_the_command_only(tmp_path):
    command = tmp_path / "fleximoe"
    command.write_text("from launch.cli import main\nmain()\n")
    # The shell is given, as the one that a test is started from may be none.
    given = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    env = environment(PYTHONPATH=str(ROOT), HOME=str(tmp_path), **given)
    done = python(str(command), "--install-completion", "bash", env=env)
    assert done.returncode == 0 and "fleximoe" in (tmp_path / ".bashrc").read_text()
    assert "_FLEXIMOE_COMPLETE=complete_bash" in (tmp_path / ".bash_completions" / "fleximoe.sh").read_text()
    assert "No such option: --install-completion" in python("-m", "launch", "--install-completion").stderr


def test_results_with_numbers_that_json_lacks(capsys):
    from launch.output.tables import print_json_line

    print_json_line({"metrics": {"a": float("nan"), "b": [float("inf"), 1.5]}})
    assert json.loads(capsys.readouterr().out) == {"metrics": {"a": None, "b": [None, 1.5]}}
