"""A stored record with some of its modalities as vectors, and back to the bytes that packing it would give.

Shapes as in `records/columns`; F features of a vector, N objects of one modality.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from data_shards.records.arrays import dump_tensors
from data_shards.records.codec import FORMAT
from data_shards.records.columns import Columns
from data_shards.records.schema import DatasetSchema


def as_vectors(columns: Columns, schema: DatasetSchema, found: Mapping[int, np.ndarray]) -> Columns:
    """The record with vectors in place of texts, pictures, waveforms or other vectors; times and all else stay.

    Args:
        schema: the record's own. found: modality number -> float32 [N, F], of its objects in the order of storage.
    """
    gone = list(found)
    keep_X, keep_V = ~np.isin(columns.text_X, gone), ~np.isin(columns.vector_V, gone)
    widths = np.array([spec.shape[0] if spec.kind == "vector" else 0 for spec in schema.modalities], np.int64)
    width_V = widths[columns.vector_V]
    pieces = np.split(columns.features_, np.cumsum(width_V)[:-1]) if len(width_V) else []
    vectors = [piece for piece, keep in zip(pieces, keep_V.tolist(), strict=True) if keep]
    ids, times = [columns.vector_V[keep_V]], [columns.vector_times_V[keep_V]]
    for number, value_NF in found.items():
        vectors += list(value_NF)
        ids.append(np.full(len(value_NF), number, columns.vector_V.dtype))
        times.append(object_times(columns, number))
    id_V = np.concatenate(ids)
    # Stable: objects of a modality are in order of time already.
    order_V = np.argsort(id_V, kind="stable")
    return replace(
        columns,
        text_X=columns.text_X[keep_X],
        sizes_X=columns.sizes_X[keep_X],
        text_times_X=columns.text_times_X[keep_X],
        bytes_=columns.bytes_[np.repeat(keep_X, columns.sizes_X)],
        vector_V=id_V[order_V],
        vector_times_V=np.concatenate(times)[order_V],
        features_=np.concatenate([np.empty(0, np.float32), *(vectors[v] for v in order_V.tolist())]),
        arrays={number: own for number, own in columns.arrays.items() if number not in found},
        array_times={number: own for number, own in columns.array_times.items() if number not in found},
    )


def object_times(columns: Columns, number: int) -> np.ndarray:
    """float32 [N]: times of the objects of one modality that is no series and no codes; 0 without times."""
    if number in columns.array_times:
        return columns.array_times[number]
    return np.concatenate(
        [columns.text_times_X[columns.text_X == number], columns.vector_times_V[columns.vector_V == number]]
    )


def encode_columns(columns: Columns, schema: DatasetSchema, metadata: Mapping[str, str]) -> bytes:
    """Member bytes of a record: those that `encode_record` gives.

    Args:
        metadata: of the member that it was read from, whose split, group and key stay.
    """
    arrays: dict[str, np.ndarray] = {}
    if len(columns.series_S):
        arrays |= {
            "series.modality": columns.series_S,
            "series.count": columns.counts_S,
            "series.time": columns.times_O,
            "series.channel": columns.channels_O,
            "series.value": columns.values_O,
        }
    timed = {number for number, spec in enumerate(schema.modalities) if spec.timed}
    if len(columns.text_X):
        arrays |= {"text.modality": columns.text_X, "text.count": columns.sizes_X, "text.byte": columns.bytes_}
        if timed & _there(columns.text_X, columns, schema, "text"):
            arrays["text.time"] = columns.text_times_X
    if len(columns.vector_V):
        arrays |= {"vector.modality": columns.vector_V, "vector.value": columns.features_}
        if timed & _there(columns.vector_V, columns, schema, "vector"):
            arrays["vector.time"] = columns.vector_times_V
    for number, own in columns.arrays.items():
        arrays |= _array_columns(columns, schema, number, own)
    arrays |= _code_columns(columns, schema)
    for name, column in (("empty", columns.empty_E), ("moment.time", columns.moments_K)):
        if len(column):
            arrays[name] = column
    if schema.tasks:
        arrays["target"] = columns.targets_KW if len(columns.moments_K) else columns.targets_W
    return dump_tensors(arrays, {**metadata, "format": FORMAT, "schema": schema.digest()[:16]})


def _there(ids: np.ndarray, columns: Columns, schema: DatasetSchema, kind: str) -> set[int]:
    """Modalities of a kind that the record has, with objects or without."""
    return {*ids.tolist(), *(n for n in columns.empty_E.tolist() if schema.modalities[n].kind == kind)}


def _array_columns(
    columns: Columns, schema: DatasetSchema, number: int, own: list[np.ndarray]
) -> dict[str, np.ndarray]:
    """Of pictures or waveforms."""
    spec = schema.modalities[number]
    name = f"{spec.kind}.{spec.name}"
    if not spec.timed:
        return {name: own[0]}
    arrays = {f"time.{spec.name}": columns.array_times[number]}
    if spec.kind == "image":
        return arrays | {name: np.stack(own)}
    return arrays | {name: np.concatenate(own), f"count.{spec.name}": np.array([len(array) for array in own], np.int32)}


def _code_columns(columns: Columns, schema: DatasetSchema) -> dict[str, np.ndarray]:
    if not len(columns.codes_Q):
        return {}
    specs = [schema.modalities[number] for number in columns.codes_Q.tolist()]
    arrays = {
        "codes.modality": columns.codes_Q,
        "codes.count": columns.code_counts_Q,
        "codes.id": columns.code_ids_C,
    }
    if any(spec.timed for spec in specs):
        arrays["codes.time"] = columns.code_times_C
    if any(spec.valued for spec in specs):
        arrays["codes.value"] = columns.code_values_C
    return arrays
