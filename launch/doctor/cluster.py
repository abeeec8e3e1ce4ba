"""The doctor inside a cluster: asks every node for its facts, knocks at every door, lets the nodes exchange data."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from launch.cluster.nodes import staying_nodes
from launch.doctor import mlflow_server, storage
from launch.doctor.all_to_all import exchange_between
from launch.doctor.facts import gather
from launch.doctor.findings import Finding
from launch.doctor.machine import judge_machine
from launch.doctor.open_ports import ask_ports
from launch.doctor.targets import Wanted

PATIENCE_S = 120.0
GPUS_A_NODE = 8  # that take part in the exchange


def examine(wanted: Wanted) -> Iterator[Finding]:
    """All findings about the Ray that this process is connected to."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    lost = {node["NodeID"] for node in nodes} - set(staying_nodes())
    yield Finding("Ray", "ok", f"Ray {ray.__version__} with {len(nodes)} node{'s' if len(nodes) > 1 else ''}")
    if lost:
        yield Finding("Ray", "warn", f"{len(lost)} of them are leaving or do not answer", "wait, or look at them")
    answers = _ask(nodes, wanted)
    several = len(nodes) > 1
    names = []
    for node in nodes:
        answer = answers.get(node["NodeID"])
        if answer is None:
            text = f"{node['NodeManagerAddress']} does not run what it is asked to within {PATIENCE_S:g} s"
            yield Finding("Ray", "fail", text, "look at its Ray's logs in /tmp/ray/session_latest/logs")
            continue
        names.append((node["NodeID"], answer["host"]))
        answer["ray_gpus"] = node["Resources"].get("GPU", 0)
        yield from judge_machine(answer, several)
        yield from ask_ports(answer["host"], node["NodeManagerAddress"], answer["listening"])
        if wanted.storage:
            yield storage.judge(wanted.storage, answer["storage"], answer["host"])
        if wanted.mlflow:
            yield mlflow_server.judge(wanted.mlflow, answer["mlflow"], answer["host"], several)
    yield from _together(answers, names)


def _together(answers: dict[str, Any], names: list[tuple[str, str]]) -> Iterator[Finding]:
    counts = {answer["host"]: len(answer["gpus"]) for answer in answers.values() if answer["gpus"]}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{host} {count}" for host, count in counts.items())
        todo = "expert-parallel groups need nodes of one size"
        yield Finding("GPUs", "warn", f"nodes have different numbers of GPUs: {listed}", todo)
    gpus = [node for node, name in names for _ in range(min(counts.get(name, 0), GPUS_A_NODE))]
    if len(gpus) > 1 and ray.available_resources().get("GPU", 0) < len(gpus):
        yield Finding("exchange", "warn", "the GPUs are at work, so NCCL was not tried", "ask again when they are free")
    elif len(gpus) > 1:
        yield exchange_between(gpus, gpus=True)
    if len(names) > 1:
        yield exchange_between([node for node, _ in names], gpus=False)


def _ask(nodes: list[dict[str, Any]], wanted: Wanted) -> dict[str, dict[str, Any]]:
    """Node id -> facts, of the nodes that answer."""
    marker, problem = "", None
    if wanted.storage:
        try:
            marker = storage.leave_marker(wanted.storage)
        except Exception as error:  # the nodes will say more
            problem = str(error)
    asked = {
        node["NodeID"]: ray.remote(_facts)
        .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
        .remote(wanted.folders(), wanted.storage, marker, wanted.mlflow)
        for node in nodes
    }
    ready, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=PATIENCE_S)
    answers = {node: ray.get(ref) for node, ref in asked.items() if ref in ready}
    if wanted.storage and problem is None:
        storage.remove_marker(wanted.storage, marker)
    return answers


def _facts(folders: list[str], url: str | None, marker: str, uri: str | None) -> dict[str, Any]:
    """Runs on every node."""
    facts = gather(folders)
    facts["storage"] = storage.use(url, marker) if url else None
    facts["mlflow"] = mlflow_server.reach(uri) if uri else None
    facts["auth_mode"] = os.environ.get("RAY_AUTH_MODE")
    return facts
