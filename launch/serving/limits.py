"""What a server takes: how large a request may be, how many records, how many pixels; and records out of a request."""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_shards.records.schema import DatasetSchema


@dataclass(frozen=True)
class Limits:
    """Bounds on one request.

    Attributes:
        bytes: of its body. records: in it. pixels: of all pictures in it that are files, before they are fitted.
    """

    bytes: int = 16 << 20
    records: int = 1_000
    pixels: int = 50_000_000


class RefusedError(ValueError):
    """A request that is not answered; `status` of HTTP, and a sentence for whoever sent it."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


async def read_body(length: str | None, chunks: AsyncIterator[bytes], most: int) -> bytes:
    """The body of a request; a larger one is refused before it is read, or where it passes the bound."""
    too_large = RefusedError(413, f"the request is larger than {most:,} bytes: send fewer records at a time")
    if length is not None and length.isdigit() and int(length) > most:
        raise too_large
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > most:
            raise too_large
    return bytes(body)


def plain_records(body: bytes, schema: DatasetSchema, limits: Limits) -> list[Mapping[str, Any]]:
    """The records of a request: an object `{"records": [...]}`, a list, or one record.

    Raises RefusedError: no JSON, no record, too many of them, or pictures too large to decode.
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
    _check_pixels(records, schema, limits.pixels)
    return records


def _check_pixels(records: Sequence[Mapping[str, Any]], schema: DatasetSchema, most: int) -> None:
    """Refuse pictures that are small as files and large as pixels; what is no picture is refused later, by name."""
    images = [spec for spec in schema.modalities if spec.kind == "image"]
    total = 0
    for number, record in enumerate(records):
        for spec in images:
            value = record.get(spec.name)
            files = value.get("values") if spec.timed and isinstance(value, dict) else [value]
            for file in files if isinstance(files, list) else ():
                total += _pixels(file) if isinstance(file, str) else 0
                if total > most:
                    raise RefusedError(
                        413, f"the pictures up to record {number}, {spec.name}, have more than {most:,} pixels: send "
                        "smaller ones, or fewer at a time"
                    )  # fmt: skip


def _pixels(text: str) -> int:
    """Of a picture's file in base64, by its head; 0 of what is none."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True))) as picture:
            return int(picture.width * picture.height)
    except (binascii.Error, UnidentifiedImageError, OSError, ValueError):
        return 0
    except Image.DecompressionBombError:
        return 1 << 62
