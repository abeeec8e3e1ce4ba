"""Plain records encoded together: byte for byte and column for column what one by one gives, and the same sentences."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from data_shards import DatasetSchema, ModalitySpec, Record, TaskSpec
from data_shards.packing.encode import UnitEncoder
from data_shards.packing.units import plain as plain_module
from data_shards.packing.units.plain import PlainEncoder
from data_shards.records.codec import encode_record
from data_shards.records.decoder import Decoder
from tests.data_shards.build import ListSource

MODALITIES = (
    ModalitySpec("wide", "vector", shape=(5,)),
    ModalitySpec("note", "text", max_length=50),
    ModalitySpec("pair", "vector", shape=(2,)),
    ModalitySpec("visits", "vector", shape=(2,), timed=True, time_unit="hours", horizon=9.0, max_objects=2),
)
TASKS = (
    TaskSpec("sick", "binary"),
    TaskSpec("kind", "multiclass", classes=("a", "b", "c")),
    TaskSpec("signs", "multilabel", classes=("x", "y")),
    TaskSpec("size", "regression", dim=2),
    TaskSpec("days", "survival", edges=(1.0, 5.0), unit="days"),
)
SCHEMA = DatasetSchema("plain", MODALITIES, TASKS)


def plain_record(number: int) -> Record:
    """Any of the things that a plain record may have or lack."""
    rng = np.random.default_rng(number)
    there = [spec for spec in (MODALITIES[2], MODALITIES[0]) if number % 5 or spec.name == "pair"]
    values: dict[str, Any] = {spec.name: rng.standard_normal(spec.shape).astype(np.float32) for spec in there}
    targets: dict[str, Any] = {
        "sick": [0.0, 1, None, np.float32(1), True][number % 5],
        "kind": float(rng.integers(3)),
        "signs": [np.array([1.0, np.nan]), np.array([0, 1]), None][number % 3],
        "size": rng.standard_normal(2),
        "days": np.array([rng.integers(9), 1.0]),
    }
    targets = {name: value for name, value in targets.items() if rng.random() < 0.9}
    splits = {"default": ["train", "val"][number % 2]} | ({"other": "test"} if number % 7 == 0 else {})
    return Record(f"r{number}", values, targets, splits, [None, 'gröup "1"\\', "2"][number % 3])


def alone(record: Record) -> tuple[bytes, dict[str, Any]]:
    payload = encode_record(record, SCHEMA)
    return payload, vars(Decoder(SCHEMA).columns(payload, record.key))


def test_together_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    records, plain, by_form = [plain_record(n) for n in range(200)], PlainEncoder(SCHEMA), dict[Any, list[Record]]()
    for record in records:
        by_form.setdefault(plain.form(record), []).append(record)
    assert set(by_form) == {("wide", "pair"), ("pair",)}
    by_itself = list[str]()
    monkeypatch.setattr(
        plain_module, "encode_record", lambda own, schema: by_itself.append(own.key) or encode_record(own, schema)
    )
    for form, own in by_form.items():
        for record, (payload, columns) in zip(own, plain.encode(form, own), strict=True):
            wanted, wanted_columns = alone(record)
            assert payload == wanted
            for name in (field.name for field in fields(columns)):
                mine, theirs = getattr(columns, name), wanted_columns[name]
                assert np.array_equal(mine, theirs, equal_nan=True) if isinstance(mine, np.ndarray) else mine == theirs
                assert not isinstance(mine, np.ndarray) or mine.dtype == theirs.dtype, name
    assert by_itself == [own[0].key for own in by_form.values()]


@pytest.mark.parametrize(
    "other",
    [
        {"values": {"note": "text"}},
        {"values": {}},
        {"values": {"pair": np.zeros(3, np.float32)}},
        {"values": {"pair": np.zeros(2)}},
        {"values": {"unknown": np.zeros(2, np.float32)}},
        {"moments": np.zeros(1)},
        {"targets": {"sick": "1"}},
        {"targets": {"unknown": 1.0}},
        {"targets": {"size": 1.0}},
        {"group": "g" * 1001},
    ],
)
def test_what_is_not_plain(other: dict[str, Any]) -> None:
    assert PlainEncoder(SCHEMA).form(replace(plain_record(1), **other)) is None


def test_nothing_is_plain_where_labels_have_moments() -> None:
    timed = TaskSpec("later", "binary", timed=True, time_unit="hours")
    assert PlainEncoder(DatasetSchema("timed", MODALITIES, (timed,))).form(plain_record(1)) is None
    large = ModalitySpec("large", "vector", shape=(70_000,))
    assert PlainEncoder(DatasetSchema("large", (*MODALITIES, large), TASKS)).form(plain_record(1)) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"key": "a.b"},
        {"key": ""},
        {"splits": {"default": "Train"}},
        {"splits": {"def ault": "train"}},
        {"values": {"pair": np.array([1, np.nan], np.float32)}},
        {"targets": {"sick": 2}},
        {"targets": {"sick": 0.5}},
        {"targets": {"kind": -1}},
        {"targets": {"kind": 3.0}},
        {"targets": {"signs": np.array([0.0, np.inf])}},
        {"targets": {"size": np.array([1.0, 16_777_217.0])}},
        {"targets": {"size": np.array([1e300, 0.0])}},
        {"targets": {"days": np.array([-1.0, 1.0])}},
        {"targets": {"days": np.array([1.0, np.nan])}},
        {"targets": {"days": np.array([16_777_217.0, 1.0])}},
    ],
)
def test_what_does_not_fit_has_the_sentence_of_one_record(wrong: dict[str, Any]) -> None:
    records = [replace(plain_record(5 * n), targets={}) for n in range(1, 6)]
    records[3] = replace(records[3], **wrong)
    with pytest.raises(ValueError) as one, np.errstate(over="ignore"):
        encode_record(records[3], SCHEMA)
    plain = PlainEncoder(SCHEMA)
    assert plain.form(records[3]) == ("pair",)
    with pytest.raises(ValueError) as together, np.errstate(over="ignore"):
        plain.encode(("pair",), records)
    assert str(together.value) == str(one.value)


def test_a_unit_of_both_kinds_is_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    records = [plain_record(n) for n in range(1100)]
    for n in range(0, 1100, 3):
        records[n] = replace(records[n], values={**records[n].values, "note": f"note {n}"})
    encode, (unit,) = UnitEncoder(ListSource(SCHEMA, records, unit=2000), SCHEMA, {}), [(0, 1100)]
    summary, buffer = encode(unit)
    monkeypatch.setattr(PlainEncoder, "form", lambda self, record: None)
    slow, wanted = encode(unit)
    assert buffer == wanted
    assert np.array_equal(summary.hash_n, slow.hash_n) and summary.notes == slow.notes == Counter(read=1100)
    assert {name: own.summary() for name, own in summary.statistics.items()} == {
        name: own.summary() for name, own in slow.statistics.items()
    }
