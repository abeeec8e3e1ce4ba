"""Plain records: each kind's form, what is absent, and one sentence for what has another form."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest

from data_shards import Codes, DatasetSchema, ModalitySpec, Objects, Series, TaskSpec
from trainer.inference.portable.values import ValueFormError, record_of

SCHEMA = DatasetSchema(
    "s",
    (
        ModalitySpec("labs", "series", channels=("K", "Na"), horizon=24.0),
        ModalitySpec("age", "vector", channels=("years", "known")),
        ModalitySpec("drugs", "codes", codes=4, vocabulary="a" * 64, timed=True, horizon=24.0),
        ModalitySpec("ward", "codes", codes=4, vocabulary="b" * 64),
        ModalitySpec("note", "text"),
        ModalitySpec("scan", "image", shape=(1, 2, 3)),
        ModalitySpec("ecg", "waveform", channels=("II",), rate=2.0),
        ModalitySpec("visits", "text", timed=True, horizon=24.0),
    ),
    (TaskSpec("died", "binary"),),
)
WHOLE: dict[str, Any] = {
    "key": "a",
    "labs": {"times": [1, 2.5], "channels": ["Na", "K"], "values": [140, None]},
    "age": {"years": 41},
    "drugs": {"codes": ["x", "y"], "times": [3, 1]},
    "ward": ["north"],
    "note": "quiet",
    "scan": [[[0, 1, 2], [3, 4, 255]]],
    "ecg": [1, 2.5, 3],
    "visits": {"times": [2], "values": ["came"]},
}


def test_every_kind_has_a_form():
    found = record_of(WHOLE, SCHEMA, 7)
    own = found.values
    labs, drugs, visits = own["labs"], own["drugs"], own["visits"]
    assert found.key == "a" and isinstance(labs, Series) and labs.channels_O.tolist() == [1, 0]
    assert labs.times_O.tolist() == [1.0, 2.5] and labs.values_O[0] == 140 and np.isnan(labs.values_O[1])
    np.testing.assert_array_equal(own["age"], np.array([41.0, np.nan], np.float32))
    assert isinstance(drugs, Codes) and drugs.codes == ["x", "y"] and drugs.times_O is not None
    assert drugs.times_O.tolist() == [3.0, 1.0] and isinstance(visits, Objects) and visits.values == ["came"]
    assert own["ward"].codes == ["north"] and own["ward"].times_O is None and own["note"] == "quiet"  # type: ignore[union-attr]
    assert own["scan"].dtype == np.uint8 and own["scan"].tolist() == [[[0, 1, 2], [3, 4, 255]]]  # type: ignore[union-attr]
    assert own["ecg"].tolist() == [[1.0], [2.5], [3.0]]  # type: ignore[union-attr]


def test_null_nan_and_nothing_are_absent():
    found = record_of({"age": None, "note": float("nan"), "ward": ["north"]}, SCHEMA, 7)
    assert found.key == "7" and set(found.values) == {"ward"}


def test_a_picture_is_a_file_in_base64():
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.array([[0, 50, 100], [150, 200, 255]], np.uint8)).save(file, "PNG")
    found = record_of({"scan": base64.b64encode(file.getvalue()).decode()}, SCHEMA, 0)
    assert found.values["scan"].tolist() == [[[0, 50, 100], [150, 200, 255]]]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"bmi": 3}, "record 0 has an entry 'bmi', which is no modality; modalities are labs, age"),
        ({"labs": [1]}, "modality labs is a list, and an object of the lists times, channels, values is wanted"),
        ({"labs": {"times": [], "values": []}}, "modality labs: 'channels' is missing"),
        ({"labs": {"times": [1], "channels": [], "values": [1]}}, r"\(1 times, 0 channels, 1 values\)"),
        ({"labs": {"times": [1], "channels": ["Cl"], "values": [1]}}, "no channel 'Cl'; channels are K, Na"),
        ({"age": [1]}, r"modality age is 1 numbers, and 2 are wanted \(years, known\)"),
        ({"age": ["old", 1]}, "modality age must hold numbers"),
        ({"note": 3}, "modality note is a number, and text is wanted"),
        ({"ward": [3]}, "codes are text, and one is a number"),
        ({"scan": [[[0, 1, 256], [0, 0, 0]]]}, "256 is no whole number from 0 to 255"),
        ({"scan": [[0.5]]}, "modality scan is 1 x 1 numbers, and 1 x 2 x 3 are wanted"),
        ({"scan": "%%%"}, "no base64 of a picture's file"),
        ({"visits": {"times": [1], "values": [2]}}, "modality visits, value 0 is a number, and text is wanted"),
        ([1], "record 0 is a list, and an object is wanted"),
    ],
)
def test_another_form_is_one_sentence(given, sentence):
    with pytest.raises(ValueFormError, match=sentence):
        record_of(given, SCHEMA, 0)


def sound(values: Any, rate: int, kind: str = "WAV") -> str:
    soundfile = pytest.importorskip("soundfile", reason="the extra `sounds` is not installed")
    stream = io.BytesIO()
    soundfile.write(stream, values, rate, format=kind, subtype="PCM_16")
    return base64.b64encode(stream.getvalue()).decode()


@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
def test_a_sounds_file_is_its_samples(kind):
    schema = DatasetSchema(
        "s", (ModalitySpec("voice", "waveform", shape=(2,), rate=100.0),), (TaskSpec("t", "binary"),)
    )
    values = np.array([[0.5, -0.25], [0.0, 0.125], [-1.0, 0.75]])
    text = sound(values, 100, kind)
    for given in (text, base64.b64decode(text)):
        np.testing.assert_array_equal(record_of({"voice": given}, schema, 0).values["voice"], values.astype(np.float32))


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (lambda: sound([0.5] * 9, 3), "record 0, modality ecg has 3 samples per second, and 2 are wanted"),
        (lambda: sound(np.zeros((9, 2)), 2), "record 0, modality ecg: it has 2 channels, and 1 lead is declared"),
        (lambda: sound([0.5] * 9, 2)[:40], "record 0, modality ecg: it is"),
        (lambda: "äöü", "record 0, modality ecg is text that is no base64 of a sound's file"),
        (lambda: base64.b64encode(b"\x93NUMPY and so on").decode(), "record 0, modality ecg is no sound's file"),
    ],
)
def test_a_sound_that_does_not_fit_is_one_sentence(value, sentence):
    with pytest.raises(ValueError, match=sentence):
        record_of({"ecg": value()}, SCHEMA, 0)
