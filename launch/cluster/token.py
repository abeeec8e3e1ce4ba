"""The token that closes a Ray to strangers: where it lies, and whether a Ray really asks for it.

Whoever reaches a Ray without a token can run any command on all of its machines; that is what its jobs are for. So
every command of this project that talks to a Ray brings the token, and looks whether one was needed.
"""

from __future__ import annotations

import os
import stat
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple

from launch.errors import UsageError

MAKE_ONE = "`ray get-auth-token --generate` makes one in ~/.ray/auth_token; every machine of the cluster needs the same"


def token_source() -> str | None:
    """Where Ray finds its token, in Ray's own order; None if nowhere."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "RAY_AUTH_TOKEN"
    path = token_path()
    return str(path) if path.is_file() else None


def token_path() -> Path:
    """The token's file."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()


def readable_by_others(path: Path) -> bool:
    """Whether the file's mode lets other users of this machine read it."""
    return bool(path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH))


def bring_token() -> None:
    """Have Ray send the token with every request. Call before the first `import ray`, which reads this once.

    Raises UsageError if there is none; RAY_AUTH_MODE=disabled says that this is meant.
    """
    if os.environ.get("RAY_AUTH_MODE") == "disabled":
        return
    if token_source() is None:
        raise UsageError(
            f"no Ray token: neither RAY_AUTH_TOKEN nor the file {token_path()}; {MAKE_ONE}. For a Ray that is open on "
            "purpose say RAY_AUTH_MODE=disabled"
        )
    os.environ["RAY_AUTH_MODE"] = "token"


class Answer(NamedTuple):
    """HTTP status, and the first kilobyte of what came with it."""

    status: int
    start: str

    @property
    def lists_jobs(self) -> bool:
        """Whether jobs came back: servers of metrics answer 200 to every path."""
        return self.status == 200 and self.start.lstrip().startswith("[")


def answer_to_strangers(url: str, timeout: float = 10.0) -> Answer:
    """What a request without a token gets: 401 where a token is asked for, else what is there.

    Raises OSError if nobody answers, http.client.HTTPException if it is no web server.
    """
    # Ray is on the network of this machine, or at the end of a tunnel: never behind a proxy.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=timeout) as answer:
            return Answer(int(answer.status), answer.read(1024).decode("utf-8", "replace"))
    except urllib.error.HTTPError as error:
        return Answer(error.code, "")
