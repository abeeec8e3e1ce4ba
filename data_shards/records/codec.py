"""A record <-> the bytes of one tar member ``<key>.st``.

All series of a record share five columns (modality, count, time, channel, value), all texts three, all vectors two, so
that a record of tens of modalities costs one short header instead of one array per modality and field. Events are
stored sorted by (channel, time) within a series. Images and waveforms are one array each.

Shapes: S series, O events, X texts, V vectors, W target columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_shards.errors import RecordError
from data_shards.records.arrays import Limits, dump_tensors, load_tensors
from data_shards.records.record import KEY, Record, Series, target_row, validate
from data_shards.records.schema import DatasetSchema

SUFFIX = ".st"
FORMAT = "fleximoe-record/1"
_CHANNEL_SPAN = 1 << 15  # above every channel number: (modality, channel) as one sortable integer


@dataclass
class Columns:
    """A record as it is stored; what the batch is built from. Arrays are read-only views of the shard's bytes."""

    key: str
    series_S: np.ndarray  # int16, modality numbers, ascending
    counts_S: np.ndarray  # int32
    times_O: np.ndarray  # float32
    channels_O: np.ndarray  # int16
    values_O: np.ndarray  # float32
    text_X: np.ndarray  # int16, modality numbers, ascending
    sizes_X: np.ndarray  # int32
    bytes_: np.ndarray  # uint8
    vector_V: np.ndarray  # int16, modality numbers, ascending
    features_: np.ndarray  # float32, vectors one after the other
    arrays: dict[int, np.ndarray]  # images (C, H, W) and waveforms (L, C) by modality number
    targets_W: np.ndarray  # float32

    def present(self) -> list[int]:
        """Modality numbers that this record holds."""
        return sorted([*self.series_S.tolist(), *self.text_X.tolist(), *self.vector_V.tolist(), *self.arrays])

    def lengths(self, schema: DatasetSchema) -> np.ndarray:
        """int32 [M]: events, bytes, samples, or 1 for fixed shapes; -1 where absent."""
        lengths_M = np.full(len(schema.modalities), -1, np.int32)
        lengths_M[self.series_S] = self.counts_S
        lengths_M[self.text_X] = self.sizes_X
        lengths_M[self.vector_V] = 1
        for number, array in self.arrays.items():
            lengths_M[number] = len(array) if schema.modalities[number].kind == "waveform" else 1
        return lengths_M


def encode_record(record: Record, schema: DatasetSchema) -> bytes:
    """Validated record -> member bytes. Raises ValueError as ``validate`` does."""
    validate(schema, record)
    # By ascending number: the decoder takes no other order.
    by_number = {schema.numbers[name]: value for name, value in sorted(record.values.items())}
    series = {n: v for n, v in sorted(by_number.items()) if isinstance(v, Series)}
    texts = {n: v.encode() for n, v in sorted(by_number.items()) if isinstance(v, str)}
    arrays = {n: v for n, v in sorted(by_number.items()) if isinstance(v, np.ndarray)}
    vectors = {n: v for n, v in arrays.items() if schema.modalities[n].kind == "vector"}
    tensors: dict[str, np.ndarray] = {}
    if series:
        tensors |= _series_columns(series)
    if texts:
        tensors["text.modality"] = np.array(list(texts), np.int16)
        tensors["text.count"] = np.array([len(v) for v in texts.values()], np.int32)
        tensors["text.byte"] = np.frombuffer(b"".join(texts.values()), np.uint8)
    if vectors:
        tensors["vector.modality"] = np.array(list(vectors), np.int16)
        tensors["vector.value"] = np.concatenate([v.astype(np.float32) for v in vectors.values()])
    for number in arrays.keys() - vectors.keys():
        spec = schema.modalities[number]
        tensors[f"{spec.kind}.{spec.name}"] = np.ascontiguousarray(arrays[number])
    if schema.tasks:
        tensors["target"] = target_row(schema, record)
    return dump_tensors(tensors, _metadata(record, schema))


def _metadata(record: Record, schema: DatasetSchema) -> dict[str, str]:
    metadata = {"format": FORMAT, "key": record.key, "schema": schema.digest()[:16]}
    if record.group is not None:
        metadata["group"] = record.group
    return metadata | {f"split.{name}": part for name, part in sorted(record.splits.items())}


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


