"""What a cluster file says, whatever tool it is written for: one description that the lints look at.

Four kinds: YAML for Ray's cluster launcher (`ray up`), KubeRay's RayCluster and RayJob, and a batch script for Slurm.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from data_shards.errors import YamlError
from data_shards.paths import absolute_path
from data_shards.yaml_file import read_as_1_1
from launch.cluster_files.description import ClusterFile, NodeGroup, flag_value, ray_versions, starts
from launch.errors import UsageError

# GPUs of AWS instance types whose `resources` are left to Ray, which looks them up when the cluster starts.
AWS_GPUS = {
    **dict.fromkeys(("g5.12xlarge", "g5.24xlarge", "g6.12xlarge", "g6.24xlarge", "g6e.12xlarge", "g6e.24xlarge"), 4),
    **dict.fromkeys(("g5.48xlarge", "g6.48xlarge", "g6e.48xlarge", "p3.16xlarge", "p3dn.24xlarge"), 8),
    **dict.fromkeys(("p4d.24xlarge", "p4de.24xlarge", "p5.48xlarge", "p5e.48xlarge", "p5en.48xlarge"), 8),
    **dict.fromkeys(("p3.2xlarge", "p5.4xlarge", "g5.xlarge", "g5.2xlarge", "g6.xlarge", "g6e.xlarge"), 1),
    "p3.8xlarge": 4,
    "p6-b200.48xlarge": 8,
}


def read_cluster_file(path: str) -> ClusterFile:
    """Read a file. Raises UsageError if it is none of the four kinds."""
    try:
        text = absolute_path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    if "#SBATCH" in text:
        return _slurm(text)
    try:
        trees = [tree for tree in read_as_1_1(text, path) if tree is not None]
    except YamlError as error:
        raise UsageError(str(error)) from None
    tree = next((tree for tree in trees if isinstance(tree, dict) and "kind" in tree), trees[0] if trees else None)
    if isinstance(tree, dict) and isinstance(tree.get("provider"), dict):
        return _described(_launcher, "ray up", tree, text)
    if isinstance(tree, dict) and str(tree.get("apiVersion", "")).startswith("ray.io/"):
        from launch.cluster_files.kuberay import describe

        return _described(describe, str(tree.get("kind")), tree, text)
    raise UsageError(
        f"{path} is no cluster file: it has neither `provider` (ray up) nor `apiVersion: ray.io/v1` (KubeRay) nor "
        "#SBATCH lines (Slurm)"
    )


def _described(
    describe: Callable[[dict[str, Any], str], ClusterFile], kind: str, tree: dict[str, Any], text: str
) -> ClusterFile:
    try:
        return describe(tree, text)
    except (AttributeError, TypeError, ValueError):
        return ClusterFile(kind, tree, text)  # of another shape than it should be, as the rules will say


def _launcher(tree: Mapping[str, Any], text: str) -> ClusterFile:
    provider = tree.get("provider") or {}
    commands = {key: starts(tree.get(key) or []) for key in ("head_start_ray_commands", "worker_start_ray_commands")}
    if provider.get("type") == "local":
        groups = [_local_group(tree, commands["worker_start_ray_commands"])]
        head_cpus = flag_value(" ".join(commands["head_start_ray_commands"]), "num-cpus")
    else:
        head, nodes = tree.get("head_node_type"), tree.get("available_node_types") or {}
        groups = [_node_group(name, node) for name, node in nodes.items() if name != head and isinstance(node, dict)]
        head_cpus = ((nodes.get(head) or {}).get("resources") or {}).get("CPU")
    work = None if head_cpus in (0, "0") else "give the head type resources: {CPU: 0}"
    if work and provider.get("type") == "local":
        work = "add --num-cpus=0 to the head's `ray start`"
    return ClusterFile(
        "ray up",
        tree,
        text,
        commands["head_start_ray_commands"],
        commands["worker_start_ray_commands"],
        [group for group in groups if group.most],
        work,
        ray_versions(text),
    )


def _local_group(tree: Mapping[str, Any], commands: Sequence[str]) -> NodeGroup:
    gpus = flag_value(" ".join(commands), "num-gpus")
    return NodeGroup("worker_ips", len(tree["provider"].get("worker_ips") or []), None if gpus is None else int(gpus))


def _node_group(name: str, node: Mapping[str, Any]) -> NodeGroup:
    instance = str((node.get("node_config") or {}).get("InstanceType"))
    gpus = (node.get("resources") or {}).get("GPU", AWS_GPUS.get(instance))
    return NodeGroup(name, node.get("max_workers", 0), gpus if isinstance(gpus, int) else None)


def _slurm(text: str) -> ClusterFile:
    nodes, gpus = flag_value(text, "nodes"), flag_value(text, "gpus-per-node")
    commands = starts(re.sub(r"\\\n\s*", " ", text).splitlines())
    heads = [command for command in commands if "--head" in command]
    group = NodeGroup("nodes", int(nodes or 1), None if gpus is None else int(gpus))
    workers = [command for command in commands if "--head" not in command]
    # The head of an allocation works too: its node is as dear as the others.
    return ClusterFile("Slurm", {}, text, heads, workers, [group], None, ray_versions(text))
