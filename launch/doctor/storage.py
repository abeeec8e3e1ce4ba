"""Storage as a run uses it: written, renamed and read from every node, and the same place for all of them."""

from __future__ import annotations

import secrets
from typing import Any

import fsspec

from launch.doctor.findings import Finding

PROBE = 1 << 20  # bytes


def use(url: str, marker: str, options: dict[str, Any] | None = None) -> str | None:
    """Runs on a node: write, rename, read and remove a file, and look for the one called `marker`.

    Returns what went wrong, as text, or None.
    """
    content, name = secrets.token_bytes(PROBE), f"doctor-{secrets.token_hex(8)}"
    made: list[str] = []
    try:
        fs, root = fsspec.url_to_fs(url, **(options or {}))
        fs.makedirs(root, exist_ok=True)
        made.append(f"{root}/{name}")
        fs.pipe_file(made[0], content)
        made.append(f"{root}/{name}-renamed")
        fs.mv(made[0], made[1])
        if fs.cat_file(made[1]) != content:
            return "what was read is not what was written"
        if marker and not fs.exists(f"{root}/{marker}"):
            return "a file that another machine wrote is not there, so this is not the same place"
    except Exception as error:  # every file system has its own types
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    finally:
        _remove(url, made, options)
    return None


def leave_marker(url: str) -> str:
    """Write a small file that the nodes look for; returns its name."""
    fs, root = fsspec.url_to_fs(url)
    fs.makedirs(root, exist_ok=True)
    name = f"doctor-marker-{secrets.token_hex(8)}"
    fs.pipe_file(f"{root}/{name}", b"seen")
    return name


def remove_marker(url: str, name: str) -> None:
    """Take the marker away again."""
    fs, root = fsspec.url_to_fs(url)
    fs.rm_file(f"{root}/{name}")


def judge(url: str, problem: str | None, node: str) -> Finding:
    """What a node found."""
    if problem is None:
        return Finding("storage", "ok", f"{url}: written, renamed, read", node=node)
    todo = "every node needs the same storage, with the right to write: a shared folder, or s3:// and credentials"
    return Finding("storage", "fail", f"{url}: {problem}", todo, node)


def _remove(url: str, paths: list[str], options: dict[str, Any] | None) -> None:
    fs, _ = fsspec.url_to_fs(url, **(options or {}))
    for path in paths:
        if fs.exists(path):
            fs.rm_file(path)
