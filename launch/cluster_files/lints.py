"""What must be true of a cluster file before it is worth starting: one small function a rule, each with its sentence.

Ray's own schema finds misspelt keys; it does not know that a start command without a token opens every machine of the
cluster, that a head with CPUs gets training workers, or that experts spread over 16 ranks do not fit into nodes of 8.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Sequence

from launch.cluster_files import kuberay_lints
from launch.cluster_files.description import ClusterFile
from launch.versions import locked_version
from trainer.config.run_config import RunConfig
from trainer.worker.seats import crossing

Rule = Callable[[ClusterFile], Iterator[str]]


def find_problems(file: ClusterFile, config: RunConfig | None = None) -> list[str]:
    """A sentence for each rule that the file breaks; with a recipe, also for what its workers would not find.

    Where the structure is wrong, only that is said: the other rules could not read the file.
    """
    structure, rules = _rules(file)
    wrong = [problem for rule in structure for problem in rule(file)]
    if wrong:
        return wrong
    problems = [problem for rule in (*COMMON, *rules) for problem in rule(file)]
    return problems + (list(recipe_fits(file, config)) if config else [])


def _rules(file: ClusterFile) -> tuple[Sequence[Rule], Sequence[Rule]]:
    """Rules of structure, and the others, for this kind of file."""
    if file.kind == "Slurm":
        return (), COMMANDS
    if file.kind == "ray up" and file.tree["provider"].get("type") == "local":
        return (local_types, local_limits, schema_holds), (*COMMANDS, *LOCAL)
    if file.kind == "ray up":
        return (schema_holds,), (*COMMANDS, *CLOUD)
    return (kuberay_lints.fields_are_published,), kuberay_lints.RULES


def version_is_locked(file: ClusterFile) -> Iterator[str]:
    """Ray in the file is the Ray that this was tested with."""
    locked = locked_version("ray")
    for where, version in file.versions:
        if version != locked:
            yield f"{where} is Ray {version}, and constraints.txt has {locked}: all nodes and clients need the same"


def head_takes_no_work(file: ClusterFile) -> Iterator[str]:
    """Workers of training would share the head with drivers and the cluster's own services."""
    if file.head_work:
        yield f"the head takes training workers: {file.head_work}"


def nodes_are_alike(file: ClusterFile) -> Iterator[str]:
    """Ranks are dealt to nodes of one size."""
    sizes = {group.name: group.gpus for group in file.groups}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {gpus if gpus is not None else 'unknown'}" for name, gpus in sizes.items())
        yield f"nodes have different numbers of GPUs ({listed}): expert-parallel groups need nodes of one size"


def every_start_asks_for_the_token(file: ClusterFile) -> Iterator[str]:
    """A Ray without a token runs whatever a stranger sends it."""
    commands = [*file.head_starts, *file.worker_starts]
    exported = "export RAY_AUTH_MODE=token" in file.text
    for where, starts in (("head", file.head_starts), ("worker", file.worker_starts)):
        if not starts:
            yield f"no `ray start` command for the {where}: without one of its own Ray starts open to strangers"
    for command in commands:
        if "RAY_AUTH_MODE=token" not in command and not exported:
            yield f"start command without a token: put RAY_AUTH_MODE=token in front of {_short(command)}"


def dashboard_stays_inside(file: ClusterFile) -> Iterator[str]:
    """The dashboard takes jobs."""
    for command in file.head_starts:
        host = re.search(r"--dashboard-host[= ](\S+)", command)
        if host and host[1] not in ("127.0.0.1", "localhost"):
            yield f"the dashboard listens on {host[1]}: use --dashboard-host=127.0.0.1 and reach it by tunnel"


def stopping_leaves_time(file: ClusterFile) -> Iterator[str]:
    """Ray gives a stopped job 3 seconds unless told otherwise, which no checkpoint is written in."""
    if file.kind != "Slurm" and "RAY_JOB_STOP_WAIT_TIME_S" not in file.text:
        yield "a stopped job is killed after 3 s, before its checkpoint: give the head RAY_JOB_STOP_WAIT_TIME_S=120"


