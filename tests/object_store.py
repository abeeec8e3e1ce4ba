"""A real S3 protocol on loopback, for one test."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import boto3
import pytest
import s3fs
from moto.s3.responses import S3Response
from moto.server import ThreadedMotoServer


@contextmanager
def local_s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of an empty bucket; the environment leads every client to it."""
    for name, value in {"ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "y", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    _put_one_after_the_other(monkeypatch)
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    # One server after the other of a process holds the same objects.
    urlopen(Request(f"{url}/moto-api/reset", method="POST"), timeout=10).close()
    boto3.client("s3", endpoint_url=url).create_bucket(Bucket="data")
    s3fs.S3FileSystem.clear_instance_cache()
    yield "s3://data"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@contextmanager
def storage(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A place for one test: the folder itself (`files`), or an empty bucket (`s3`)."""
    if kind == "files":
        yield str(folder)
    else:
        with local_s3(monkeypatch) as url:
            yield url


def _put_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """As S3 does; this server's threads would both find that an object is not there, and both create it."""
    put, lock = S3Response.put_object, threading.Lock()

    def alone(self: S3Response, *arguments: Any) -> Any:
        with lock:
            return put(self, *arguments)

    monkeypatch.setattr(S3Response, "put_object", alone)
