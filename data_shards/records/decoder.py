"""The bytes of one tar member -> a record, or its columns; everything that a model relies on is checked.

Shapes as in ``columns``.
"""

from __future__ import annotations

import numpy as np

from data_shards.errors import RecordError
from data_shards.records.arrays import Limits, load_tensors
from data_shards.records.codec import FORMATS, Numberings
from data_shards.records.columns import Columns
from data_shards.records.record import KEY, Codes, Objects, Record, Series, Value
from data_shards.records.schema import MAX_OBJECTS, DatasetSchema, ModalitySpec

_CHANNEL_SPAN = 1 << 15  # above every channel number: (modality, channel) as one sortable integer
_REMEMBERED = 1_024  # legal lists of modality numbers, no longer than this: most records have one of a few
_NAMES = {
    "<f4": "series.time series.value text.time vector.value vector.time codes.time codes.value moment.time",
    "<i4": "series.count text.count codes.count codes.id",
    "<i2": "series.modality series.channel text.modality vector.modality codes.modality empty",
    "|u1": "text.byte",
}
_EMPTY = {name: np.empty(0, dtype) for dtype, names in _NAMES.items() for name in names.split()}


class Decoder:
    """Reads member bytes of one schema and checks everything that a model relies on.

    Args:
        vocabularies: give codes back as names (``record``); columns have their numbers.

    Raises (``columns`` and ``record``):
        RecordError: the bytes are not a legal record of this schema.
    """

    def __init__(
        self, schema: DatasetSchema, limits: Limits | None = None, vocabularies: Numberings | None = None
    ) -> None:
        self.schema, self.limits, self.vocabularies = schema, limits or Limits(), vocabularies or {}
        specs = schema.modalities
        self._digest = schema.digest()[:16]
        self._kinds = np.array([m.kind for m in specs])
        self._timed = np.array([m.timed for m in specs])
        self._channels = np.array([len(m.channels) for m in specs], np.int32)
        self._features = np.array([m.shape[0] if m.kind == "vector" else 0 for m in specs], np.int64)
        self._most = np.array([m.max_length or 0 for m in specs], np.int64)
        self._codes = np.array([m.codes for m in specs], np.int64)
        self._legal: set[tuple[str, bool, bytes]] = set()
        self._arrays = {f"{m.kind}.{m.name}": (n, m) for n, m in enumerate(specs) if m.kind in ("image", "waveform")}

    def columns(self, buffer: bytes | memoryview, key: str | None = None) -> Columns:
        """The stored columns; ``key`` (from the index) must match the record's own."""
        tensors, metadata = load_tensors(buffer, self.limits)
        self._check_metadata(metadata, key)

        def take(name: str, otherwise: float = 0.0, rows: int = 0) -> np.ndarray:
            array, empty = tensors.pop(name, None), _EMPTY[name]
            dtype = empty.dtype
            if array is None:
                return np.full(rows, otherwise, dtype) if rows else empty
            if array.dtype != dtype or array.ndim != 1:
                raise RecordError(f"{name} is {array.dtype} {array.shape}, not {dtype} with one dimension")
            return array

        text_X, vector_V, ids_C = take("text.modality"), take("vector.modality"), take("codes.id")
        moments_K = take("moment.time")
        columns = Columns(
            key=metadata["key"],
            series_S=take("series.modality"),
            counts_S=take("series.count"),
            times_O=take("series.time"),
            channels_O=take("series.channel"),
            values_O=take("series.value"),
            text_X=text_X,
            sizes_X=take("text.count"),
            bytes_=take("text.byte"),
            text_times_X=take("text.time", rows=len(text_X)),
            vector_V=vector_V,
            features_=take("vector.value"),
            vector_times_V=take("vector.time", rows=len(vector_V)),
            codes_Q=take("codes.modality"),
            code_counts_Q=take("codes.count"),
            code_ids_C=ids_C,
            code_times_C=take("codes.time", rows=len(ids_C)),
            code_values_C=take("codes.value", np.nan, len(ids_C)),
            empty_E=take("empty"),
            moments_K=moments_K,
            targets_KW=self._targets(tensors, len(moments_K)),
        )
        self._take_arrays(tensors, columns)
        self._check_series(columns)
        self._check_others(columns)
        self._check_codes(columns)
        return columns

    def record(self, buffer: bytes | memoryview) -> Record:
        """The record as it was before ``encode_record``, in the order in which it is stored.

        Raises ValueError: it has codes, and the vocabulary that names them was not given.
        """
        _, metadata = load_tensors(buffer, self.limits)
        columns = self.columns(buffer)
        names, values = self.schema.modality_names, dict[str, Value]()
        # All series lie in one column, one after the other.
        start = np.concatenate(([0], np.cumsum(columns.counts_S)))
        for i, number in enumerate(columns.series_S.tolist()):
            cut = slice(start[i], start[i + 1])
            values[names[number]] = Series(columns.times_O[cut], columns.channels_O[cut], columns.values_O[cut])
        values |= {names[number]: own for number, own in self._objects(columns).items()}
        values |= self._codes_of(columns)
        offsets, rows_KW = self.schema.target_offsets, columns.targets_KW
        targets: dict[str, np.ndarray | float | None] = {}
        for i, task in enumerate(self.schema.tasks):
            own_KW = rows_KW[:, offsets[i] : offsets[i + 1]]
            targets[task.name] = own_KW if task.timed else own_KW[0]
        splits = {name[6:]: part for name, part in metadata.items() if name.startswith("split.")}
        moments = columns.moments_K if len(columns.moments_K) else None
        return Record(columns.key, values, targets, splits, metadata.get("group"), moments)

    def _objects(self, columns: Columns) -> dict[int, Value]:
        """What is neither series nor codes, by modality number: Objects where it has times."""
        found: dict[int, tuple[list[float], list[str] | list[np.ndarray]]] = {
            int(number): ([], []) for number in columns.empty_E
        }
        start = np.concatenate(([0], np.cumsum(columns.sizes_X)))
        for i, (number, time) in enumerate(zip(columns.text_X.tolist(), columns.text_times_X, strict=True)):
            times, values = found.setdefault(number, ([], []))
            times.append(time)
            values.append(bytes(columns.bytes_[start[i] : start[i + 1]]).decode())  # type: ignore[arg-type]
        start = np.concatenate(([0], np.cumsum(self._features[columns.vector_V])))
        for i, (number, time) in enumerate(zip(columns.vector_V.tolist(), columns.vector_times_V, strict=True)):
            times, values = found.setdefault(number, ([], []))
            times.append(time)
            values.append(columns.features_[start[i] : start[i + 1]])  # type: ignore[arg-type]
        for number, arrays in columns.arrays.items():
            found[number] = (list(columns.array_times[number]), arrays)
        return {
            number: Objects(np.array(times, np.float32), values) if self._timed[number] else values[0]
            for number, (times, values) in found.items()
        }

    def _codes_of(self, columns: Columns) -> dict[str, Value]:
        values, end_Q = dict[str, Value](), np.cumsum(columns.code_counts_Q)
        for number, start, end in zip(columns.codes_Q.tolist(), end_Q - columns.code_counts_Q, end_Q, strict=True):
            spec = self.schema.modalities[number]
            if spec.name not in self.vocabularies:
                raise ValueError(f"record {columns.key}: codes of modality {spec.name} need its vocabulary to be named")
            vocabulary = self.vocabularies[spec.name]
            values[spec.name] = Codes(
                [vocabulary.name(code) for code in columns.code_ids_C[start:end].tolist()],
                columns.code_times_C[start:end] if spec.timed else None,
                columns.code_values_C[start:end] if spec.valued else None,
            )
        return values

    def _check_metadata(self, metadata: dict[str, str], key: str | None) -> None:
        if metadata.get("format") not in FORMATS:
            raise RecordError(f"format {metadata.get('format')!r}, this program reads {' and '.join(FORMATS)}")
        if metadata.get("schema") != self._digest:
            raise RecordError(f"packed with schema {metadata.get('schema')!r}, the manifest's is {self._digest!r}")
        own = metadata.get("key", "")
        if not KEY.fullmatch(own) or (key is not None and own != key):
            raise RecordError(f"holds key {own!r} where {key!r} was expected")

    def _targets(self, tensors: dict[str, np.ndarray], moments: int) -> np.ndarray:
        width = self.schema.target_offsets[-1]
        target = tensors.pop("target", np.empty((moments, 0) if moments else 0, np.float32))
        if target.shape != ((moments, width) if moments else (width,)) or target.dtype != np.float32:
            raise RecordError(f"targets of shape {target.shape}, not {moments or 1} rows of {width}")
        return target.reshape(max(1, moments), width)

    def _take_arrays(self, tensors: dict[str, np.ndarray], columns: Columns) -> None:
        """Pictures and waveforms: what no name was taken for, or nothing that belongs here."""
        for name in [name for name in tensors if name in self._arrays]:
            number, spec = self._arrays[name]
            array = tensors.pop(name)
            times_N, counts_N = np.zeros(1, np.float32), None
            if spec.timed:
                times_N = tensors.pop(f"time.{spec.name}", np.empty(0, np.float32))
                if spec.kind == "waveform":
                    counts_N = tensors.pop(f"count.{spec.name}", np.empty(0, np.int32))
            columns.arrays[number] = self._split(spec, array, times_N, counts_N)
            columns.array_times[number] = times_N
        if tensors:
            raise RecordError(f"array {next(iter(tensors))!r} belongs to no modality of the schema")

    def _split(
        self, spec: ModalitySpec, array: np.ndarray, times_N: np.ndarray, counts_N: np.ndarray | None
    ) -> list[np.ndarray]:
        """The objects of one modality, checked."""
        ragged = spec.kind == "waveform"
        lead = 1 if ragged or spec.timed else 0
        if array.ndim != len(spec.shape) + lead or array.shape[lead:] != spec.shape or array.dtype != spec.dtype:
            raise RecordError(
                f"modality {spec.name}: {array.dtype} {array.shape} does not fit {spec.dtype} {spec.shape}"
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise RecordError(f"modality {spec.name}: NaN or infinity", "value")
        if not spec.timed:
            pieces = [array]
        elif counts_N is None:
            pieces = list(array)
        else:
            if counts_N.dtype != np.int32 or counts_N.ndim != 1 or (counts_N < 0).any():
                raise RecordError(f"modality {spec.name}: lengths of waveforms are no counts")
            if int(counts_N.sum(dtype=np.int64)) != len(array):
                raise RecordError(f"modality {spec.name}: lengths of waveforms do not add up to {len(array)}")
            # As np.split, at a tenth of what it costs one waveform.
            pieces = [array[end - count : end] for count, end in zip(counts_N, np.cumsum(counts_N), strict=True)]
        self._check_times(f"modality {spec.name}", times_N, len(pieces))
        longest = max(map(len, pieces))
        if ragged and longest > (spec.max_length or 0):
            raise RecordError(
                f"modality {spec.name}: a waveform of {longest} samples does not fit {spec.max_length}", "value"
            )
        return pieces

    def _check_times(self, what: str, times_N: np.ndarray, objects: int) -> None:
        if times_N.dtype != np.float32 or times_N.shape != (objects,) or not 0 < objects <= MAX_OBJECTS:
            raise RecordError(f"{what}: times {times_N.dtype} {times_N.shape} for {objects} objects")
        if not np.isfinite(times_N).all() or (_steps(times_N) < 0).any():
            raise RecordError(f"{what}: times of objects are not finite and ascending", "value")

    def _check_ids(self, ids: np.ndarray, kind: str, several: bool = False) -> None:
        """Ascending; ``several``: a timed modality may be there more than once in a row."""
        known = kind, several, ids.tobytes()
        if known in self._legal:
            return
        # Its ends bound it; a number below 0 would count from the schema's end.
        step = _steps(ids)
        wrong = len(ids) and (ids[0] < 0 or ids[-1] >= len(self._kinds) or (step < 0).any())
        if wrong or ((step == 0) & (not several or ~self._timed[ids[1:]])).any():
            raise RecordError(f"{kind} modality numbers {ids.tolist()} are not ascending within the schema")
        if (self._kinds[ids] != kind).any():
            raise RecordError(f"modality numbers {ids.tolist()} are not all of kind {kind}")
        if len(self._legal) < _REMEMBERED and len(ids) < _REMEMBERED:
            self._legal.add(known)

    def _check_rows(self, ids: np.ndarray, times: np.ndarray, kind: str) -> None:
        """Objects of one kind: by modality, then by time; time 0 without times."""
        self._check_ids(ids, kind, several=True)
        # Without times all of them are 0, which is finite and the time of what has none.
        wrong = len(times) != len(ids)
        if wrong or (times.any() and (not np.isfinite(times).all() or times[~self._timed[ids]].any())):
            raise RecordError(f"{kind}: {len(times)} times for {len(ids)} objects, or one that is not finite", "value")
        if len(ids) > 1 and ((_steps(ids) == 0) & (_steps(times) < 0)).any():
            raise RecordError(f"{kind}: objects are not sorted by time", "value")
        if len(ids) > MAX_OBJECTS and np.bincount(ids).max() > MAX_OBJECTS:
            raise RecordError(f"{kind}: over {MAX_OBJECTS} objects of one modality", "value")

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
        if not any(map(len, (ids, counts, times, channels, values))):
            return
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
        step = _steps(place)
        if (step < 0).any() or (_steps(times)[step == 0] < 0).any():
            raise RecordError("events are not sorted by channel and time", "value")

    def _check_others(self, columns: Columns) -> None:
        if any(map(len, (columns.text_X, columns.text_times_X, columns.sizes_X, columns.bytes_))):
            self._check_texts(columns)
        if any(map(len, (columns.vector_V, columns.vector_times_V, columns.features_))):
            self._check_vectors(columns)
        if len(columns.empty_E):
            self._check_empty(columns)
        self._check_moments(columns)

    def _check_texts(self, columns: Columns) -> None:
        self._check_rows(columns.text_X, columns.text_times_X, "text")
        self._check_counts(columns.text_X, columns.sizes_X, len(columns.bytes_), "text")
        # Each text by itself: a character cut in two between neighbours would be whole in their sum.
        end_X = np.cumsum(columns.sizes_X)
        try:
            for start, end in zip((end_X - columns.sizes_X).tolist(), end_X.tolist(), strict=True):
                bytes(columns.bytes_[start:end]).decode()
        except UnicodeDecodeError as error:
            raise RecordError(f"text is not UTF-8: {error}", "value") from error

    def _check_vectors(self, columns: Columns) -> None:
        self._check_rows(columns.vector_V, columns.vector_times_V, "vector")
        if int(self._features[columns.vector_V].sum()) != len(columns.features_):
            raise RecordError(f"{len(columns.features_)} vector features do not fit {columns.vector_V.tolist()}")
        if not np.isfinite(columns.features_).all():
            raise RecordError("a vector holds NaN or infinity", "value")

    def _check_empty(self, columns: Columns) -> None:
        ids = columns.empty_E
        if ids[0] < 0 or ids[-1] >= len(self._kinds) or (_steps(ids) <= 0).any():
            raise RecordError(f"empty modality numbers {ids.tolist()} are not ascending within the schema")
        full = {*columns.text_X.tolist(), *columns.vector_V.tolist(), *columns.arrays}
        for number in ids.tolist():
            if not self.schema.modalities[number].has_objects or number in full:
                raise RecordError(f"modality number {number} cannot be there without objects")

    def _check_moments(self, columns: Columns) -> None:
        moments_K = columns.moments_K
        if len(moments_K) and not self.schema.has_moments:
            raise RecordError("moments, and no task of the schema has labels at moments")
        if len(moments_K) and (not np.isfinite(moments_K).all() or (_steps(moments_K) <= 0).any()):
            raise RecordError("moments are not finite and ascending", "value")
        offsets = self.schema.target_offsets
        for i, task in enumerate(self.schema.tasks):
            if problem := task.check(columns.targets_KW[:, offsets[i] : offsets[i + 1]]):
                raise RecordError(problem, "value")

    def _check_codes(self, columns: Columns) -> None:
        ids, counts, codes = columns.codes_Q, columns.code_counts_Q, columns.code_ids_C
        if not any(map(len, (ids, counts, codes, columns.code_times_C, columns.code_values_C))):
            return
        self._check_ids(ids, "codes")
        self._check_counts(ids, counts, len(codes), "codes")
        if not len(codes) == len(columns.code_times_C) == len(columns.code_values_C):
            raise RecordError("codes, their times and their values differ in number")
        if not len(codes):
            return
        if codes.min() < 0 or (codes >= np.repeat(self._codes[ids], counts)).any():
            raise RecordError("a code's number is outside its vocabulary", "value")
        if not np.isfinite(columns.code_times_C).all() or np.isinf(columns.code_values_C).any():
            raise RecordError("a code's time or value is NaN or infinite", "value")
        if columns.code_times_C[np.repeat(~self._timed[ids], counts)].any():
            raise RecordError("codes without times have times", "value")
        place, time = np.repeat(ids, counts), columns.code_times_C
        same = _steps(place) == 0
        later, equal = _steps(time) > 0, _steps(time) == 0
        if (same & ~later & ~(equal & (_steps(codes) >= 0))).any():
            raise RecordError("codes are not sorted by time and number", "value")


def _steps(x_N: np.ndarray) -> np.ndarray:
    """`np.diff` of one axis; for a record's few numbers that costs five times as much."""
    difference: np.ndarray = x_N[1:] - x_N[:-1]
    return difference