def schema_holds(file: ClusterFile) -> Iterator[str]:
    """Ray's own schema."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    try:
        validate_config(prepare_config(copy.deepcopy(dict(file.tree))))
    except Exception as error:  # jsonschema's, click's and Ray's own types
        first = str(error).strip().split("\n")[0]
        path = ".".join(str(part) for part in getattr(error, "absolute_path", []))
        yield f"Ray refuses {path or 'the file'}: {first}"


def token_reaches_the_nodes(file: ClusterFile) -> Iterator[str]:
    """Every node needs the token's file."""
    if not any(str(path).endswith(".ray/auth_token") for path in file.tree.get("file_mounts") or {}):
        yield "the token does not reach the nodes: add ~/.ray/auth_token: ~/.ray/auth_token to file_mounts"


def nothing_is_public(file: ClusterFile) -> Iterator[str]:
    """No public addresses, no doors in the security group."""
    provider = file.tree["provider"]
    if provider.get("type") == "aws" and provider.get("use_internal_ips") is not True:
        yield "nodes get public addresses: set provider.use_internal_ips: true, and come in by VPN or a jump host"
    for rule in (provider.get("security_group") or {}).get("IpPermissions") or []:
        ranges = [item.get("CidrIp") for item in rule.get("IpRanges") or []]
        ranges += [item.get("CidrIpv6") for item in rule.get("Ipv6Ranges") or []]
        if "0.0.0.0/0" in ranges or "::/0" in ranges:
            port = rule.get("FromPort", "every port")
            yield f"the security group opens port {port} to the whole internet: remove the rule, use a tunnel"


def limits_add_up(file: ClusterFile) -> Iterator[str]:
    """Ray lets the smaller of two limits win without a word."""
    nodes, head = file.tree.get("available_node_types") or {}, file.tree.get("head_node_type")
    total = sum(node.get("max_workers", 0) for name, node in nodes.items() if name != head)
    most = file.tree.get("max_workers", 2)
    if most != total:
        yield f"max_workers is {most}, and the node types add up to {total}: one of them is not what you mean"


def local_addresses(file: ClusterFile) -> Iterator[str]:
    """For machines of your own: addresses that exist once."""
    provider = file.tree["provider"]
    ips = [str(ip) for ip in provider.get("worker_ips") or []]
    if not provider.get("head_ip") or not ips:
        yield "provider local needs head_ip and worker_ips"
    if provider.get("head_ip") in ips:
        yield f"head_ip {provider['head_ip']} is also among worker_ips: a second Ray would start on the head"
    for ip in sorted({ip for ip in ips if ips.count(ip) > 1}):
        yield f"worker_ips holds {ip} twice: two Rays would start on one machine"


def local_limits(file: ClusterFile) -> Iterator[str]:
    """Ray lowers both limits to the number of addresses, and leaves machines out below it, without a word."""
    count = len(file.tree["provider"].get("worker_ips") or [])
    for key in ("min_workers", "max_workers"):
        if file.tree.get(key, count) != count:
            yield f"{key} is {file.tree[key]}, and worker_ips has {count} addresses: they must be equal"


def local_gpus(file: ClusterFile) -> Iterator[str]:
    """For machines of your own nothing looks up the GPUs beforehand."""
    if any(group.gpus is None for group in file.groups):
        yield "the workers' `ray start` does not say how many GPUs a machine has: add --num-gpus=N"


def local_types(file: ClusterFile) -> Iterator[str]:
    """Ray has one type of node for machines of your own, and replaces any other."""
    for key in ("available_node_types", "head_node_type"):
        if key in file.tree:
            yield f"{key} has no meaning with provider local, where every machine is of one type: remove it"


def recipe_fits(file: ClusterFile, config: RunConfig) -> Iterator[str]:
    """The recipe's workers find their GPUs, and its expert-parallel groups fit into nodes."""
    sizes = [group.gpus for group in file.groups]
    if not sizes or None in sizes or not any(sizes):
        return
    total = sum((group.gpus or 0) * group.most for group in file.groups)
    workers = config.parallel.workers
    if workers > total:
        yield f"parallel.workers={workers} need a GPU each, and the file's nodes have {total} at most"
    degree, size = config.parallel.expert_parallel, min(size for size in sizes if size)
    if size % degree and not config.parallel.experts_across_nodes:
        yield crossing(degree, [size])


def _short(command: str) -> str:
    return command if len(command) <= 60 else f"{command[:57]}..."


COMMON = (version_is_locked, head_takes_no_work, nodes_are_alike, stopping_leaves_time)
COMMANDS = (every_start_asks_for_the_token, dashboard_stays_inside)
CLOUD = (token_reaches_the_nodes, nothing_is_public, limits_add_up)
LOCAL = (local_addresses, local_gpus, token_reaches_the_nodes)
