"""Records in the plain form of JSON and of data frames: one entry a modality, none for what is absent.

    {"key": "s1", "numbers": [41.0, null], "notes": "quiet night",
     "vitals": {"times": [0.5, 1.0], "channels": ["HR", "SpO2"], "values": [80, 97]}}

=================  ==================================================================================
kind               value
=================  ==================================================================================
vector             a list of numbers, null for one that is not known; or an object, channel -> number
series             lists of equal length `times`, `channels` (names), `values`
codes              a list of text; with times or values an object of lists `codes`, `times`, `values`
text               text
image              lists (C, H, W) of numbers; or a picture's file (PNG, JPEG, ...), as bytes or in base64
waveform           lists (L, C) of numbers; of one channel also a list; or a sound's file (WAV, FLAC, ...), as bytes or
                   in base64, at the model's rate
timed ones         an object of lists `times` and `values`, the values as above
=================  ==================================================================================

null, NaN and an entry that is left out mean that the modality is absent. `key` names the record, and `moments` are
times at which it is predicted, where the model predicts at moments; both may be left out.

Shapes: O events, N objects, C channels, F features.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from data_shards.records.record import Codes, Objects, Record, Series, Value
from data_shards.records.schema import MAX_LENGTH, DatasetSchema, ModalitySpec

KEY, MOMENTS = "key", "moments"
Fields = Mapping[str, Any]


class ValueFormError(ValueError):
    """A record is not in the plain form. Says which one, which modality, and what is wanted."""


def record_of(given: Fields, schema: DatasetSchema, number: int) -> Record:
    """A record from its plain form; without a key it is called by its number.

    Raises:
        ValueFormError: an entry that is no modality, or a value of another form.
    """
    if not isinstance(given, Mapping):
        raise ValueFormError(f"record {number} is {_kind(given)}, and an object is wanted: modality -> value")
    key = given.get(KEY) if KEY not in schema.numbers else None
    name = str(number) if _absent(key) else str(key)
    values: dict[str, Value] = {}
    moments = None
    for entry, value in given.items():
        if _absent(value):
            continue
        if entry in schema.numbers:
            spec = schema.modalities[schema.numbers[entry]]
            values[entry] = _value(spec, value, f"record {name}, modality {entry}")
        elif entry == MOMENTS and schema.has_moments:
            moments = np.sort(_numbers(value, f"record {name}, moments"))
        elif entry != KEY:
            raise ValueFormError(
                f"record {name} has an entry {entry!r}, which is no modality; modalities are "
                f"{', '.join(schema.modality_names)}"
            )
    return Record(name, values, moments=moments)


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), f"a {type(value).__name__}")


def _value(spec: ModalitySpec, value: Any, where: str) -> Value:
    if spec.kind == "series":
        times, channels, values = _columns(value, ("times", "channels", "values"), where)
        return Series(
            _numbers(times, f"{where}, times"),
            np.array([_channel(spec, one, where) for one in _list(channels, f"{where}, channels")], np.int16),
            _numbers(values, f"{where}, values"),
        )
    if spec.kind == "codes":
        return _codes(spec, value, where)
    form = _FORMS[spec.kind]
    if not spec.timed:
        return form(spec, value, where)
    times, values = _columns(value, ("times", "values"), where)
    made = [form(spec, one, f"{where}, value {n}") for n, one in enumerate(_list(values, f"{where}, values"))]
    return Objects(_numbers(times, f"{where}, times"), made)


def _columns(value: Any, names: Sequence[str], where: str) -> list[Any]:
    """The lists of an object, all of one length."""
    if not isinstance(value, Mapping):
        raise ValueFormError(f"{where} is {_kind(value)}, and an object of the lists {', '.join(names)} is wanted")
    wrong = sorted(set(value) ^ set(names))
    if wrong:
        what = "unknown" if wrong[0] in value else "missing"
        raise ValueFormError(f"{where}: {wrong[0]!r} is {what}; the lists are {', '.join(names)}")
    lists = [_list(value[name], f"{where}, {name}") for name in names]
    if len({len(one) for one in lists}) > 1:
        lengths = ", ".join(f"{len(one)} {name}" for one, name in zip(lists, names, strict=True))
        raise ValueFormError(f"{where}: the lists are not of one length ({lengths})")
    return lists


def _list(value: Any, where: str) -> Sequence[Any]:
    if isinstance(value, np.ndarray):
        return value  # type: ignore[return-value]
    if not isinstance(value, list | tuple):
        raise ValueFormError(f"{where} is {_kind(value)}, and a list is wanted")
    return value


def _numbers(value: Any, where: str) -> np.ndarray:
    """float64 of any shape; null is NaN."""
    try:
        array = np.array(value if isinstance(value, np.ndarray) else _list(value, where), np.float64)
    except (TypeError, ValueError):
        raise ValueFormError(f"{where} must hold numbers, in lists of equal length") from None
    return array


def _channel(spec: ModalitySpec, name: Any, where: str) -> int:
    if not isinstance(name, str) or name not in spec.channels:
        raise ValueFormError(f"{where}: there is no channel {name!r}; channels are {', '.join(spec.channels)}")
    return spec.channels.index(name)


def _codes(spec: ModalitySpec, value: Any, where: str) -> Codes:
    names = ["codes", *(["times"] if spec.timed else []), *(["values"] if spec.valued else [])]
    lists = [_list(value, where)] if len(names) == 1 else _columns(value, names, where)
    own = dict(zip(names, lists, strict=True))
    odd = next((code for code in own["codes"] if not isinstance(code, str)), None)
    if odd is not None:
        raise ValueFormError(f"{where}: codes are text, and one is {_kind(odd)}")
    times, values = (_numbers(own[n], f"{where}, {n}") if n in own else None for n in ("times", "values"))
    return Codes([str(code) for code in own["codes"]], times, values)


def _text(spec: ModalitySpec, value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise ValueFormError(f"{where} is {_kind(value)}, and text is wanted")
    return value


def _array(shape: Sequence[int | None], spec: ModalitySpec, value: Any, where: str) -> np.ndarray:
    """An array of the modality's type and this shape (None: any length)."""
    array = _numbers(value, where)
    if len(array.shape) != len(shape) or any(n not in (m, None) for m, n in zip(array.shape, shape, strict=True)):
        wanted = " x ".join("any" if n is None else str(n) for n in shape)
        found = " x ".join(map(str, array.shape))
        named = f" ({', '.join(spec.channels)})" if len(shape) == 1 and 0 < len(spec.channels) <= 20 else ""
        raise ValueFormError(f"{where} is {found} numbers, and {wanted} are wanted{named}")
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "f":
        return array.astype(dtype)
    limits = np.iinfo(dtype)
    whole = np.isfinite(array) & (array == np.floor(array)) & (array >= limits.min) & (array <= limits.max)
    if not whole.all():
        raise ValueFormError(f"{where}: {array[~whole][0]:g} is no whole number from {limits.min} to {limits.max}")
    return array.astype(dtype)


