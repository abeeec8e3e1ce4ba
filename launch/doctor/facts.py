"""What one machine says about itself. Runs on every node, so it needs nothing but the standard library and psutil, and
returns plain values."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import psutil

PACKAGES = (
    "ray",
    "torch",
    "deepspeed",
    "mlflow",
    "webdataset",
    "fsspec",
    "numpy",
    "pydantic",
    "safetensors",
    "pyarrow",
)
QUERY = "--query-gpu=name,memory.total,driver_version"


def gather(folders: list[str]) -> dict[str, Any]:
    """Facts about this machine; `folders` are those whose disks matter, besides the one for temporary files."""
    return {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "disks": {folder: _disk(folder) for folder in [tempfile.gettempdir(), *folders]},
        "shared_memory": _disk("/dev/shm"),
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "gpus": _gpus(),
        "addresses": _addresses(),
        "hostname_address": _hostname_address(),
        "interface": os.environ.get("GLOO_SOCKET_IFNAME"),
        "nccl_interface": os.environ.get("NCCL_SOCKET_IFNAME"),
        "listening": _listening(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _disk(folder: str) -> dict[str, int] | None:
    """Bytes of the disk that holds this folder, or would."""
    path = Path(folder)
    while not path.exists() and path != path.parent:
        path = path.parent
    usage = shutil.disk_usage(path)
    return {"total": usage.total, "free": usage.free}


def _gpus() -> list[str]:
    """Name, memory and driver of every GPU, asked of the driver's own tool: a Ray task without GPUs sees none."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    done = subprocess.run([tool, QUERY, "--format=csv,noheader"], capture_output=True, text=True, timeout=60)
    return [line.strip() for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []


def _addresses() -> dict[str, list[str]]:
    """Interface -> its IPv4 addresses."""
    found = {
        name: [address.address for address in addresses if address.family == socket.AF_INET]
        for name, addresses in psutil.net_if_addrs().items()
    }
    return {name: addresses for name, addresses in found.items() if addresses}


def _hostname_address() -> str | None:
    """What gloo and NCCL take for this machine's address unless an interface is named."""
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return None


def _listening() -> list[tuple[str, int, str]]:
    """(address, port, process) of everything of Ray's that listens here."""
    found = set()
    for process in psutil.process_iter(["name", "cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if not any(word in line for word in ("raylet", "gcs_server", "ray/dashboard", "ray::", "ray.util.client")):
            continue
        try:
            connections = process.net_connections("tcp")
        except psutil.Error:  # ended meanwhile, or somebody else's
            continue
        name = next((word for word in ("gcs_server", "agent", "dashboard", "client") if word in line.lower()), "raylet")
        found |= {(each.laddr.ip, each.laddr.port, name) for each in connections if each.status == psutil.CONN_LISTEN}
    return sorted(found)
