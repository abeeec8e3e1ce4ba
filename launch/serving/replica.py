"""One copy of a model: reads the records of requests, and puts those of several into one batch."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from launch.serving.batcher import Batcher
from launch.serving.limits import Limits, RefusedError
from launch.serving.media import check_media, fetch_all
from launch.serving.requests import plain_records
from launch.serving.source import Version

if TYPE_CHECKING:
    from trainer.inference.portable.model import PortableModel

logger = logging.getLogger(__name__)

_AT_ONCE = 8  # requests whose pictures are fetched; others wait
_LONG = 50  # rows from which on an answer is written off the loop
Said = tuple[int, bytes]  # status of HTTP, JSON


class Board:
    """An actor that says which version is served: copies of the model start at any time."""

    def __init__(self, version: Version) -> None:
        self._version = version

    def served(self) -> Version:
        """The version of now."""
        return self._version

    def serve(self, version: Version) -> None:
        """From now on it is this one."""
        self._version = version


@dataclass(frozen=True)
class Loaded:
    """A model with the batches that gather for it: a request is read, computed and answered by one of them."""

    version: Version
    model: PortableModel
    batches: Batcher


class Replica:
    """What Ray Serve runs in `--replicas` processes, behind the door.

    Args:
        board: actor that knows which version is served now (`Board`).
        batch_records, wait_ms: a batch goes when it holds so many records, or so long after its first one.
    """

    def __init__(self, board: Any, limits: Limits, batch_records: int, wait_ms: float, device: str) -> None:
        import ray
        import torch

        torch.set_num_threads(1)
        self._limits, self._device = limits, device
        self._gather = batch_records, wait_ms / 1000
        self._counts = {"fleximoe_batches_total": 0, "fleximoe_records_total": 0}
        self._fetchers = ThreadPoolExecutor(_AT_ONCE)
        self._switching = asyncio.Lock()
        self._loaded = self._load(ray.get(board.served.remote()))

    async def answer(self, body: bytes, explain: bool) -> Said:
        """What the model says of a request's records, or the sentence why it does not."""
        loaded = self._loaded  # to the end, also if another version is switched to meanwhile
        try:
            samples = await self._read(body, loaded)
            rows = await loaded.batches(samples, explain)
        except RefusedError as error:
            return error.status, as_json({"error": str(error)})
        answer = {"predictions": rows, "version": loaded.version.name}
        return 200, await asyncio.to_thread(as_json, answer) if len(rows) > _LONG else as_json(answer)

    async def schema(self) -> bytes:
        """What the model takes and answers, as JSON."""
        loaded = self._loaded
        about = {**loaded.model.description, "example": loaded.model.example, "version": loaded.version.name}
        return as_json(about)

    async def switch(self, version: Version) -> str:
        """Answer further requests by this version, once it is loaded; its name. Nothing is kept waiting meanwhile."""
        async with self._switching:
            if version != self._loaded.version:
                self._loaded = await asyncio.to_thread(self._load, version)
        return self._loaded.version.name

    async def counts(self) -> dict[str, int]:
        """Counters of this copy."""
        return dict(self._counts)

    def _load(self, version: Version) -> Loaded:
        from trainer.ensemble.portable import open_export

        model = open_export(version.url, self._device)
        model.predict(model.records([model.example]))  # what is made at the first use is made before the first request

        def said(samples: list[Any], explain: bool) -> list[dict[str, Any]]:
            self._counts["fleximoe_batches_total"] += 1
            self._counts["fleximoe_records_total"] += len(samples)
            try:
                rows: list[dict[str, Any]] = model.said(samples, explain=explain).to_pylist()
            except ValueError as error:  # a model that cannot be explained
                raise RefusedError(422, " ".join(str(error).split())) from None
            return rows

        return Loaded(version, model, Batcher(said, *self._gather))

    async def _read(self, body: bytes, loaded: Loaded) -> list[Any]:
        """Records of a request as samples, off the loop: nobody else waits for what they cost. Raises RefusedError."""
        schema, limits = loaded.model.schema, self._limits
        records, urls = await asyncio.to_thread(plain_records, body, schema, limits)
        if urls:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._fetchers, fetch_all, urls, limits)
        return await asyncio.to_thread(_samples, records, loaded.model, limits)


def _samples(records: list[Any], model: PortableModel, limits: Limits) -> list[Any]:
    check_media(records, model.schema, limits)
    try:
        made = model.records(records)
        return [(own, number) for number, record in enumerate(made) for own in model.columns(record)]
    except ValueError as error:
        raise RefusedError(422, " ".join(str(error).split())) from None


def as_json(value: Any) -> bytes:
    """JSON has no NaN: null."""
    try:
        return json.dumps(value, allow_nan=False).encode()
    except ValueError:
        return json.dumps(_without_nan(value)).encode()


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_nan(own) for key, own in value.items()}
    return [_without_nan(own) for own in value] if isinstance(value, list) else value
