"""The door: a copy that dies costs nobody an answer, and what cannot be answered is one sentence."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

from benchmarks.served import Client
from launch.serving import door as doors
from launch.serving.limits import Limits
from tests.launch.serving.house import TOKEN, Handle, door_at


def served(answer: Any, limits: Limits | None = None) -> Any:
    async def schema() -> bytes:
        return b'{"tasks": []}'

    return door_at(Handle({"answer": answer, "schema": schema}), limits)


def dying(times: int) -> Any:
    """A model whose copies die at the first so many requests."""
    from ray.exceptions import ActorDiedError

    left = [times]

    async def answer(body: bytes, explain: bool) -> tuple[int, bytes]:
        left[0] -= 1
        if left[0] >= 0:
            raise ActorDiedError
        return 200, json.dumps({"body": body.decode(), "explain": explain}).encode()

    return answer


def test_a_request_whose_copy_dies_goes_to_another():
    with served(dying(doors.TRIES - 1)) as url:
        client = Client(url, TOKEN)
        assert client.ask("/explain", b"{}") == (200, {"body": "{}", "explain": True})
        assert f"fleximoe_retries_total {doors.TRIES - 1}" in client.ask("/metrics")[1]


def test_a_request_that_kills_all_of_them_is_given_up():
    with served(dying(doors.TRIES)) as url:
        status, said = Client(url, TOKEN).ask("/predict", b"{}")
        assert status == 503 and said["error"].startswith(f"{doors.TRIES} copies of the model have died")


def test_what_cannot_wait_any_more_is_sent_away(monkeypatch):
    monkeypatch.setattr(doors, "MOST_BYTES", 10)
    monkeypatch.setattr(doors, "ANSWER_S", 0.2)

    async def slow(body: bytes, explain: bool) -> tuple[int, bytes]:
        await asyncio.sleep(30)
        return 200, b"{}"

    with served(slow) as url:
        client = Client(url, TOKEN)
        assert client.ask("/predict", b"12345678901") == (503, {"error": doors._BUSY})
        assert client.ask("/predict", b"1") == (504, {"error": doors._SLOW})
        assert client.ask("/predict", b"1234567890")[0] == 504  # what was given up holds no bytes any more


def test_what_fails_is_said_without_saying_how():
    async def broken(body: bytes, explain: bool) -> tuple[int, bytes]:
        raise RuntimeError("a secret")

    with served(broken) as url:
        status, said = Client(url, TOKEN).ask("/predict", b"{}")
        assert status == 500 and "secret" not in said["error"] and "its log says where" in said["error"]


def test_nobody_without_the_token_comes_in_but_to_the_page():
    with served(dying(0)) as url:
        client = Client(url, "")
        for path, body in (("/predict", b"{}"), ("/explain", b"{}"), ("/schema", None), ("/metrics", None)):
            status, said = client.ask(path, body)
            assert status == 401 and "token is missing or wrong" in (said if isinstance(said, str) else said["error"])
        assert client.ask("/healthz") == (200, {"status": "ok"})
        assert Client(url, TOKEN).ask("/schema") == (200, {"tasks": []})
