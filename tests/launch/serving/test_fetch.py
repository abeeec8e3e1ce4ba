"""URLs in records: below a listed prefix and nowhere else, within bounds of bytes, time and redirects."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from launch.serving.fetch import fetch, parsed
from launch.serving.limits import RefusedError
from launch.serving.prefix import Prefix

DATA = bytes(range(256)) * 40  # 10,240 bytes
SEEN: list[str] = []


class Handler(BaseHTTPRequestHandler):
    """A folder that may be fetched, one that may not, and ways from one to the other."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        SEEN.append(self.path)
        place = self.path.partition("?")[0]
        leads = {
            "/open/round": "round",
            "/open/out": "/closed/a",
            "/open/on": "sub/../a",
            "/open/away": "http://127.0.0.2/a",
        }
        leads["/open/step"] = "/open/a"
        if place in leads:
            self.send_response(302)
            self.send_header("Location", leads[place])
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif place == "/open/drip":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            while True:
                self.wfile.write(b".")
                time.sleep(0.05)
        elif place == "/open/short":
            self.send_response(200)
            self.send_header("Content-Length", "20000")
            self.end_headers()
            self.wfile.write(DATA)
            self.close_connection = True
        elif place == "/open/endless":
            self.send_response(200)
            self.end_headers()
            while True:
                self.wfile.write(DATA)
        else:
            self.send_response(200 if place.endswith("/a") else 404)
            self.send_header("Content-Length", str(len(DATA)))
            self.end_headers()
            self.wfile.write(DATA)

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # whoever asked has gone
            super().handle()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as own:
        own.daemon_threads = True
        threading.Thread(target=own.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{own.server_address[1]}"
        own.shutdown()


def get(url: str, prefix: str, most: int = 1 << 20, seconds: float = 20.0) -> bytes:
    return fetch(url, (Prefix.of(prefix),), "record 0, modality scan", most, time.monotonic() + seconds)


def test_what_is_below_a_prefix_comes_also_by_a_redirect_that_stays_there(server):
    assert get(f"{server}/open/a", f"{server}/open") == DATA
    assert get(f"{server}/open/a?size=1", f"{server}/open/", most=len(DATA)) == DATA
    assert get(f"{server}/open/step", f"{server}/open") == DATA


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("/open/out", "of no place that this server fetches from"),
        ("/open/away", "of no place that this server fetches from"),
        ("/open/round", "leads on more than 3 times"),
        ("/open/missing", "its URL is answered 404"),
        ("/open/short", "cannot be fetched"),
    ],
)
def test_what_leads_elsewhere_or_nowhere_is_a_sentence(server, path, sentence):
    SEEN.clear()
    with pytest.raises(RefusedError, match=sentence) as refused:
        get(f"{server}{path}", f"{server}/open")
    assert refused.value.status == 422 and not [seen for seen in SEEN if "closed" in seen]


def test_bytes_and_seconds_are_bounded_whatever_the_server_says(server):
    with pytest.raises(RefusedError, match="more than the bytes of a request") as refused:
        get(f"{server}/open/a", f"{server}/open", most=len(DATA) - 1)
    assert refused.value.status == 413
    with pytest.raises(RefusedError, match="more than the bytes"):
        get(f"{server}/open/endless", f"{server}/open", most=100_000)
    started = time.monotonic()
    with pytest.raises(RefusedError, match="did not come in time"):
        get(f"{server}/open/drip", f"{server}/open", seconds=0.5)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    "url",
    [
        "https://a.org/open/x",
        "http://a.org:81/open/x",
        "http://a.org.evil.org/open/x",
        "http://evil.org/open/x#http://a.org/open/",
        "http://a.org/openx",
        "http://a.org/open",
        "http://a.org/",
        "http://a.org/open/../closed",
        "http://a.org/open/%2e%2e/closed",
        "http://a.org/open/%252e%252e/closed",
        "http://a.org/open/..%5cclosed",
        "http://a.org/open\\..\\closed",
        "http://me@a.org/open/x",
        "http://a.org@evil.org/open/x",
        "http://a.org/open/x\r\nHost: b",
        "http://a.org/open/ x",
        "http://a.org:0/open/x",
        "http://a.org:99999/open/x",
        "http:///open/x",
        "http://[::1/open/x",
        "ftp://a.org/open/x",
        "file:///open/x",
        "gopher://a.org/open/x",
    ],
)
def test_nothing_but_what_lies_below_a_prefix_is_taken(url):
    with pytest.raises(RefusedError, match="record 0: the URL") as refused:
        parsed(url, (Prefix.of("http://a.org/open"),), "record 0")
    assert refused.value.status == 422


def test_a_prefix_is_the_same_however_it_is_written():
    prefix = Prefix.of("HTTP://A.org:80/open")
    assert prefix == Prefix("http", "a.org", 80, "/open/") == Prefix.of("http://a.org./open/")
    assert parsed("http://a.ORG/open/%78", (prefix,), "").path == "/open/%78"


@pytest.mark.parametrize("url", ["s3://bucket/x", "http://", "http://a.org/x?y=1", "http://u:p@a.org/", "a.org/x"])
def test_a_prefix_that_is_none_is_a_sentence(url):
    with pytest.raises(ValueError, match=r"^--allow-url "):
        Prefix.of(url)


def test_a_server_fetches_nothing_unless_asked_to():
    with pytest.raises(RefusedError, match="this server fetches none: send the file in base64"):
        parsed("http://a.org/x", (), "record 0")
