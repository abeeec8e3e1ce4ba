"""Files behind URLs in records: only of places that whoever serves has listed, and never from anywhere else.

Redirects are followed a few times, if each is below a listed prefix, too. No proxy is asked, no cookie or login sent.
"""

from __future__ import annotations

import http.client
import socket
import threading
import time
from contextlib import suppress
from urllib.parse import SplitResult, urljoin

from launch.serving.limits import RefusedError
from launch.serving.prefix import Prefix, place, split

_REDIRECTS = (301, 302, 303, 307, 308)
MOST_REDIRECTS = 3
_CHUNK = 1 << 16


def parsed(url: str, prefixes: tuple[Prefix, ...], where: str) -> SplitResult:
    """The parts of a URL that may be fetched. Raises RefusedError: it may not."""
    if not prefixes:
        raise RefusedError(422, f"{where} is a URL, and this server fetches none: send the file in base64")
    try:
        parts = split(url)
    except ValueError as error:
        raise RefusedError(422, f"{where}: the URL cannot be taken: {error}") from None
    if not any(prefix.holds(parts) for prefix in prefixes):
        raise RefusedError(422, f"{where}: the URL is of no place that this server fetches from")
    return parts


def fetch(url: str, prefixes: tuple[Prefix, ...], where: str, most: int, deadline: float) -> bytes:
    """The file behind a URL, at most so many bytes, until `deadline` (`time.monotonic`). Raises RefusedError."""
    for _ in range(MOST_REDIRECTS + 1):
        parts = parsed(url, prefixes, where)
        try:
            answer = _get(parts, most, deadline)
        except (OSError, http.client.HTTPException, ValueError) as error:
            if time.monotonic() >= deadline:
                raise RefusedError(422, f"{where}: what its URL leads to did not come in time") from None
            raise RefusedError(422, f"{where}: its URL cannot be fetched ({type(error).__name__})") from None
        if isinstance(answer, str):
            url = urljoin(url, answer)
        elif isinstance(answer, int):
            raise RefusedError(422, f"{where}: its URL is answered {answer}")
        elif len(answer) > most:
            raise RefusedError(413, f"{where}: the files of the request's URLs have more than the bytes of a request")
        else:
            return answer
    raise RefusedError(422, f"{where}: its URL leads on more than {MOST_REDIRECTS} times")


def _get(parts: SplitResult, most: int, deadline: float) -> bytes | str | int:
    """A file, of a too large one one byte more than `most`; where else to look; or another status."""
    left = max(0.001, deadline - time.monotonic())
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(*place(parts), timeout=left)
    try:
        connection.connect()
        # A server that sends a byte now and then meets every timeout of a read, so the connection is cut in the end.
        timer = threading.Timer(max(0.0, deadline - time.monotonic()), _cut, (connection.sock,))
        timer.daemon = True
        timer.start()
        try:
            connection.request("GET", parts._replace(scheme="", netloc="", fragment="").geturl() or "/")
            answer = connection.getresponse()
            if answer.status in _REDIRECTS:
                return answer.headers.get("Location", "")
            return _body(answer, most, deadline) if answer.status == 200 else answer.status
        finally:
            timer.cancel()
    finally:
        connection.close()


def _body(answer: http.client.HTTPResponse, most: int, deadline: float) -> bytes:
    length = answer.length  # as the server says; None: it does not
    data = bytearray()
    while len(data) <= most and (chunk := answer.read1(min(_CHUNK, most + 1 - len(data)))):
        data += chunk
    if time.monotonic() >= deadline or (len(data) <= most and length is not None and len(data) != length):
        raise OSError("it ends before its end")
    return bytes(data)


def _cut(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
