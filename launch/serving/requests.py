"""What is in a request: its bytes, within bounds, and its records."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from data_shards.records.schema import DatasetSchema
from launch.serving.limits import Limits, RefusedError
from launch.serving.media import Place, url_places


async def read_body(length: str | None, chunks: AsyncIterator[bytes], most: int, hold: Callable[[int], None]) -> bytes:
    """The body of a request; a larger one is refused before it is read, or where it passes the bound.

    Args:
        hold: is told of all bytes that are kept, and raises what there is no room for.
    """
    too_large = RefusedError(413, f"the request is larger than {most:,} bytes: send fewer records at a time")
    if length is not None and length.isdigit() and int(length) > most:
        raise too_large
    body = bytearray()
    async for chunk in chunks:
        if len(body) + len(chunk) > most:
            raise too_large
        hold(len(chunk))
        body += chunk
    return bytes(body)


def plain_records(body: bytes, schema: DatasetSchema, limits: Limits) -> tuple[list[dict[str, Any]], list[Place]]:
    """The records of a request, an object `{"records": [...]}`, a list, or one record; and where URLs are in them.

    Raises RefusedError: no JSON, no record, too many of them, or URLs that are not to be fetched.
    """
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RefusedError(422, f"the request is no JSON ({str(error)[:120]})") from None
    if isinstance(given, dict) and set(given) == {"records"} and "records" not in schema.numbers:
        given = given["records"]
    records = given if isinstance(given, list) else [given]
    if not records:
        raise RefusedError(422, 'the request holds no record: send {"records": [{MODALITY: VALUE, ...}]}')
    if len(records) > limits.records:
        raise RefusedError(413, f"the request holds {len(records):,} records, at most {limits.records:,} are taken")
    odd = next((number for number, record in enumerate(records) if not isinstance(record, dict)), None)
    if odd is not None:
        raise RefusedError(422, f"record {odd} is no object: send {{MODALITY: VALUE, ...}}")
    return records, url_places(records, schema, limits)
