"""What plain records of a model look like: in words, and a made-up one.

The example is made of training statistics, so no record of anybody is shown: means and two moments of time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from data_shards import DatasetSchema, ModalitySpec
from data_shards.records.statistics import ModalityStatistics, SplitStatistics
from data_shards.records.vocabulary import Vocabulary

_FORMS = {
    "text": "text",
    "vector": "a list of {shape} numbers, or an object of numbers by channel",
    "image": "lists of {shape} numbers, or a picture's file in base64",
    "waveform": "lists of samples of {shape} numbers, or a sound's file in base64",
}
MOST_NUMBERS = 50_000  # of one value of the example


def plain_form(spec: ModalitySpec) -> str:
    """The form of a modality's value, in words."""
    if spec.kind == "series":
        return "an object of the lists times, channels and values"
    if spec.kind == "codes":
        lists = ["codes", *(["times"] if spec.timed else []), *(["values"] if spec.valued else [])]
        return "a list of codes" if len(lists) == 1 else f"an object of the lists {', '.join(lists)}"
    form = _FORMS[spec.kind].format(shape=" x ".join(map(str, spec.shape)))
    return f"an object of the lists times and values, each value {form}" if spec.timed else form


def example_record(
    schema: DatasetSchema, statistics: SplitStatistics, vocabularies: Mapping[str, Vocabulary]
) -> dict[str, Any]:
    """A plain record with every modality, but for those whose example would be very large, or need a vocabulary that
    is not there."""
    made = {
        spec.name: _value(spec, statistics.modalities.get(spec.name), vocabularies.get(spec.name))
        for spec in schema.modalities
    }
    return {"key": "example", **{name: value for name, value in made.items() if value is not None}}


def _value(spec: ModalitySpec, about: ModalityStatistics | None, vocabulary: Vocabulary | None) -> Any:
    end = spec.horizon or 1.0
    means = list(about.mean) if about is not None else [0.0] * spec.width
    if spec.kind == "series":
        return {
            "times": [0.25 * end] * len(spec.channels),
            "channels": list(spec.channels),
            "values": [round(mean, 4) for mean in means],
        }
    if spec.kind == "codes":
        if vocabulary is None or not vocabulary.names:
            return None
        names = list(vocabulary.names[:2])
        lists: dict[str, Any] = {"codes": names}
        lists |= {"times": [0.25 * end] * len(names)} if spec.timed else {}
        lists |= {"values": [None] * len(names)} if spec.valued else {}
        return lists if len(lists) > 1 else names
    value = _single(spec, means)
    return {"times": [0.25 * end], "values": [value]} if spec.timed and value is not None else value


def _single(spec: ModalitySpec, means: list[float]) -> Any:
    whole = spec.dtype not in ("float32", "float16", "float64")
    numbers = [round(mean) if whole else round(mean, 4) for mean in means]
    if spec.kind == "text":
        return "a text"
    if spec.kind == "vector":
        return numbers
    if math.prod(spec.shape) > MOST_NUMBERS:
        return None
    if spec.kind == "waveform":
        return [numbers] * 16
    return [[[mean] * spec.shape[2] for _ in range(spec.shape[1])] for mean in numbers]
