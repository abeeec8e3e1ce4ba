"""One replica of a model: answers requests, and puts records of several into one batch."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import math
import time
from typing import Any

from launch.serving.counts import Counts
from launch.serving.limits import Limits, RefusedError, plain_records, read_body

logger = logging.getLogger(__name__)

PATHS = ("/predict", "/explain", "/schema", "/healthz", "/metrics")
_OPEN = ("/healthz",)  # a balancer asks without a token


class Replica:
    """What Ray Serve runs; `launch.serving.start` says in how many copies.

    Args:
        url: of an export. token: that every request must bring. batch_records, wait_ms: a batch goes when it holds so
            many records, or so long after its first one.
    """

    def __init__(self, url: str, token: str, limits: Limits, batch_records: int, wait_ms: float, device: str) -> None:
        import torch

        from trainer.inference.portable.model import PortableModel

        torch.set_num_threads(1)
        self._model = PortableModel(url, device)
        self._token, self._limits = token, limits
        self._counts = Counts(_own_name())
        self._batcher = Batcher(self._said, batch_records, wait_ms / 1000)

    async def __call__(self, request: Any) -> Any:
        """An answer to a Starlette request, always in JSON but for metrics."""
        from starlette.responses import PlainTextResponse, Response

        path, started = request.url.path.rstrip("/") or "/", time.perf_counter()
        status = 200
        try:
            self._admit(request, path)
            if path == "/metrics":
                return PlainTextResponse(self._counts.text())
            answer = await self._answer(request, path)
        except RefusedError as error:
            status, answer = error.status, {"error": str(error)}
        except Exception:
            status, answer = 500, {"error": "the server failed at this request; its log says where"}
            logger.exception("a request to %s failed", path)
        finally:
            known = path if path in PATHS else "other"  # labels that a stranger cannot make up
            self._counts.add("fleximoe_requests_total", path=known, status=status)
            self._counts.add("fleximoe_request_seconds_total", time.perf_counter() - started, path=known)
        return Response(json.dumps(_without_nan(answer)), status, media_type="application/json")

    def _admit(self, request: Any, path: str) -> None:
        """Raise RefusedError: an unknown path, the wrong method, or no token."""
        if path not in PATHS:
            raise RefusedError(404, f"there is nothing at this path; there are {', '.join(PATHS)}")
        method = "POST" if path in ("/predict", "/explain") else "GET"
        if request.method != method:
            raise RefusedError(405, f"{path} takes {method}")
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if path not in _OPEN and not hmac.compare_digest(given.encode(), self._token.encode()):
            raise RefusedError(401, "the token is missing or wrong: send the header Authorization: Bearer TOKEN")

    async def _answer(self, request: Any, path: str) -> Any:
        if path == "/healthz":
            return {"status": "ok"}
        if path == "/schema":
            return {**self._model.description, "example": self._model.example}
        body = await read_body(request.headers.get("content-length"), request.stream(), self._limits.bytes)
        # Off the loop: what one request costs to read keeps no other one, nor a health check, waiting.
        samples = await asyncio.to_thread(self._samples, body)
        explain = path == "/explain"
        rows = await self._batcher(samples, explain)
        return {"predictions": rows}

    def _samples(self, body: bytes) -> list[Any]:
        """Records of a request as samples. Raises RefusedError."""
        model = self._model
        given = plain_records(body, model.schema, self._limits)
        try:
            records = model.records(given)
            return [(own, number) for number, record in enumerate(records) for own in model.columns(record)]
        except ValueError as error:
            raise RefusedError(422, " ".join(str(error).split())) from None

    def _said(self, samples: list[Any], explain: bool) -> list[dict[str, Any]]:
        self._counts.add("fleximoe_batches_total")
        self._counts.add("fleximoe_records_total", len(samples))
        try:
            rows: list[dict[str, Any]] = self._model.said(samples, explain=explain).to_pylist()
        except ValueError as error:  # a model that cannot be explained
            raise RefusedError(422, str(error)) from None
        return rows


class Batcher:
    """Samples of several requests in one call.

    A request that comes first waits `wait_s` for others, unless they fill the batch before; while one batch is
    computed the next one gathers. Rows come back in the order of each request.
    """

    def __init__(self, said: Any, most: int, wait_s: float) -> None:
        self._said, self._most, self._wait_s = said, most, wait_s
        self._waiting: dict[bool, list[tuple[list[Any], asyncio.Future[Any]]]] = {False: [], True: []}
        self._timers: dict[bool, asyncio.TimerHandle | None] = {False: None, True: None}
        self._one = asyncio.Lock()  # the model is computed by one thread at a time
        self._tasks: set[asyncio.Task[None]] = set()

    async def __call__(self, samples: list[Any], explain: bool) -> list[dict[str, Any]]:
        """The rows of these samples. Raises whatever the call raises, in every request of the batch."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._waiting[explain].append((samples, future))
        if sum(len(own) for own, _ in self._waiting[explain]) >= self._most:
            self._go(explain)
        elif self._timers[explain] is None:
            self._timers[explain] = loop.call_later(self._wait_s, self._go, explain)
        rows: list[dict[str, Any]] = await future
        return rows

    def _go(self, explain: bool) -> None:
        timer, self._timers[explain] = self._timers[explain], None
        if timer is not None:
            timer.cancel()
        batch, self._waiting[explain] = self._waiting[explain], []
        task = asyncio.get_running_loop().create_task(self._run(batch, explain))
        self._tasks.add(task)  # the loop itself would let go of it
        task.add_done_callback(self._tasks.discard)

    async def _run(self, batch: list[tuple[list[Any], asyncio.Future[Any]]], explain: bool) -> None:
        joined = [sample for samples, _ in batch for sample in samples]
        try:
            async with self._one:
                rows = await asyncio.to_thread(self._said, joined, explain)
        except Exception as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        start = 0
        for samples, future in batch:
            if not future.done():  # whoever asked may have gone
                future.set_result(rows[start : start + len(samples)])
            start += len(samples)


def _own_name() -> str:
    from ray import serve

    return str(serve.get_replica_context().replica_id.unique_id)


def _without_nan(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_nan(own) for key, own in value.items()}
    return [_without_nan(own) for own in value] if isinstance(value, list) else value
