"""A record -> the bytes of one tar member ``<key>.st``; ``decoder`` reads them.

All series of a record share five columns (modality, count, time, channel, value), all texts four, all vectors three,
all codes five, so that a record of tens of modalities costs one short header instead of one array per modality and
field. Pictures and waveforms are one array a modality. Rows are by modality, then by time; events of a series by
channel, then by time. ``docs/format.md`` has it byte by byte.

Shapes as in ``columns``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from data_shards.records.arrays import dump_tensors
from data_shards.records.check import validate
from data_shards.records.record import Codes, Objects, Record, Series, Value
from data_shards.records.schema import DatasetSchema, ModalitySpec

SUFFIX = ".st"
FORMAT = "fleximoe-record/2"
FORMATS = ("fleximoe-record/1", FORMAT)  # the first one is the second without times, codes and moments


class Numbering(Protocol):
    """What the codec needs of a vocabulary."""

    def ids(self, codes: Sequence[str]) -> np.ndarray:
        """int32: the number of each code, the reserved ones for those that it does not have."""

    def name(self, number: int) -> str:
        """The code with this number."""


Numberings = Mapping[str, Numbering]


def encode_record(record: Record, schema: DatasetSchema, vocabularies: Numberings | None = None) -> bytes:
    """Record -> member bytes, checked.

    Args:
        vocabularies: of each modality of codes.

    Raises:
        ValueError: as ``validate``, or codes without a vocabulary.
    """
    rows_KW = validate(schema, record)
    # By ascending number: the decoder takes no other order.
    by_number = sorted((schema.numbers[name], value) for name, value in record.values.items())
    specs = schema.modalities
    series = {n: v for n, v in by_number if isinstance(v, Series)}
    codes = {n: v for n, v in by_number if isinstance(v, Codes)}
    objects = {n: _by_time(v) for n, v in by_number if not isinstance(v, Series | Codes)}
    tensors: dict[str, np.ndarray] = {}
    if series:
        tensors |= _series_columns(series)
    tensors |= _text_columns({n: v for n, v in objects.items() if specs[n].kind == "text"}, specs)
    tensors |= _vector_columns({n: v for n, v in objects.items() if specs[n].kind == "vector"}, specs)
    for number, own in objects.items():
        if specs[number].kind in ("image", "waveform") and len(own):
            tensors |= _array_columns(specs[number], own)
    if codes:
        tensors |= _code_columns(codes, schema, vocabularies or {})
    empty = [n for n, own in objects.items() if not len(own)]
    if empty:
        tensors["empty"] = np.array(empty, np.int16)
    if record.moments is not None and len(record.moments):
        tensors["moment.time"] = np.asarray(record.moments, np.float32)
    if schema.tasks:
        tensors["target"] = rows_KW if "moment.time" in tensors else rows_KW[0]
    return dump_tensors(tensors, metadata_of(record, schema))


def metadata_of(record: Record, schema: DatasetSchema) -> dict[str, str]:
    """Of a record's member."""
    metadata = {"format": FORMAT, "key": record.key, "schema": schema.digest()[:16]}
    if record.group is not None:
        metadata["group"] = record.group
    return metadata | {f"split.{name}": part for name, part in sorted(record.splits.items())}


def _by_time(value: Value) -> Objects:
    """Objects in order of time, equal times as they came; one object at time 0 for a modality without times."""
    if not isinstance(value, Objects):
        return Objects(np.zeros(1, np.float32), [value])  # type: ignore[arg-type,list-item]
    order = np.argsort(value.times_N, kind="stable")
    return Objects(value.times_N[order].astype(np.float32), [value.values[i] for i in order.tolist()])  # type: ignore[arg-type]


