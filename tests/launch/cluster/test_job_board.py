"""Runs as Ray jobs on a real Ray with a token: submitted, followed, found by name, stopped, continued."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

import pytest
from mlflow import MlflowClient

from launch.cluster import job_board as jobs
from launch.cluster.job_board import dashboard_url
from launch.cluster.job_log import what_it_said
from tests.launch.commands import ROOT, SAME, STEPS, environment, last_json, logged, overrides, python, wait_until
from tests.ports import free_port
from trainer.config.recipe import load_recipe

ENDLESS = {"training__max_steps": 10**6, "training__epochs": 10**5, "training__eval_every": 10**6}


@pytest.fixture(scope="module")
def first(head, place):
    """A run submitted with Ray's own command, in the middle of its training."""
    settings = json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}})
    flags = ["--working-dir", ".", "--submission-id", "first", "--runtime-env-json", settings, "--no-wait"]
    command = ["python", "-m", "launch", "train", "synthetic_small", *overrides(place, "job", **ENDLESS)]
    submitted = head.ray("job", "submit", *flags, "--", *command)
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    run = place / "runs" / "job"
    wait_until(lambda: (run / "metrics.jsonl").exists() and len(logged(run, *SAME)) >= 3, "three steps are done", 180)
    return run


@pytest.fixture(scope="module")
def stopped(head, first):
    """What `stop` printed, and the last step that was done."""
    done = head.launch("stop", "job")
    return done, max(logged(first, *SAME))


@pytest.fixture(scope="module")
def continued(head, place, stopped):
    """The run submitted again, to its end, with our own command."""
    _, last = stopped
    total = max(last, STEPS) + 2
    settings = {**ENDLESS, "training__max_steps": total}
    return head.launch("submit", "synthetic_small", *overrides(place, "job", **settings)), total


@pytest.mark.ray
@pytest.mark.long
def test_stop_waits_for_the_checkpoint_and_says_at_which_step(stopped, first, place):
    done, last = stopped
    said = last_json(done)
    assert (said["status"], said["step"]) == ("STOPPED", last)
    assert f"run job stopped at step {last} with checkpoint {first}/checkpoints/step-{last:010d}" in done.stderr
    assert [path.name for path in (first / "checkpoints").glob(f"*{last:010d}/COMMIT")] == ["COMMIT"], "a step was lost"
    client = MlflowClient(f"sqlite:///{place}/mlflow.db")
    run = client.get_run(said["mlflow_run_id"])
    assert (run.info.status, run.data.tags["ray.submission_id"]) == ("KILLED", "first")


@pytest.mark.ray
@pytest.mark.long
def test_the_same_name_continues_and_the_exit_code_is_the_jobs(continued, under_torchrun, stopped, place, first):
    done, total = continued
    job = last_json(done)
    assert (job["run"], job["status"], job["exit_code"]) == ("job", "SUCCEEDED", 0)
    assert f"continuing job at step {stopped[1]}" in done.stderr
    losses = logged(first, *SAME)
    assert sorted(losses) == list(range(1, total + 1))
    for step, values in logged(place / "runs" / "torchrun", *SAME).items():
        assert losses[step] == pytest.approx(values, rel=1e-6), f"step {step}"
    result = job["result"]
    assert (result["status"], result["step"]) == ("finished", total)
    assert result["run_id"] == last_json(stopped[0])["mlflow_run_id"]
    run = MlflowClient(f"sqlite:///{place}/mlflow.db").get_run(result["run_id"])
    assert (run.info.status, run.data.tags["ray.submission_id"]) == ("FINISHED", job["id"])
    assert run.data.tags["ray.metadata.run_dir"] == str(first) == job["metadata"]["run_dir"]


