"""The doctor on real patients: no Ray, an open one, a closed one, a node with another package, a full disk, no MLflow.

`pytest -s` shows what each of them is told.
"""

from __future__ import annotations

import json
import subprocess

import pytest

from launch.doctor import machine
from launch.doctor.facts import gather
from launch.doctor.findings import Finding, worst
from tests.launch.commands import environment, python
from tests.ports import free_port

SHOWN: set[int] = set()


def findings(done, check=None, state=None):
    """What was found of this subject and state; people's view of it goes to the screen, once."""
    if id(done) not in SHOWN:
        SHOWN.add(id(done))
        print(done.stderr)
    listed = [Finding(**entry) for entry in json.loads(done.stdout.strip().splitlines()[-1])["findings"]]
    assert (done.returncode == 1) == (worst(listed) == "fail"), done.stderr
    chosen = [each for each in listed if check in (None, each.check) and state in (None, each.state)]
    return chosen


def doctor(*arguments, env=None):
    return python("-m", "launch", "doctor", *arguments, env=env or environment())


def test_no_ray_is_fine_alone_and_a_failure_if_one_was_named(tmp_path):
    done = doctor("--storage", str(tmp_path / "runs"))
    assert not findings(done, state="fail")
    assert "`train` starts a local Ray" in findings(done, "Ray")[0].text
    assert findings(done, "storage")[0].state == "ok" and list((tmp_path / "runs").iterdir()) == []
    for address in (f"127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}"):
        (failure,) = findings(doctor("--cluster", address), "Ray", "fail")
        assert "127.0.0.1" in failure.text and failure.todo


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.slow
def test_a_closed_ray_is_looked_at_from_inside_by_a_job(head, place):
    done = head.launch("doctor", "--storage", str(place / "doctor"), "--mlflow", f"sqlite:///{place}/mlflow.db")
    assert not findings(done, state="fail")
    refused = " ".join(each.text for each in findings(done, "strangers", "ok"))
    assert f"refused by dashboard {head.dashboard}" in refused
    told = f":{head.ports['dashboard-agent-listen-port']}" in refused
    assert told == head.agent_is_reachable(), "the agent takes jobs too"
    assert findings(done, "jobs", "ok") and findings(done, "storage", "ok") and findings(done, "MLflow", "ok")


@pytest.mark.ray
@pytest.mark.long
def test_an_open_ray_fails_loudly(open_head):
    done = open_head.launch("doctor")
    open_doors = [each.text for each in findings(done, "strangers", "fail")]
    assert f"dashboard {open_head.dashboard} takes jobs from anybody who reaches it" in open_doors
    told = any(f":{open_head.ports['dashboard-agent-listen-port']} takes jobs" in text for text in open_doors)
    assert told == open_head.agent_is_reachable()
    assert done.returncode == 1


@pytest.mark.ray
@pytest.mark.long
def test_a_node_with_another_package_is_named(head, tmp_path):
    """The node's Python finds the description of another version first, as in an environment that is out of date."""
    folder = tmp_path / "deepspeed-0.18.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: deepspeed\nVersion: 0.18.0\n")
    with head.joined(PYTHONPATH=str(tmp_path)):
        done = head.launch("doctor", "--cluster", head.address)
    (failure,) = findings(done, "versions", "fail")
    assert failure.text == f"deepspeed is 0.18.0, constraints.txt has {machine.locked_version('deepspeed')}"
    (exchange,) = findings(done, "exchange", "ok")
    assert "all-to-all of 2 nodes over gloo" in exchange.text


@pytest.mark.root
def test_a_full_disk_is_seen_before_a_checkpoint_is_lost(tmp_path):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(tmp_path)], check=True)
    try:
        (tmp_path / "filling").write_bytes(b"x" * (4 << 20))
        done = doctor("--storage", str(tmp_path / "runs"))
        assert {each.check for each in findings(done, state="fail")} == {"disk", "storage"}
        assert "No space left on device" in findings(done, "storage")[0].text
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_mlflow_that_is_down_is_a_warning(tmp_path):
    done = doctor("--mlflow", f"http://127.0.0.1:{free_port()}")
    (warning,) = findings(done, "MLflow", "warn")
    assert "cannot be reached" in warning.text and "launch ui --serve" in warning.todo and done.returncode == 0
    (lost,) = findings(doctor("--mlflow", f"sqlite:///{tmp_path}/none/mlflow.db"), "MLflow", "warn")
    assert "does not exist here" in lost.text


SMALL_FACTS = {
    "host": "h",
    "shared_memory": {"free": 64 << 20, "total": 64 << 20},
    "open_files": 1024,
    "gpus": ["H100, 81559 MiB, 570"],
    "ray_gpus": 8.0,
    "interface": None,
    "hostname_address": "127.0.1.1",
    "addresses": {"lo": ["127.0.0.1"], "eth0": ["10.0.0.5"]},
}


@pytest.mark.parametrize(
    ("check", "changes", "state", "text"),
    [
        (machine.shared_memory, {}, "fail", "/dev/shm: 0.1 of 0.1 GiB free"),
        (machine.open_files, {}, "warn", "at most 1024 open files"),
        (machine.gpus, {}, "warn", "Ray was told of 8"),
        (machine.gpus, {"ray_gpus": 1.0}, "ok", "1 x H100"),
        (machine.interface, {}, "fail", "leads to 127.0.1.1, which other nodes cannot reach"),
        (machine.interface, {"interface": "eth1"}, "fail", "GLOO_SOCKET_IFNAME=eth1 does not exist"),
        (machine.interface, {"interface": "eth0"}, "ok", "10.0.0.5"),
        (machine.interface, {"hostname_address": "10.0.0.5"}, "ok", "gloo on 10.0.0.5"),
    ],
)
def test_what_is_made_of_facts(check, changes, state, text):
    (finding,) = check({**SMALL_FACTS, **changes})
    assert finding.state == state and text in finding.text and (finding.todo or state == "ok")


def test_facts_of_this_machine_are_plain_values():
    facts = gather([])
    assert json.loads(json.dumps(facts))["versions"]["ray"] == machine.locked_version("ray")


def test_a_token_that_others_may_read_is_a_failure(tmp_path, monkeypatch):
    path = tmp_path / "auth_token"
    path.write_text("secret")
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    path.chmod(0o644)
    (failure,) = machine.token(alone=False)
    assert failure.state == "fail" and failure.todo == f"chmod 600 {path}"
    path.chmod(0o600)
    (fine,) = machine.token(alone=False)
    assert fine.state == "ok"
    path.unlink()
    assert [each.state for each in machine.token(alone=False)] == ["warn"]
