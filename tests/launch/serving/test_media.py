"""Pictures and sounds in requests: where they are, and how large they may be, before anything is decoded."""

from __future__ import annotations

import base64
import io
import json
import wave
from typing import Any

import pytest
from PIL import Image

from data_shards import DatasetSchema, ModalitySpec, TaskSpec
from launch.serving.limits import Limits, RefusedError
from launch.serving.media import check_media
from launch.serving.prefix import Prefix
from launch.serving.requests import plain_records

SCHEMA = DatasetSchema(
    "s",
    (
        ModalitySpec("scan", "image", shape=(1, 8, 8)),
        ModalitySpec("films", "image", shape=(1, 8, 8), timed=True, horizon=24.0),
        ModalitySpec("voice", "waveform", channels=("mono",), rate=8000.0),
        ModalitySpec("note", "text"),
    ),
    (TaskSpec("died", "binary"),),
)
OPEN = Limits(prefixes=(Prefix.of("https://a.org/x/"),), urls=3)


def png(side: int) -> str:
    stream = io.BytesIO()
    Image.new("1", (side, side)).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def wav(samples: int) -> str:
    stream = io.BytesIO()
    with wave.open(stream, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(2 * samples))
    return base64.b64encode(stream.getvalue()).decode()


def read(record: dict[str, Any], limits: Limits = OPEN) -> list[str]:
    return [place.where for place in plain_records(json.dumps(record).encode(), SCHEMA, limits)[1]]


def test_urls_are_found_where_files_are_wanted_and_nowhere_else():
    url = "https://a.org/x/1.png"
    record = {"scan": url, "films": {"times": [1, 2], "values": [png(8), url]}, "note": url, "key": url}
    assert read(record) == ["record 0, modality scan", "record 0, modality films, value 1"]
    assert read({"voice": url}) == ["record 0, modality voice"]


def test_urls_are_refused_before_anything_is_fetched():
    url = "https://a.org/x/1.png"
    with pytest.raises(RefusedError, match="this server fetches none"):
        read({"scan": url}, Limits())
    with pytest.raises(RefusedError, match="value 0: the URL is of no place"):
        read({"films": {"times": [1], "values": ["https://b.org/x/1.png"]}})
    with pytest.raises(RefusedError, match="holds 4 URLs, at most 3 are fetched") as refused:
        read({"films": {"times": [1, 2, 3, 4], "values": [url] * 4}})
    assert refused.value.status == 413


def test_pixels_and_samples_are_counted_over_all_of_a_request():
    records = [{"scan": png(60)}, {"films": {"times": [1, 2], "values": [png(60), base64.b64decode(png(60))]}}]
    check_media(records, SCHEMA, Limits(pixels=3 * 3600))
    with pytest.raises(
        RefusedError, match="the pictures up to record 1, modality films, value 1 have more than 10,799"
    ):
        check_media(records, SCHEMA, Limits(pixels=3 * 3600 - 1))
    with pytest.raises(RefusedError, match="more than 50,000,000 pixels"):
        check_media([{"scan": png(30_000)}], SCHEMA, Limits())
    check_media([{"voice": wav(900)}, {"voice": wav(100)}], SCHEMA, Limits(samples=1000))
    with pytest.raises(RefusedError, match="the sounds up to record 1, modality voice have more than 999 samples"):
        check_media([{"voice": wav(900)}, {"voice": wav(100)}], SCHEMA, Limits(samples=999))


@pytest.mark.parametrize("value", ["", "no base64", "äöü", "QUJD", base64.b64encode(b"RIFF1234WAVE").decode(), "\x00"])
def test_what_is_no_file_counts_nothing_here(value):
    check_media([{"scan": value, "voice": value, "films": {"times": [1], "values": [value]}}], SCHEMA, Limits())
    check_media([{"films": value}, {"films": {"values": value}}, {"films": [value]}], SCHEMA, Limits())