def _vector(spec: ModalitySpec, value: Any, where: str) -> np.ndarray:
    if isinstance(value, Mapping):
        value_F = np.full(spec.shape[0], np.nan)
        for name, one in value.items():
            value_F[_channel(spec, name, where)] = _numbers([one], f"{where}, {name}")[0]
        return _array(spec.shape, spec, value_F, where)
    return _array(spec.shape, spec, value, where)


def _file(value: str | bytes, what: str, where: str) -> bytes:
    """The content of a file, as it is or in base64."""
    if isinstance(value, bytes):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):  # the latter for what is not ASCII
        raise ValueFormError(f"{where} is text that is no base64 of a {what}'s file") from None


def _image(spec: ModalitySpec, value: Any, where: str) -> np.ndarray:
    if not isinstance(value, str | bytes):
        return _array(spec.shape, spec, value, where)
    from data_shards.sources.readers.pictures import read_picture

    data = _file(value, "picture", where)
    if spec.shape[0] not in (1, 3) or spec.dtype != "uint8":
        raise ValueFormError(f"{where}: a picture of {spec.shape[0]} channels of {spec.dtype} is given as lists")
    return read_picture(data, where, spec.shape, resize=True, notes=Counter())  # type: ignore[arg-type]


def _waveform(spec: ModalitySpec, value: Any, where: str) -> np.ndarray:
    if isinstance(value, str | bytes):
        return _sound(spec, _file(value, "sound", where), where)
    array = _numbers(value, where)
    if array.ndim == 1 and spec.shape[0] == 1:
        array = array[:, None]
    return _array((None, *spec.shape), spec, array, where)


def _sound(spec: ModalitySpec, data: bytes, where: str) -> np.ndarray:
    """Samples of a sound's file. One of another rate is refused, as `tables` does where nothing else is asked for."""
    from data_shards.sources.readers.recordings.read import Part, is_sound, read_signal
    from data_shards.sources.readers.signals import fit_signal

    if not is_sound(data):
        raise ValueFormError(f"{where} is no sound's file that is read (.wav, .flac, .ogg, .mp3, .aiff)")
    if spec.dtype != "float32":
        raise ValueFormError(f"{where}: samples of {spec.dtype} are given as lists")
    leads = spec.shape[0]
    signal = read_signal(data, where, Part(leads, rate=spec.rate, max_length=spec.max_length or MAX_LENGTH["waveform"]))
    if spec.rate is not None and signal.rate is not None and abs(signal.rate - spec.rate) > 1e-6 * spec.rate:
        raise ValueFormError(
            f"{where} has {signal.rate:g} samples per second, and {spec.rate:g} are wanted: resample the file first"
        )
    return fit_signal(signal, where, leads, spec.rate, "", Counter())


_FORMS: dict[str, Callable[[ModalitySpec, Any, str], Any]] = {
    "text": _text,
    "vector": _vector,
    "image": _image,
    "waveform": _waveform,
}
