"""Records survive encoding; bytes that are not a legal record are refused before memory is taken."""

from __future__ import annotations

import json
import pickle
import struct
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from safetensors.numpy import load as load_with_library

from data_shards.errors import RecordError
from data_shards.records.arrays import Limits, dump_tensors, load_tensors
from data_shards.records.codec import encode_record
from data_shards.records.decoder import Decoder
from data_shards.records.record import Record, Series
from data_shards.records.schema import DatasetSchema, ModalitySpec
from tests.data_shards.build import SCHEMA, make_record, same, same_record

DECODER = Decoder(SCHEMA)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_round_trip(share: float) -> None:
    for number in range(60):
        record = make_record(number, share=share)
        assert same_record(record, DECODER.record(encode_record(record, SCHEMA)))


def test_absent_empty_and_unobserved_stay_apart() -> None:
    empty = Series(np.empty(0, "f4"), np.empty(0, "i2"), np.empty(0, "f4"))
    again = DECODER.record(encode_record(Record("k", {"labs": empty, "note": ""}), SCHEMA))
    assert again.values.keys() == {"labs", "note"} and len(again.values["labs"]) == 0
    lengths = DECODER.columns(encode_record(Record("k", {"labs": empty}), SCHEMA)).lengths(SCHEMA)
    assert lengths.tolist() == [0, *[-1] * 8]


def test_events_are_stored_by_channel_then_time() -> None:
    rng = np.random.default_rng(0)
    series = Series(rng.uniform(0, 48, 40).astype("f4"), rng.integers(0, 3, 40), rng.standard_normal(40).astype("f4"))
    columns = DECODER.columns(encode_record(Record("k", {"labs": series}), SCHEMA))
    order = list(zip(columns.channels_O.tolist(), columns.times_O.tolist(), strict=True))
    assert order == sorted(order)


def test_equal_records_give_equal_bytes_whatever_the_order_of_their_dictionaries() -> None:
    record = make_record(3, share=1.0)
    turned = Record(record.key, dict(reversed(record.values.items())), record.targets, record.splits, record.group)
    assert encode_record(record, SCHEMA) == encode_record(turned, SCHEMA)


def test_the_safetensors_library_reads_a_member() -> None:
    record = make_record(1, share=1.0)
    payload = encode_record(record, SCHEMA)
    arrays = load_with_library(payload)
    assert same(arrays["image.picture"], record.values["picture"])
    assert arrays.keys() == load_tensors(payload)[0].keys()


def test_arrays_start_at_multiples_of_their_item_size() -> None:
    payload = encode_record(make_record(1, share=1.0), SCHEMA)
    buffer = np.zeros(len(payload) + 512, np.uint8)  # a member starts at a multiple of 512 in a shard
    start = (-buffer.ctypes.data) % 512
    buffer[start : start + len(payload)] = np.frombuffer(payload, np.uint8)
    arrays, _ = load_tensors(memoryview(buffer.data)[start : start + len(payload)])
    assert all(array.ctypes.data % array.dtype.itemsize == 0 for array in arrays.values())


def header(table: dict[str, object], data: bytes = b"") -> bytes:
    text = json.dumps(table).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: str, shape: list[object], start: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


HUGE = 1 << 42
BAD_LAYOUTS = {
    "empty": b"",
    "short": b"\1\2\3",
    "header longer than the member": struct.pack("<Q", 100) + b"{}",
    "header of 4 TB": struct.pack("<Q", HUGE) + b"{}",
    "not JSON": struct.pack("<Q", 4) + b"abcd",
    "deep JSON": struct.pack("<Q", 60_000) + b"[" * 60_000,
    "a list": struct.pack("<Q", 2) + b"[]",
    "an array of 4 TB": header({"x": entry("F32", [HUGE], 0, 4 * HUGE)}),
    "shape overflow to zero": header({"x": entry("F32", [1 << 32, 1 << 32], 0, 0)}),
    "negative extent": header({"x": entry("F32", [-1, -4], 0, 16)}, bytes(16)),
    "bool extent": header({"x": entry("U8", [True], 0, 1)}, bytes(1)),
    "fraction extent": header({"x": entry("U8", [1.0], 0, 1)}, bytes(1)),
    "negative start": header({"x": entry("U8", [4], -4, 0)}, bytes(4)),
    "overlap": header({"x": entry("U8", [4], 0, 4), "y": entry("U8", [4], 2, 6)}, bytes(6)),
    "hole": header({"x": entry("U8", [4], 0, 4), "y": entry("U8", [4], 6, 10)}, bytes(10)),
    "beyond the end": header({"x": entry("U8", [4], 0, 4)}, bytes(2)),
    "bytes left over": header({"x": entry("U8", [4], 0, 4)}, bytes(9)),
    "object dtype": header({"x": entry("O", [1], 0, 8)}, bytes(8)),
    "no offsets": header({"x": {"dtype": "U8", "shape": [1]}}, bytes(1)),
    "metadata is a number": header({"__metadata__": {"key": 1}}),
    "nine dimensions": header({"x": entry("U8", [1] * 9, 0, 1)}, bytes(1)),
    "a pickle": pickle.dumps({"x": 1}),
}


