"""The rules for KubeRay's manifests; those for every kind of cluster file are in `launch.cluster_files.lints`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from launch.cluster_files.description import ClusterFile
from launch.cluster_files.kuberay import cluster_spec, field_problems, pods

SHARED_MEMORY = "/dev/shm"


def fields_are_published(file: ClusterFile) -> Iterator[str]:
    """Kubernetes refuses some wrong fields and drops others without a word."""
    yield from field_problems(file.tree)


def asks_for_the_token(file: ClusterFile) -> Iterator[str]:
    """Since 1.6 KubeRay makes a token and gives it to every pod, if asked."""
    if (cluster_spec(file.tree).get("authOptions") or {}).get("mode") != "token":
        yield "the cluster is open to every pod that reaches it: set authOptions: {mode: token}"
    for where, pod in pods(file.tree):
        for container in pod.get("containers") or []:
            for variable in container.get("env") or []:
                if variable.get("name") == "RAY_AUTH_TOKEN" and "value" in variable:
                    yield f"{where}: the token stands in the manifest: take it from a Secret with valueFrom"


def stays_inside(file: ClusterFile) -> Iterator[str]:
    """The head's service is for the cluster."""
    head = cluster_spec(file.tree).get("headGroupSpec") or {}
    if head.get("serviceType", "ClusterIP") not in ("ClusterIP", None):
        yield f"serviceType {head['serviceType']} opens the head to the outside: use ClusterIP and kubectl port-forward"
    if head.get("enableIngress"):
        yield "enableIngress opens the dashboard, which takes jobs, to the outside: remove it"


def pods_can_train(file: ClusterFile) -> Iterator[str]:
    """What a pod of training needs: an image, shared memory, and time to write a checkpoint."""
    for where, pod in pods(file.tree):
        containers = pod.get("containers") or []
        if not containers or not all(container.get("image") for container in containers):
            yield f"{where}: a pod needs containers with an image each"
            continue
        mounts = [mount.get("mountPath") for mount in containers[0].get("volumeMounts") or []]
        if where != "headGroupSpec" and SHARED_MEMORY not in mounts:
            yield f"{where}: mount an emptyDir at {SHARED_MEMORY}, where NCCL and data loaders get 64 MiB otherwise"
        if pod.get("terminationGracePeriodSeconds", 30) < 60:
            yield f"{where}: terminationGracePeriodSeconds below 60 leaves no time for a checkpoint"


def replicas(file: ClusterFile) -> Iterator[str]:
    """Replicas between their limits."""
    for group in cluster_spec(file.tree).get("workerGroupSpecs") or []:
        least, most = group.get("minReplicas", 0), group.get("maxReplicas", 2**31)
        if not least <= group.get("replicas", least) <= most:
            yield f"{group.get('groupName')}: replicas {group['replicas']} is not between {least} and {most}"


def retries_continue(file: ClusterFile) -> Iterator[str]:
    """A retry starts a new cluster; only a run with a name finds its checkpoints again."""
    if file.kind != "RayJob":
        return
    spec = file.tree.get("spec") or {}
    entrypoint = str(spec.get("entrypoint", ""))
    if not entrypoint:
        yield "the RayJob has no entrypoint"
    elif spec.get("backoffLimit", 0) and not re.search(r"\bname=\S+", entrypoint):
        yield "backoffLimit starts the run anew in a new cluster, from its first step: give it a name=... to continue"
    if spec.get("ttlSecondsAfterFinished", 0) and not spec.get("shutdownAfterJobFinishes"):
        yield "ttlSecondsAfterFinished needs shutdownAfterJobFinishes: true, else the GPUs are kept for ever"


RULES = (asks_for_the_token, stays_inside, pods_can_train, replicas, retries_continue)
