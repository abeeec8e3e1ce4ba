"""Pictures and sounds in records: files in base64, or URLs of them. Their size is seen before they are decoded."""

from __future__ import annotations

import base64
import binascii
import io
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from data_shards.records.schema import DatasetSchema
from launch.serving.fetch import fetch, parsed
from launch.serving.limits import Limits, RefusedError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_FILES = ("image", "waveform")


@dataclass(frozen=True)
class Place:
    """Where a file is in the records of a request: an entry of a record, or of its list of timed objects."""

    holder: Any
    entry: Any
    kind: str
    where: str

    @property
    def value(self) -> Any:
        """What is there: base64, a URL, or the bytes of a file."""
        return self.holder[self.entry]


def places(records: Sequence[dict[str, Any]], schema: DatasetSchema) -> Iterator[Place]:
    """All texts and bytes where a picture or a sound is wanted."""
    media = [spec for spec in schema.modalities if spec.kind in _FILES]
    for number, record in enumerate(records):
        for spec in media:
            value, where = record.get(spec.name), f"record {number}, modality {spec.name}"
            if isinstance(value, str | bytes) and not spec.timed:
                yield Place(record, spec.name, spec.kind, where)
            values = value.get("values") if spec.timed and isinstance(value, dict) else None
            for entry, own in enumerate(values if isinstance(values, list) else ()):
                if isinstance(own, str | bytes):
                    yield Place(values, entry, spec.kind, f"{where}, value {entry}")


def url_places(records: Sequence[dict[str, Any]], schema: DatasetSchema, limits: Limits) -> list[Place]:
    """Where URLs are. Raises RefusedError: too many, or one that is not to be fetched; nothing is fetched here."""
    found = [own for own in places(records, schema) if isinstance(own.value, str) and _URL.match(own.value)]
    for own in found:
        parsed(own.value, limits.prefixes, own.where)
    if len(found) > limits.urls:
        raise RefusedError(413, f"the request holds {len(found):,} URLs, at most {limits.urls} are fetched")
    return found


def fetch_all(found: Sequence[Place], limits: Limits) -> None:
    """Put files into the places of their URLs. Raises RefusedError."""
    deadline, left = time.monotonic() + limits.seconds, limits.bytes
    for own in found:
        data = fetch(own.value, limits.prefixes, own.where, left, deadline)
        left -= len(data)
        own.holder[own.entry] = data


def check_media(records: Sequence[dict[str, Any]], schema: DatasetSchema, limits: Limits) -> None:
    """Refuse what is small as a file and large as numbers; what is no picture or sound is refused later, by name."""
    totals = dict.fromkeys(_FILES, 0)
    bounds = {"image": (limits.pixels, "pictures", "pixels"), "waveform": (limits.samples, "sounds", "samples")}
    for own in places(records, schema):
        data = _bytes(own.value)
        totals[own.kind] += _pixels(data) if own.kind == "image" else _samples(data)
        most, what, units = bounds[own.kind]
        if totals[own.kind] > most:
            raise RefusedError(
                413,
                f"the {what} up to {own.where} have more than {most:,} {units}: send smaller ones, or fewer at a time",
            )


def _bytes(value: str | bytes) -> bytes:
    try:
        return value if isinstance(value, bytes) else base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        return b""


def _pixels(data: bytes) -> int:
    """Of a picture's file, by its head; 0 of what is none."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as picture:
            return int(picture.width * picture.height)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        return 0
    except Image.DecompressionBombError:
        return 1 << 62


def _samples(data: bytes) -> int:
    """Of a sound's file, by its head; 0 of what is none, or where sounds cannot be read."""
    try:
        import soundfile
    except ImportError:
        return 0
    try:
        about = soundfile.info(io.BytesIO(data))
    except (soundfile.SoundFileError, ValueError, OSError):
        return 0
    return int(about.frames) * int(about.channels)