def _series_columns(series: dict[int, Series]) -> dict[str, np.ndarray]:
    # The last key counts most: by channel, then by time.
    ordered = [(v, np.lexsort((v.times_O, v.channels_O))) for v in series.values()]
    return {
        "series.modality": np.array(list(series), np.int16),
        "series.count": np.array([len(v) for v in series.values()], np.int32),
        "series.time": np.concatenate([v.times_O[order].astype(np.float32) for v, order in ordered]),
        "series.channel": np.concatenate([v.channels_O[order].astype(np.int16) for v, order in ordered]),
        "series.value": np.concatenate([v.values_O[order].astype(np.float32) for v, order in ordered]),
    }


def _rows(objects: dict[int, Objects], specs: Sequence[ModalitySpec], kind: str) -> dict[str, np.ndarray]:
    """Modality, and time where any has one, of each object; nothing if there is none."""
    counts = [len(own) for own in objects.values()]
    if not sum(counts):
        return {}
    rows = {f"{kind}.modality": np.repeat(np.array(list(objects), np.int16), counts)}
    if any(specs[number].timed for number in objects):
        rows[f"{kind}.time"] = np.concatenate([own.times_N for own in objects.values()])
    return rows


def _text_columns(texts: dict[int, Objects], specs: Sequence[ModalitySpec]) -> dict[str, np.ndarray]:
    rows = _rows(texts, specs, "text")
    if rows:
        encoded = [text.encode() for own in texts.values() for text in own.values]  # type: ignore[union-attr]
        rows["text.count"] = np.array([len(text) for text in encoded], np.int32)
        rows["text.byte"] = np.frombuffer(b"".join(encoded), np.uint8)
    return rows


def _vector_columns(vectors: dict[int, Objects], specs: Sequence[ModalitySpec]) -> dict[str, np.ndarray]:
    rows = _rows(vectors, specs, "vector")
    if rows:
        every = [np.asarray(vector, np.float32) for own in vectors.values() for vector in own.values]
        rows["vector.value"] = np.concatenate(every)
    return rows


def _array_columns(spec: ModalitySpec, own: Objects) -> dict[str, np.ndarray]:
    """One array: one object as it is; with times pictures as (N, C, H, W), waveforms joined, with their lengths."""
    name = f"{spec.kind}.{spec.name}"
    if not spec.timed:
        return {name: np.ascontiguousarray(own.values[0])}
    columns = {f"time.{spec.name}": own.times_N}
    if spec.kind == "image":
        return columns | {name: np.stack([np.asarray(value) for value in own.values])}
    lengths = np.array([len(value) for value in own.values], np.int32)
    joined = np.concatenate([np.asarray(value) for value in own.values])
    return columns | {name: joined, f"count.{spec.name}": lengths}


def _code_columns(codes: dict[int, Codes], schema: DatasetSchema, vocabularies: Numberings) -> dict[str, np.ndarray]:
    ids, times, values = list[np.ndarray](), list[np.ndarray](), list[np.ndarray]()
    for number, own in codes.items():
        spec = schema.modalities[number]
        if spec.name not in vocabularies:
            raise ValueError(f"modality {spec.name} has codes, and no vocabulary that numbers them was given")
        id_C = np.asarray(vocabularies[spec.name].ids(list(own.codes)), np.int32)
        time_C = np.zeros(len(id_C), np.float32) if own.times_O is None else own.times_O.astype(np.float32)
        value_C = np.full(len(id_C), np.nan, np.float32) if own.values_O is None else own.values_O.astype(np.float32)
        # By time, then number, then value: equal sets of codes have equal bytes.
        order = np.lexsort((value_C, id_C, time_C))
        ids.append(id_C[order])
        times.append(time_C[order])
        values.append(value_C[order])
    columns: dict[str, np.ndarray] = {
        "codes.modality": np.array(list(codes), np.int16),
        "codes.count": np.array([len(v) for v in codes.values()], np.int32),
        "codes.id": np.concatenate(ids),
    }
    if any(schema.modalities[number].timed for number in codes):
        columns["codes.time"] = np.concatenate(times)
    if any(schema.modalities[number].valued for number in codes):
        columns["codes.value"] = np.concatenate(values)
    return columns
