"""The check that a record fits its schema, before anything of it is stored."""

from __future__ import annotations

import numpy as np

from data_shards.records.precision import lost, lost_times, resolution
from data_shards.records.record import KEY, PART, Codes, Objects, Record, Series, Value, unusual_part
from data_shards.records.schema import MAX_OBJECTS, DatasetSchema, ModalitySpec, TaskSpec

MAX_CODE_BYTES = 200


def validate(schema: DatasetSchema, record: Record) -> np.ndarray:
    """Its `target_rows`. Raises ValueError naming the key, the modality or task, and what does not fit."""
    if not KEY.fullmatch(record.key):
        raise ValueError(
            f"record key {record.key!r} must be 1 to 90 letters, digits, '_' or '-' (a dot splits a sample; in a "
            "mapping: records: {keys: escape})"
        )
    for name, value in record.values.items():
        if name not in schema.numbers:
            raise ValueError(f"record {record.key}: modality {name!r} is not in schema {schema.name}")
        problem = value_problem(schema.modalities[schema.numbers[name]], value, schema.has_moments)
        if problem:
            raise ValueError(f"record {record.key}, modality {name}: {problem}")
    for split, part in record.splits.items():
        if not PART.fullmatch(split) or not PART.fullmatch(part):
            raise ValueError(f"record {record.key}: split {split!r}: {part!r} must be letters, digits, '_' or '-'")
        if problem := unusual_part(part):
            raise ValueError(f"record {record.key}, split {split!r}: {problem}")
    return target_rows(schema, record)


def target_rows(schema: DatasetSchema, record: Record) -> np.ndarray:
    """float32 [K, W], or [1, W] without moments: targets of all tasks side by side in schema order, NaN = unlabelled.

    Raises:
        ValueError: an unknown task, a wrong width, a label out of range, or moments that do not ascend.
    """
    if unknown := sorted(record.targets.keys() - schema.task_names):
        raise ValueError(f"record {record.key}: task {', '.join(unknown)} is not in schema {schema.name}")
    if problem := _moments_problem(schema, record):
        raise ValueError(f"record {record.key}: {problem}")
    rows_KW = np.full((max(1, len(moments_of(record))), schema.target_offsets[-1]), np.nan, np.float32)
    for task, start, end in zip(schema.tasks, schema.target_offsets, schema.target_offsets[1:], strict=False):
        value = record.targets.get(task.name)
        if value is not None:
            # A label without times holds at every moment.
            rows_KW[:, start:end] = _target(record, task, value, len(rows_KW) if task.timed else 1, end - start)
    return rows_KW


def _target(record: Record, task: TaskSpec, value: np.ndarray | float, rows: int, width: int) -> np.ndarray:
    """float32 [rows, width] of one task."""
    exact = np.atleast_1d(np.asarray(value, np.float64))
    if task.timed and width == 1 and exact.ndim == 1:
        exact = exact[:, None]
    wanted: tuple[int, ...] = (rows, width) if task.timed else (width,)
    if exact.shape != wanted:
        raise ValueError(f"record {record.key}, task {task.name}: target shape {exact.shape}, not {wanted}")
    numbers = exact[..., 0] if task.kind == "survival" else exact
    rounded = lost(numbers.ravel()) if task.kind in ("regression", "survival") else None
    if rounded:
        remedy = "give it in a larger unit" if task.kind == "survival" else "subtract a constant from the target"
        raise ValueError(f"record {record.key}, task {task.name}: {rounded}; {remedy}")
    target = exact.astype(np.float32).reshape(rows, width)
    if problem := task.check(target):
        raise ValueError(f"record {record.key}, {problem}")
    return target


def moments_of(record: Record) -> np.ndarray:
    """float32 [K]: empty where there are none."""
    return np.empty(0, np.float32) if record.moments is None else np.asarray(record.moments, np.float32)


def _moments_problem(schema: DatasetSchema, record: Record) -> str | None:
    moments_K = moments_of(record)
    if not len(moments_K):
        return None
    if not schema.has_moments:
        return f"has {len(moments_K)} moments, and no task of schema {schema.name} has labels at moments"
    if not np.isfinite(moments_K).all() or (np.diff(moments_K) <= 0).any():
        return f"moments {moments_K[:5].tolist()}... must ascend, as float32, and be finite"
    return None


def value_problem(spec: ModalitySpec, value: Value, any_time: bool) -> str | None:
    """None if a value fits its modality, otherwise what is wrong; ``any_time``: times may lie outside of the window."""
    if spec.kind == "series":
        return _series_problem(spec, value, any_time) if isinstance(value, Series) else _wrong_type("a Series", value)
    if spec.kind == "codes":
        return _codes_problem(spec, value, any_time) if isinstance(value, Codes) else _wrong_type("Codes", value)
    if spec.timed:
        return _objects_problem(spec, value, any_time) if isinstance(value, Objects) else _wrong_type("Objects", value)
    return _object_problem(spec, value)


