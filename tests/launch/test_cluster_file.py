"""The shipped cluster file: accepted by Ray's own schema, and closed to strangers."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import yaml

FILE = Path(__file__).resolve().parents[2] / "ray_cluster.yaml"


@pytest.fixture(scope="module")
def cluster():
    return yaml.safe_load(FILE.read_text())


def test_ray_accepts_it_and_would_notice_a_slip(cluster):
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(copy.deepcopy(cluster)))
    broken = copy.deepcopy(cluster)
    broken["available_node_types"]["gpu"]["max_worker"] = broken["available_node_types"]["gpu"].pop("max_workers")
    with pytest.raises(Exception, match="max_worker"):
        validate_config(prepare_config(broken))


def test_every_start_command_asks_for_the_token_and_the_dashboard_stays_inside(cluster):
    starts = [
        command
        for key in ("head_start_ray_commands", "worker_start_ray_commands")
        for command in cluster[key]
        if "ray start" in command
    ]
    assert len(starts) == 2 and all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert any("auth_token" in path for path in cluster["file_mounts"])


def test_head_does_no_work_and_the_limits_add_up(cluster):
    nodes = cluster["available_node_types"]
    assert nodes[cluster["head_node_type"]]["resources"] == {"CPU": 0}
    assert sum(node["max_workers"] for node in nodes.values()) == cluster["max_workers"]