@pytest.mark.ray
@pytest.mark.long
def test_status_logs_and_list_find_the_run_by_its_name(head, continued, stopped):
    done, total = continued
    status = head.launch("status", "job")
    shown = last_json(status)
    assert (shown["id"], shown["step"], shown["steps"]) == (last_json(done)["id"], total, total)
    assert shown["result"]["status"] == "finished" and shown["mlflow_run_id"] in status.stderr
    assert last_json(head.launch("status", "job", "--cluster", head.dashboard))["id"] == shown["id"]
    assert f"step {stopped[1]}" in head.launch("logs", "first").stdout
    followed = head.launch("logs", "job", "--follow")
    assert followed.returncode == 0 and f"step {total}/{total}" in followed.stdout
    listed = last_json(head.launch("list"))["jobs"]
    mine = [(job["id"], job["status"]) for job in listed if job["run"] == "job"]
    assert (shown["id"], "SUCCEEDED") in mine
    unknown = head.launch("status", "jpb")
    assert unknown.returncode == 2 and "did you mean job?" in unknown.stderr


@pytest.mark.ray
@pytest.mark.long
def test_a_job_that_fails_gives_its_exit_code_and_its_sentence(head, place):
    wrong = overrides(place, "lost", training__storage="memory://runs")
    done = head.launch("submit", "synthetic_small", *wrong)
    assert done.returncode == 2, done.stderr
    assert "error: tracking.uri is not set, so MLflow's database would vanish" in done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["status"] == "FAILED"
    again = head.launch("stop", "lost")
    assert again.returncode == 2 and "does not run: it is FAILED" in again.stderr


@pytest.mark.ray
@pytest.mark.long
def test_strangers_and_wrong_tokens_are_refused(head):
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{head.dashboard}/api/jobs/")
    assert refused.value.code == 401
    wrong = head.launch("list", RAY_AUTH_TOKEN="0" * 64)
    assert wrong.returncode == 2 and "refuses this token" in wrong.stderr
    none = head.launch("list", RAY_AUTH_TOKEN="", HOME=str(head.folder))
    assert none.returncode == 2 and "no Ray token" in none.stderr


@pytest.mark.ray
@pytest.mark.long
def test_nothing_is_submitted_to_an_open_ray_unless_that_is_said(open_head):
    refused = open_head.launch("list", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * 64)
    assert refused.returncode == 2 and "asks for no token" in refused.stderr
    assert isinstance(last_json(open_head.launch("list"))["jobs"], list)


def test_nobody_there_is_one_sentence():
    url = f"http://127.0.0.1:{free_port()}"
    done = python("-m", "launch", "list", "--cluster", url, env=environment(RAY_AUTH_TOKEN="0" * 64))
    assert done.returncode == 1 and "no Ray dashboard at http://127.0.0.1:" in done.stderr


def test_what_a_log_says():
    log = "\n".join(
        [
            "run r is MLflow run 0a1b at sqlite:////x",
            "12:00:00 step 7/20  loss 0.3",
            "{not json}",
            '{"level": 1}',
            '{"run_id": "0a1b", "status": "stopped", "step": 9, "checkpoint": "/r/step-9"}',
        ]
    )
    said = what_it_said(log)
    assert (said["step"], said["steps"], said["mlflow_run_id"]) == (9, 20, "0a1b")
    assert said["result"]["checkpoint"] == "/r/step-9"
    assert what_it_said("") == {}


def test_addresses():
    assert dashboard_url("http://h:8265/") == "http://h:8265"
    with pytest.raises(ValueError, match="not the URL of a Ray dashboard"):
        dashboard_url("ray://h:10001")


def test_a_recipe_file_travels_only_from_within_the_project(tmp_path):
    outside = tmp_path / "mine.yaml"
    with pytest.raises(ValueError, match="outside of"):
        jobs._shipped(str(outside))
    assert jobs._shipped(str(ROOT / "launch/recipes/digits.yaml")) == "launch/recipes/digits.yaml"
    assert jobs._shipped("digits") == "digits"


def test_no_secret_travels_with_a_job(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "SECRET")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "SECRET")
    config = load_recipe("digits", ["cluster.stop_timeout_s=90"])
    assert jobs.job_environment(config)["RAY_JOB_STOP_WAIT_TIME_S"] == "90"
    assert "SECRET" not in json.dumps([jobs.job_environment(config), jobs.job_metadata(config, "digits")])
