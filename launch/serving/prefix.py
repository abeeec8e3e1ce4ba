"""Places whose files may be fetched: a scheme, a host, a port and a folder, `https://pictures.example.org/public/`.

A URL is below one if all of them are the same, none of its segments leads up, and no name or password is in it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import SplitResult, unquote, urlsplit

PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Prefix:
    """What may be fetched: everything in a folder of a server."""

    scheme: str
    host: str
    port: int
    folder: str

    @staticmethod
    def of(url: str) -> Prefix:
        """Raises ValueError, a sentence: it is none."""
        try:
            parts = split(url)
        except ValueError as error:
            raise ValueError(f"--allow-url {url}: {error}") from None
        if parts.query or parts.fragment:
            raise ValueError(f"--allow-url {url}: a prefix is scheme, host and folder, without ? and #")
        folder = unquote(parts.path)
        return Prefix(parts.scheme, *place(parts), folder if folder.endswith("/") else f"{folder}/")

    def holds(self, parts: SplitResult) -> bool:
        """Whether a URL, split by `split`, lies below it."""
        same = (parts.scheme, *place(parts)) == (self.scheme, self.host, self.port)
        return same and unquote(parts.path).startswith(self.folder)


def split(url: str) -> SplitResult:
    """The parts of a URL that means one thing to everybody. Raises ValueError: it does not."""
    if not re.fullmatch(r"[!-~]+", url) or "\\" in url:
        raise ValueError("it holds characters that a URL has not; write them as %XX")
    parts = urlsplit(url)
    if parts.scheme not in PORTS:
        raise ValueError(f"its scheme is {parts.scheme!r}, and only {' and '.join(PORTS)} are fetched")
    if not parts.hostname or "@" in parts.netloc or parts.port == 0:
        raise ValueError("it needs a host, and no name or password")
    path, plain = parts.path, unquote(parts.path)
    while plain != path:  # what is written in %XX twice leads somewhere to a server that reads it twice
        path, plain = plain, unquote(plain)
    if any(segment in (".", "..") for segment in re.split(r"[/\\]", plain)):
        raise ValueError("a part of its path is . or ..")
    return parts


def place(parts: SplitResult) -> tuple[str, int]:
    """Host and port."""
    return str(parts.hostname).lower().rstrip("."), parts.port or PORTS[parts.scheme]