@pytest.mark.parametrize("name", BAD_LAYOUTS)
def test_bad_layouts_are_refused_before_memory_is_taken(name: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(RecordError):
            load_tensors(BAD_LAYOUTS[name])
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_limits() -> None:
    payload = encode_record(make_record(0), SCHEMA)
    with pytest.raises(RecordError, match="the limit is 100"):
        load_tensors(payload, Limits(member_bytes=100))
    with pytest.raises(RecordError, match="limit 16"):
        load_tensors(payload, Limits(header_bytes=16))


def test_only_plain_numbers_are_stored() -> None:
    for array in (np.array([{}], dtype=object), np.array(["text"]), np.array([1j])):
        with pytest.raises(ValueError, match="cannot be stored"):
            dump_tensors({"x": array}, {})


def changed(change: Callable[[dict[str, np.ndarray], dict[str, str]], None]) -> bytes:
    """A legal record whose arrays are changed afterwards: what a faulty or hostile writer stores."""
    tensors, metadata = load_tensors(encode_record(make_record(1, share=1.0), SCHEMA))
    copies = {name: array.copy() for name, array in tensors.items()}
    change(copies, metadata)
    return dump_tensors(copies, metadata)


def put(name: str, place: int, value: float) -> Callable[[dict[str, np.ndarray], dict[str, str]], None]:
    return lambda t, m: t[name].__setitem__(place, value)


FORGERIES: dict[str, tuple[Callable[[dict[str, np.ndarray], dict[str, str]], object], str]] = {
    "format": (lambda t, m: m.update(format="other/9"), "format 'other/9'"),
    "schema": (lambda t, m: m.update(schema="0" * 16), "packed with schema"),
    "key": (lambda t, m: m.update(key="../../x"), "holds key"),
    "channel": (put("series.channel", 0, 9), "channel number is outside"),
    "negative channel": (put("series.channel", 0, -1), "channel number is outside"),
    "unknown modality": (put("series.modality", 0, 99), "not ascending within the schema"),
    "wrong kind": (put("series.modality", 0, 1), "not all of kind series"),
    "negative count": (put("series.count", 0, -3), "do not add up"),
    "count too large": (put("series.count", 0, 2_000_000_000), "do not add up"),
    "NaN value": (put("series.value", 0, np.nan), "NaN or infinite"),
    "infinite time": (put("series.time", -1, np.inf), "NaN or infinite"),
    "unsorted": (lambda t, m: t.update({"series.time": t["series.time"][::-1].copy()}), "not sorted"),
    "column lengths": (lambda t, m: t.update({"series.value": t["series.value"][:-1].copy()}), "values"),
    "text": (put("text.byte", 0, 255), "not UTF-8"),
    "vector width": (lambda t, m: t.update({"vector.value": np.zeros(2, "f4")}), "do not fit"),
    "vector NaN": (put("vector.value", 0, np.nan), "NaN or infinity"),
    "image shape": (lambda t, m: t.update({"image.picture": np.zeros((1, 3, 2), "u1")}), "does not fit"),
    "image dtype": (lambda t, m: t.update({"image.picture": np.zeros((1, 2, 3), "f4")}), "does not fit"),
    "waveform length": (lambda t, m: t.update({"waveform.ecg": np.zeros((51, 2), "i2")}), "does not fit"),
    "unknown array": (lambda t, m: t.update({"image.secret": np.zeros(1, "u1")}), "belongs to no modality"),
    "targets missing": (lambda t, m: t.pop("target"), "targets of shape"),
    "label": (put("target", 1, 7), "label 7 is out of range"),
    "column dtype": (lambda t, m: t.update({"series.time": t["series.time"].astype("f8")}), "series.time is float64"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forged_records_are_refused(name: str) -> None:
    change, words = FORGERIES[name]
    with pytest.raises(RecordError, match=words):
        DECODER.columns(changed(change), "r00001")  # type: ignore[arg-type]


def test_numbers_that_were_legal_of_one_kind_are_not_of_another() -> None:
    """A decoder remembers lists of modality numbers that it has looked at."""
    schema = DatasetSchema("two", (ModalitySpec("v", "vector", shape=(1,)), ModalitySpec("t", "text", max_length=9)))
    decoder, payload = Decoder(schema), encode_record(Record("r", {"v": np.ones(1, np.float32)}), schema)
    assert decoder.columns(payload).vector_V.tolist() == [0]
    tensors, metadata = load_tensors(payload)
    forged = {"text.modality": tensors["vector.modality"], "text.count": np.zeros(1, np.int32)}
    with pytest.raises(RecordError, match="are not all of kind text"):
        decoder.columns(dump_tensors(forged, metadata))


def test_flipped_bytes_never_do_worse_than_a_record_error() -> None:
    payload = encode_record(make_record(1, share=1.0), SCHEMA)
    rng, refused = np.random.default_rng(0), 0
    for _ in range(500):
        damaged = bytearray(payload)
        damaged[rng.integers(len(damaged))] ^= 1 << int(rng.integers(8))
        try:
            DECODER.record(bytes(damaged))
        except RecordError:
            refused += 1
    assert refused > 100  # flips inside plain numbers are the checksum's business


def test_a_schema_without_tasks() -> None:
    schema = DatasetSchema("bare", (ModalitySpec("v", "vector", shape=(2,)),))
    payload = encode_record(Record("k", {"v": np.ones(2, "f4")}), schema)
    assert Decoder(schema).record(payload).targets == {}
