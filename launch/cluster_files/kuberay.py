"""KubeRay's manifests: which fields there are, and what a RayCluster or RayJob says in the words of the lints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from data_shards.yaml_file import read_yaml
from launch.cluster_files.description import ClusterFile, NodeGroup, ray_versions

FIELDS = Path(__file__).with_name("kuberay_fields.yaml")
PLAIN = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "object": dict, "strings": dict}


@cache
def published_fields() -> dict[str, Any]:
    """Type name -> its fields and their types, as published for the version under `version`."""
    fields: dict[str, Any] = read_yaml(FIELDS, "field list")
    return fields


def describe(tree: Mapping[str, Any], text: str) -> ClusterFile:
    """A manifest in the words of the lints."""
    cluster = cluster_spec(tree)
    head = cluster.get("headGroupSpec") or {}
    params = head.get("rayStartParams") or {}
    work = None if str(params.get("num-cpus")) == "0" else 'give the head rayStartParams: {num-cpus: "0"}'
    groups = [
        NodeGroup(group.get("groupName", "?"), group.get("maxReplicas") or group.get("replicas") or 0, _gpus(group))
        for group in cluster.get("workerGroupSpecs") or []
    ]
    versions = [("rayVersion", str(cluster["rayVersion"]))] if "rayVersion" in cluster else []
    return ClusterFile(
        str(tree.get("kind")), tree, text, groups=groups, head_work=work, versions=[*versions, *ray_versions(text)]
    )


def cluster_spec(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The RayClusterSpec within a RayCluster or RayJob."""
    spec = tree.get("spec") or {}
    found: dict[str, Any] = spec.get("rayClusterSpec") or {} if tree.get("kind") == "RayJob" else spec
    return found


def pods(tree: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, pod spec) of the head and of every worker group."""
    cluster = cluster_spec(tree)
    named = [("headGroupSpec", cluster.get("headGroupSpec") or {})]
    named += [(f"workerGroupSpecs {group.get('groupName')}", group) for group in cluster.get("workerGroupSpecs") or []]
    for where, group in named:
        yield where, (group.get("template") or {}).get("spec") or {}


def field_problems(tree: Mapping[str, Any], checked: list[str] | None = None) -> list[str]:
    """A sentence for every field that KubeRay does not know or that has the wrong type; appends what it looked at to
    `checked`."""
    kind = tree.get("kind")
    if kind not in ("RayCluster", "RayJob"):
        return [f"kind: {kind} is neither RayCluster nor RayJob"]
    if tree.get("apiVersion") != "ray.io/v1":
        return [f"apiVersion is {tree.get('apiVersion')!r}, and KubeRay's is ray.io/v1"]
    return list(_problems(tree, kind, kind, checked if checked is not None else []))


def _problems(value: Any, kind: Any, where: str, checked: list[str]) -> Iterator[str]:
    checked.append(where)
    if isinstance(kind, dict):
        (choices,) = kind.values()
        if value not in choices:
            yield f"{where} is {value!r}, and must be one of {', '.join(map(str, choices))}"
    elif isinstance(kind, list):
        if not isinstance(value, list):
            yield f"{where} must be a list, not {type(value).__name__}"
            return
        for number, item in enumerate(value):
            yield from _problems(item, kind[0], f"{where}[{number}]", checked)
    elif kind in PLAIN:
        yield from _plain_problems(value, kind, where)
    elif not isinstance(value, dict):
        yield f"{where} must be a mapping, not {type(value).__name__}"
    else:
        yield from _field_problems(value, kind, where, checked)


def _plain_problems(value: Any, kind: str, where: str) -> Iterator[str]:
    if not isinstance(value, PLAIN[kind]) or (isinstance(value, bool) and kind != "boolean"):  # type: ignore[arg-type]
        yield f"{where} is {value!r}, and must be of type {'object' if kind == 'strings' else kind}"
    elif kind == "strings":
        for key, item in value.items():
            if not isinstance(item, str):
                yield f'{where}.{key} is the {type(item).__name__} {item}; Kubernetes takes text here: write "{item}"'


def _field_problems(value: Mapping[str, Any], kind: str, where: str, checked: list[str]) -> Iterator[str]:
    fields = published_fields()[kind]
    for key, item in value.items():
        if key in fields:
            yield from _problems(item, fields[key], f"{where}.{key}", checked)
        else:
            near = get_close_matches(str(key), list(fields), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            yield f"{where}.{key} is no field of {kind} in KubeRay {published_fields()['version']}{hint}"


def _gpus(group: Mapping[str, Any]) -> int | None:
    containers = (((group.get("template") or {}).get("spec") or {}).get("containers")) or []
    limits = [
        ((container.get("resources") or {}).get("limits") or {}).get("nvidia.com/gpu") for container in containers
    ]
    counts = [int(limit) for limit in limits if limit is not None]
    return max(counts, default=None)