class Decoder:
    """Reads member bytes of one schema and checks everything that a model relies on.

    Raises (``columns`` and ``record``):
        RecordError: the bytes are not a legal record of this schema.
    """

    def __init__(self, schema: DatasetSchema, limits: Limits | None = None) -> None:
        self.schema, self.limits = schema, limits or Limits()
        self._digest = schema.digest()[:16]
        self._kinds = np.array([m.kind for m in schema.modalities])
        self._channels = np.array([len(m.channels) for m in schema.modalities], np.int32)
        self._features = np.array([m.shape[0] if m.kind == "vector" else 0 for m in schema.modalities], np.int64)
        self._most = np.array([m.max_length or 0 for m in schema.modalities], np.int64)
        self._arrays = {
            f"{m.kind}.{m.name}": (n, m) for n, m in enumerate(schema.modalities) if m.kind in ("image", "waveform")
        }
        self._dtypes = {
            "time": "<f4",
            "value": "<f4",
            "channel": "<i2",
            "count": "<i4",
            "modality": "<i2",
            "byte": "|u1",
        }

    def columns(self, buffer: bytes | memoryview, key: str | None = None) -> Columns:
        """The stored columns; ``key`` (from the index) must match the record's own."""
        tensors, metadata = load_tensors(buffer, self.limits)
        self._check_metadata(metadata, key)

        def take(name: str) -> np.ndarray:
            array = tensors.pop(name, None)
            dtype = np.dtype(self._dtypes[name.split(".")[1]])
            if array is None:
                return np.empty(0, dtype)
            if array.dtype != dtype or array.ndim != 1:
                raise RecordError(f"{name} is {array.dtype} {array.shape}, not {dtype} with one dimension")
            return array

        columns = Columns(
            key=metadata["key"],
            series_S=take("series.modality"),
            counts_S=take("series.count"),
            times_O=take("series.time"),
            channels_O=take("series.channel"),
            values_O=take("series.value"),
            text_X=take("text.modality"),
            sizes_X=take("text.count"),
            bytes_=take("text.byte"),
            vector_V=take("vector.modality"),
            features_=take("vector.value"),
            arrays={},
            targets_W=tensors.pop("target", np.empty(0, np.float32)),
        )
        # What is left was taken by no name above: images and waveforms, or nothing that belongs here.
        for name, array in tensors.items():
            columns.arrays[self._number(name, array)] = array
        self._check_series(columns)
        self._check_others(columns)
        return columns

    def record(self, buffer: bytes | memoryview) -> Record:
        """The record as it was before ``encode_record`` (events sorted by channel and time)."""
        _, metadata = load_tensors(buffer, self.limits)
        columns = self.columns(buffer)
        names, values = self.schema.modality_names, dict[str, Series | np.ndarray | str]()
        # All series lie in one column, one after the other; texts and vectors likewise.
        start = np.concatenate(([0], np.cumsum(columns.counts_S)))
        for i, number in enumerate(columns.series_S.tolist()):
            cut = slice(start[i], start[i + 1])
            values[names[number]] = Series(columns.times_O[cut], columns.channels_O[cut], columns.values_O[cut])
        start = np.concatenate(([0], np.cumsum(columns.sizes_X)))
        for i, number in enumerate(columns.text_X.tolist()):
            values[names[number]] = bytes(columns.bytes_[start[i] : start[i + 1]]).decode()
        start = np.concatenate(([0], np.cumsum(self._features[columns.vector_V])))
        for i, number in enumerate(columns.vector_V.tolist()):
            values[names[number]] = columns.features_[start[i] : start[i + 1]]
        values |= {names[number]: array for number, array in columns.arrays.items()}
        offsets = self.schema.target_offsets
        targets: dict[str, np.ndarray | float | None] = {
            task.name: columns.targets_W[offsets[i] : offsets[i + 1]] for i, task in enumerate(self.schema.tasks)
        }
        splits = {name[6:]: part for name, part in metadata.items() if name.startswith("split.")}
        return Record(columns.key, values, targets, splits, metadata.get("group"))

    def _check_metadata(self, metadata: dict[str, str], key: str | None) -> None:
        if metadata.get("format") != FORMAT:
            raise RecordError(f"format {metadata.get('format')!r}, this version reads {FORMAT!r}")
        if metadata.get("schema") != self._digest:
            raise RecordError(f"packed with schema {metadata.get('schema')!r}, the manifest's is {self._digest!r}")
        own = metadata.get("key", "")
        if not KEY.fullmatch(own) or (key is not None and own != key):
            raise RecordError(f"holds key {own!r} where {key!r} was expected")

    def _number(self, name: str, array: np.ndarray) -> int:
        number, spec = self._arrays.get(name, (-1, None))
        if spec is None:
            raise RecordError(f"array {name!r} belongs to no modality of the schema")
        shape = array.shape[1:] if spec.kind == "waveform" else array.shape
        if shape != spec.shape or array.dtype != np.dtype(spec.dtype) or len(array) > (spec.max_length or len(array)):
            raise RecordError(
                f"modality {spec.name}: {array.dtype} {array.shape} does not fit {spec.dtype} {spec.shape}"
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise RecordError(f"modality {spec.name}: NaN or infinity", "value")
        return number

    def _check_ids(self, ids: np.ndarray, kind: str) -> None:
        # Ascending, so that its ends bound it; a number below 0 would count from the schema's end.
        if len(ids) and (ids[0] < 0 or ids[-1] >= len(self._kinds) or (len(ids) > 1 and (np.diff(ids) <= 0).any())):
            raise RecordError(f"{kind} modality numbers {ids.tolist()} are not ascending within the schema")
        if (self._kinds[ids] != kind).any():
            raise RecordError(f"modality numbers {ids.tolist()} are not all of kind {kind}")

    def _check_counts(self, ids: np.ndarray, counts: np.ndarray, total: int, kind: str) -> None:
        # In int64, or forged counts could overflow to the right sum.
        if len(ids) != len(counts) or (counts < 0).any() or int(counts.sum(dtype=np.int64)) != total:
            raise RecordError(f"{kind} counts {counts.tolist()} do not add up to the {total} stored")
        if (counts > self._most[ids]).any():
            raise RecordError(
                f"{kind} counts {counts.tolist()} are over the limits {self._most[ids].tolist()}", "value"
            )

    def _check_series(self, columns: Columns) -> None:
        ids, counts = columns.series_S, columns.counts_S
        times, channels, values = columns.times_O, columns.channels_O, columns.values_O
        self._check_ids(ids, "series")
        self._check_counts(ids, counts, len(times), "series")
        if not len(times) == len(channels) == len(values):
            raise RecordError(f"{len(times)} times, {len(channels)} channels, {len(values)} values")
        if not len(times):
            return  # nothing to take a smallest channel of
        if channels.min() < 0 or (channels >= np.repeat(self._channels[ids], counts)).any():
            raise RecordError("a channel number is outside its modality", "value")
        if not np.isfinite(values).all() or not np.isfinite(times).all():
            raise RecordError("a time or value is NaN or infinite", "value")
        # Numbers that grow with (modality, channel), so that one pass checks the order within all series.
        place = np.repeat(ids.astype(np.int32) * _CHANNEL_SPAN, counts) + channels
        step = np.diff(place)
        if (step < 0).any() or (np.diff(times)[step == 0] < 0).any():
            raise RecordError("events are not sorted by channel and time", "value")

    def _check_others(self, columns: Columns) -> None:
        self._check_ids(columns.text_X, "text")
        self._check_counts(columns.text_X, columns.sizes_X, len(columns.bytes_), "text")
        if len(columns.bytes_):
            try:
                bytes(columns.bytes_).decode()
            except UnicodeDecodeError as error:
                raise RecordError(f"text is not UTF-8: {error}", "value") from error
        self._check_ids(columns.vector_V, "vector")
        if int(self._features[columns.vector_V].sum()) != len(columns.features_):
            raise RecordError(f"{len(columns.features_)} vector features do not fit {columns.vector_V.tolist()}")
        if not np.isfinite(columns.features_).all():
            raise RecordError("a vector holds NaN or infinity", "value")
        if columns.targets_W.shape != (self.schema.target_offsets[-1],) or columns.targets_W.dtype != np.float32:
            raise RecordError(f"targets of shape {columns.targets_W.shape}, not ({self.schema.target_offsets[-1]},)")
        offsets = self.schema.target_offsets
        for i, task in enumerate(self.schema.tasks):
            problem = task.check(columns.targets_W[offsets[i] : offsets[i + 1]])
            if problem:
                raise RecordError(problem, "value")
