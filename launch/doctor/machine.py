"""Judgement of one machine's facts: versions, disk, shared memory, GPUs, addresses. One function a subject."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from typing import Any

from launch.cluster.token import MAKE_ONE, readable_by_others, token_path, token_source
from launch.doctor.findings import Finding
from launch.versions import locked_version

GIB = 1 << 30
FULL = 0.95  # from here on Ray refuses to work
NEARLY_FULL = 0.9
OPEN_FILES = 4096

Facts = Mapping[str, Any]


def judge_machine(facts: Facts, several: bool = False) -> Iterator[Finding]:
    """All findings about one machine; `several`: whether it must talk to others."""
    yield from versions(facts)
    yield from disks(facts)
    yield from shared_memory(facts)
    yield from open_files(facts)
    yield from gpus(facts)
    if several:
        yield from interface(facts)


def versions(facts: Facts) -> Iterator[Finding]:
    """Packages at the versions of constraints.txt."""
    locked = {name: locked_version(name) for name in facts["versions"]}
    wrong = {name: has for name, has in facts["versions"].items() if has is None or has.split("+")[0] != locked[name]}
    if not wrong:
        text = f"Python {facts['python']}, {len(locked)} packages at the versions of constraints.txt"
        yield Finding("versions", "ok", text, node=facts["host"])
    for name, has in wrong.items():
        text = f"{name} is {has or 'not installed'}, constraints.txt has {locked[name]}"
        grave = has is None or name in ("ray", "torch", "deepspeed")
        todo = "pip install -c constraints.txt -e . on this machine, or use the same image on all"
        yield Finding("versions", "fail" if grave else "warn", text, todo, facts["host"])


def disks(facts: Facts) -> Iterator[Finding]:
    """Room for temporary files (Ray's among them) and for what is stored."""
    for folder, disk in facts["disks"].items():
        used = 1 - disk["free"] / max(disk["total"], 1)
        text = f"{folder}: {disk['free'] / GIB:.1f} GiB free, {used:.0%} used"
        if used >= FULL:
            todo = f"free some space: Ray stops working at {FULL:.0%}, and checkpoints need room"
            yield Finding("disk", "fail", text, todo, facts["host"])
        elif used >= NEARLY_FULL:
            yield Finding("disk", "warn", text, f"free some space before it is {FULL:.0%} full", facts["host"])
        else:
            yield Finding("disk", "ok", text, node=facts["host"])


def shared_memory(facts: Facts) -> Iterator[Finding]:
    """/dev/shm, through which loader processes and NCCL hand on data; containers get 64 MiB unless told otherwise."""
    shm = facts["shared_memory"]
    text = f"/dev/shm: {shm['free'] / GIB:.1f} of {shm['total'] / GIB:.1f} GiB free"
    if shm["free"] < GIB // 4:
        todo = "start the container with --shm-size=64g, or mount an emptyDir of medium Memory at /dev/shm"
        yield Finding("shared memory", "fail", text, todo, facts["host"])
    elif shm["free"] < GIB:
        yield Finding("shared memory", "warn", text, "loader processes with big batches may need more", facts["host"])
    else:
        yield Finding("shared memory", "ok", text, node=facts["host"])


def open_files(facts: Facts) -> Iterator[Finding]:
    """Ray keeps many connections."""
    limit = facts["open_files"]
    if 0 <= limit < OPEN_FILES:
        todo = "put `ulimit -n 65536;` in front of `ray start`"
        yield Finding("open files", "warn", f"at most {limit} open files", todo, facts["host"])


def gpus(facts: Facts) -> Iterator[Finding]:
    """What the driver's own tool sees; `ray_gpus` is what Ray was told."""
    seen, told = len(facts["gpus"]), facts.get("ray_gpus")
    text = f"{seen} x {facts['gpus'][0]}" if seen else "no GPU"
    if told is not None and int(told) != seen:
        todo = f"start Ray there with --num-gpus={seen}, or look why the driver sees {seen}"
        yield Finding("GPUs", "warn", f"{text}, and Ray was told of {int(told)}", todo, facts["host"])
    else:
        yield Finding("GPUs", "ok", text, node=facts["host"])


def interface(facts: Facts) -> Iterator[Finding]:
    """The network interface that gloo and NCCL take: the one named, else the one that the host's name leads to."""
    named, address = facts["interface"], facts["hostname_address"]
    if named:
        known = facts["addresses"]
        if named.lstrip("^") not in known and "," not in named and not named.startswith("^"):
            todo = f"name one of {', '.join(known)}"
            yield Finding("network", "fail", f"GLOO_SOCKET_IFNAME={named} does not exist", todo, facts["host"])
        else:
            yield Finding("network", "ok", f"gloo on {named} {', '.join(known.get(named, []))}", node=facts["host"])
        return
    if address is None or ipaddress.ip_address(address).is_loopback:
        todo = "set GLOO_SOCKET_IFNAME (and NCCL_SOCKET_IFNAME) to the fast network's interface where Ray is started"
        text = f"the host's name leads to {address or 'nowhere'}, which other nodes cannot reach"
        yield Finding("network", "fail", text, todo, facts["host"])
    else:
        yield Finding("network", "ok", f"gloo on {address}, by the host's name", node=facts["host"])


def token(alone: bool) -> Iterator[Finding]:
    """The token on the machine that asks; `alone`: no cluster is asked about."""
    source = token_source()
    if source is None and alone:
        yield Finding("token", "ok", "no token; a local Ray makes its own")
    elif source is None:
        yield Finding("token", "warn", f"no token in RAY_AUTH_TOKEN or {token_path()}", MAKE_ONE)
    elif source != "RAY_AUTH_TOKEN" and readable_by_others(token_path()):
        text = f"{source} can be read by other users of this machine"
        yield Finding("token", "fail", text, f"chmod 600 {source}")
    else:
        yield Finding("token", "ok", f"token from {source}")
