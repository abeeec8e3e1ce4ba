"""The door of a server: who may come in, how much one may bring, and to which copy of the model it goes.

It holds no model. Should a copy die with requests in it, they go to another one: a prediction changes nothing, so it
can be asked for again.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
from collections.abc import Callable
from typing import Any

from launch.serving.counts import Counts
from launch.serving.limits import Limits, RefusedError
from launch.serving.page.build import headers as page_headers
from launch.serving.page.build import page
from launch.serving.requests import read_body

logger = logging.getLogger(__name__)

METHODS = {"/": "GET", "/predict": "POST", "/explain": "POST", "/schema": "GET", "/healthz": "GET", "/metrics": "GET"}
_OPEN = ("/", "/healthz")  # the page holds nothing of the model, and a balancer has no token
MOST_BYTES = 256 << 20  # of bodies that wait together
BODY_S = 30.0  # for a body to arrive
ANSWER_S = 120.0  # for an answer
TRIES = 4  # copies that a request may die with

_BUSY = "the server has as many requests as it takes: send this one again in a moment"
_SLOW = f"the model has not answered within {ANSWER_S:.0f} s: send fewer records at a time, or this again later"
_DIED = f"{TRIES} copies of the model have died at this request, or before it: send it again later"


class Door:
    """What Ray Serve puts requests to.

    Args:
        models: handle of the copies. token: that every request must bring.
    """

    def __init__(self, models: Any, token: str, limits: Limits) -> None:
        self._models, self._token, self._limits = models, token, limits
        self._counts = Counts()
        self._held = 0

    async def __call__(self, request: Any) -> Any:
        """An answer to a Starlette request, in JSON but for the page and metrics."""
        from starlette.responses import Response

        path, started = request.url.path.rstrip("/") or "/", time.perf_counter()
        status, kind, headers = 200, "application/json", None
        try:
            self._admit(request, path)
            if path == "/":
                body, kind, headers = page().encode(), "text/html", page_headers()
            elif path == "/metrics":
                body, kind = (await self._metrics()).encode(), "text/plain; version=0.0.4"
            else:
                status, body = await self._answer(request, path)
        except RefusedError as error:
            status, body = error.status, _sentence(str(error))
        except Exception:
            status, body = 500, _sentence("the server failed at this request; its log says where")
            logger.exception("a request to %s failed", path)
        finally:
            known = path if path in METHODS else "other"  # labels that a stranger cannot make up
            self._counts.add("fleximoe_requests_total", path=known, status=status)
            self._counts.add("fleximoe_request_seconds_total", time.perf_counter() - started, path=known)
        return Response(body, status, headers, kind)

    def _admit(self, request: Any, path: str) -> None:
        """Raise RefusedError: an unknown path, the wrong method, or no token."""
        if path not in METHODS:
            raise RefusedError(404, f"there is nothing at this path; there are {', '.join(METHODS)}")
        if request.method != METHODS[path]:
            raise RefusedError(405, f"{path} takes {METHODS[path]}")
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if path not in _OPEN and not hmac.compare_digest(given.encode(), self._token.encode()):
            raise RefusedError(401, "the token is missing or wrong: send the header Authorization: Bearer TOKEN")

    async def _answer(self, request: Any, path: str) -> tuple[int, bytes]:
        if path == "/healthz":
            return 200, b'{"status": "ok"}'
        if path == "/schema":
            return 200, await self._ask(self._models.schema)
        held = 0

        def hold(more: int) -> None:
            nonlocal held
            if self._held + more > MOST_BYTES:
                raise RefusedError(503, _BUSY)
            self._held += more
            held += more

        try:
            body = await self._body(request, hold)
            said: tuple[int, bytes] = await self._ask(self._models.answer, body, path == "/explain")
        finally:
            self._held -= held
        return said

    async def _body(self, request: Any, hold: Callable[[int], None]) -> bytes:
        try:
            async with asyncio.timeout(BODY_S):
                length = request.headers.get("content-length")
                return await read_body(length, request.stream(), self._limits.bytes, hold)
        except TimeoutError:
            raise RefusedError(408, f"the request did not arrive within {BODY_S:.0f} s") from None

    async def _ask(self, method: Any, *arguments: Any) -> Any:
        """What one of the copies says; another one, should it die. Raises RefusedError."""
        from ray.exceptions import ActorDiedError, ActorUnavailableError
        from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

        try:
            async with asyncio.timeout(ANSWER_S):
                for _ in range(TRIES):
                    try:
                        return await method.remote(*arguments)
                    except (ActorDiedError, ActorUnavailableError) as error:
                        self._counts.add("fleximoe_retries_total")
                        logger.warning(
                            "a copy of the model is gone (%s); its requests go to another", type(error).__name__
                        )
        except (BackPressureError, DeploymentUnavailableError):
            raise RefusedError(503, _BUSY) from None
        except TimeoutError:
            raise RefusedError(504, _SLOW) from None
        raise RefusedError(503, _DIED)

    async def _metrics(self) -> str:
        """Of the door, and of all copies that live."""
        try:
            found = await self._models.broadcast("counts").results_async(timeout_s=5, return_exceptions=True)
        except Exception as error:  # none lives in this moment
            logger.warning("no copy of the model says its counts (%s)", type(error).__name__)
            found = []
        return self._counts.text([own for own in found if isinstance(own, dict)])


def _sentence(text: str) -> bytes:
    return json.dumps({"error": text}).encode()
