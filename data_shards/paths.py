"""What people write for a place, and what it means: a path of this machine, or the URL of another store.

Every option, recipe key and mapping entry that names a file or a folder is read here and nowhere else:

    data/x, ./x, ../x        from a root: the working folder, or the folder of the file that says it
    ~/x, ~user/x             from a home folder; a folder that is called ~ is ./~
    /x, file:///x, file://localhost/x, local:///x     the path /x
    s3://bucket/x, ...       in another store: as it is; which stores there may be is decided by who opens it

After `file://` every character belongs to the path, `#`, `?` and `%20` too: nothing is cut off and nothing is decoded,
as in fsspec's local file system, which opens what comes out of here.
"""

from __future__ import annotations

import re
from pathlib import Path

from data_shards.errors import PathError

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_HERE = ("file", "local")  # schemes of this machine's file system; they mean the same


def split_scheme(typed: str) -> tuple[str, str]:
    """(scheme in small letters, the rest): for this machine "file" and the path as typed, else the whole URL.

    Raises:
        PathError: nothing at all, a chained or piped URL, a file of another machine.
    """
    if not typed:
        raise PathError("an empty path names no place: give a folder, a file or a URL")
    _refuse_chain(typed)
    url = _URL.fullmatch(typed)
    if url is None:
        if typed.lower().startswith(tuple(f"{scheme}:" for scheme in _HERE)):
            raise PathError(f"{typed!r} is half a URL: write file:///PATH, or the path; ./{typed} if it is called so")
        return "file", typed
    scheme, rest = url[1].lower(), url[2]
    if scheme not in _HERE:
        return scheme, f"{scheme}://{rest}"
    host, slash, path = rest.partition("/")
    if host.lower() not in ("", "localhost") or not slash:
        host = host.rpartition("@")[2]
        about = f"begins with the name of a machine, {host!r}" if host else "has no path"
        raise PathError(f"a {scheme}:// URL {about}: write {scheme}:///PATH with three slashes, or just the path")
    return "file", f"/{path}"


def absolute_url(typed: str, root: Path | None = None) -> str:
    """What was typed as everything else takes it: an absolute path of this machine, else a URL. Idempotent.

    Args:
        root: absolute folder that relative paths start from; None = the working folder.

    Raises:
        PathError: as `split_scheme`, or `~user` without such a user.
    """
    scheme, place = split_scheme(typed)
    if scheme != "file":
        return place
    # The home first: pathlib would take ./~ for it, too.
    path = str((root or Path.cwd()) / _from_home(place))
    _refuse_chain(path)
    return path


def absolute_path(typed: str, root: Path | None = None) -> Path:
    """The same for what can only lie on this machine. Raises PathError also for URLs of other stores."""
    if not is_local(typed):
        raise PathError(f"{typed!r} is a URL, and this has to be a file or folder of this machine")
    return Path(absolute_url(typed, root))


def is_local(typed: str) -> bool:
    """Whether it is a path of this machine's file system, however it is written. Raises PathError."""
    return split_scheme(typed)[0] == "file"


def is_relative(typed: str) -> bool:
    """Whether it depends on the folder that one is in. Raises PathError."""
    scheme, place = split_scheme(typed)
    return scheme == "file" and not place.startswith(("/", "~"))


def _from_home(path: str) -> Path:
    if not path.startswith("~"):
        return Path(path)
    try:
        return Path(path).expanduser()
    except RuntimeError:
        user = path[1:].split("/")[0]
        raise PathError(f"{path!r}: there is no user {user!r} here; a folder of that name is ./{path}") from None


def _refuse_chain(text: str) -> None:
    if "::" in text or text.lower().startswith("pipe:"):
        raise PathError(f"{text!r}: chained and pipe: URLs run other programs or file systems; give one plain URL")