def _object_problem(spec: ModalitySpec, value: object) -> str | None:
    if spec.kind == "text":
        if not isinstance(value, str):
            return _wrong_type("a str", value)
        size = len(value.encode())
        return f"{size} bytes of text, at most {spec.max_length} are allowed" if size > (spec.max_length or 0) else None
    return _array_problem(spec, value) if isinstance(value, np.ndarray) else _wrong_type("an array", value)


def _objects_problem(spec: ModalitySpec, objects: Objects, any_time: bool) -> str | None:
    if objects.times_N.shape != (len(objects.values),):
        return f"times {objects.times_N.shape} for {len(objects.values)} objects"
    if len(objects) > MAX_OBJECTS:
        return f"{len(objects)} objects, at most {MAX_OBJECTS} are allowed"
    if problem := _times_problem(spec, objects.times_N, any_time):
        return problem
    for i, value in enumerate(objects.values):
        if problem := _object_problem(spec, value):
            return f"object {i}: {problem}"
    return None


def _codes_problem(spec: ModalitySpec, codes: Codes, any_time: bool) -> str | None:
    number = len(codes.codes)
    if (codes.times_O is not None) != spec.timed:
        return "codes need a time each" if spec.timed else "codes without times were declared; leave times_O out"
    if codes.values_O is not None and not spec.valued:
        return "codes without values were declared; leave values_O out"
    for what, column in (("times", codes.times_O), ("values", codes.values_O)):
        if column is not None and column.shape != (number,):
            return f"{what} {column.shape} for {number} codes"
    if number > (spec.max_length or 0):
        return f"{number} codes, at most {spec.max_length} are allowed"
    for code in codes.codes:
        if not isinstance(code, str) or not code or len(code.encode()) > MAX_CODE_BYTES:
            return f"code {code!r} must be text of 1 to {MAX_CODE_BYTES} bytes"
    if codes.values_O is not None:
        known = codes.values_O[~np.isnan(codes.values_O)]
        if np.isinf(known).any():
            return "a code's value is infinite; NaN stands for none"
        rounded = lost(known.astype(np.float64)) if known.dtype != np.float32 else None
        if rounded:
            return f"{rounded}; subtract a constant from the values"
    return _times_problem(spec, codes.times_O, any_time) if codes.times_O is not None else None


def _wrong_type(wanted: str, value: object) -> str:
    return f"needs {wanted}, got {type(value).__name__}"


def _series_problem(spec: ModalitySpec, series: Series, any_time: bool) -> str | None:
    times, channels, values = series.times_O, series.channels_O, series.values_O
    if not (times.ndim == 1 and times.shape == channels.shape == values.shape):
        return f"times {times.shape}, channels {channels.shape} and values {values.shape} must be equally long"
    if len(times) > (spec.max_length or 0):
        return f"{len(times)} events, at most {spec.max_length} are allowed"
    if len(times) == 0:
        return None
    if channels.dtype.kind not in "iu":
        return f"channel numbers must be integers, not {channels.dtype}"
    if channels.min() < 0 or channels.max() >= len(spec.channels):
        return f"channel {channels.min()} to {channels.max()} is outside 0 to {len(spec.channels) - 1}"
    if not (np.isfinite(times).all() and np.isfinite(values).all()):
        return "times and values must be finite; leave a missing value out instead of storing NaN"
    rounded = lost(values.astype(np.float64)) if values.dtype != np.float32 else None
    if rounded:
        return f"{rounded}; subtract a constant from the values"
    return _times_problem(spec, times, any_time)


def _times_problem(spec: ModalitySpec, times: np.ndarray, any_time: bool) -> str | None:
    if len(times) == 0:
        return None
    if not np.isfinite(times).all():
        return "times must be finite"
    rounded = _rounded(times.astype(np.float64)) if times.dtype != np.float32 else None
    if rounded:
        return f"{rounded}; subtract the record's time 0 in float64 before"
    if spec.horizon is not None and not any_time and (times.min() < 0 or times.max() > spec.horizon):
        return f"times {times.min():g} to {times.max():g} leave the window 0 to {spec.horizon:g} {spec.time_unit}"
    return None


def _rounded(time_O: np.ndarray) -> str | None:
    gaps = np.diff(np.unique(time_O))
    return lost_times(time_O, resolution(time_O), float(np.median(gaps)) if len(gaps) else np.inf)


def _array_problem(spec: ModalitySpec, array: np.ndarray) -> str | None:
    shape = array.shape[1:] if spec.kind == "waveform" and array.ndim == 2 else array.shape
    if shape != spec.shape or (spec.kind == "waveform" and array.ndim != 2):
        wanted = ("L", *spec.shape) if spec.kind == "waveform" else spec.shape
        return f"shape {array.shape}, not ({', '.join(map(str, wanted))})"
    if array.dtype != np.dtype(spec.dtype):
        return f"dtype {array.dtype}, not {spec.dtype}"
    if spec.kind == "waveform" and len(array) > (spec.max_length or 0):
        return f"{len(array)} samples, at most {spec.max_length} are allowed"
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        named = spec.kind == "vector" and len(spec.channels) == len(array)
        which = f" in {spec.channels[int(np.argmin(np.isfinite(array)))]}" if named else ""
        return f"holds NaN or infinity{which}; add an indicator feature, or leave the modality out"
    return None
