"""Statistics come from the train part only and equal values computed by hand; the summary counts what is there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from data_shards import DatasetSchema, ModalitySpec, Record, Series, TaskSpec, open_manifest, pack, summary
from data_shards.records.codec import encode_record
from data_shards.records.decoder import Decoder
from data_shards.records.distributions.distribution import Moments
from data_shards.records.statistics import Accumulator
from tests.data_shards.build import SCHEMA, ListSource, make_record, make_set

TINY = DatasetSchema(
    "tiny",
    (
        ModalitySpec("s", "series", channels=("a", "b", "never"), horizon=1e4),
        ModalitySpec("v", "vector", shape=(2,)),
        ModalitySpec("t", "text"),
        ModalitySpec("i", "image", shape=(2, 1, 2), dtype="uint8"),
        ModalitySpec("w", "waveform", shape=(1,), dtype="int16"),
    ),
    (TaskSpec("y", "binary"), TaskSpec("c", "multilabel", classes=("p", "q")), TaskSpec("r", "regression")),
)


def events(*rows: tuple[float, int, float]) -> Series:
    times, channels, values = zip(*rows, strict=True)
    return Series(np.array(times, "f4"), np.array(channels), np.array(values, "f4"))


HAND = [
    Record(
        "k1",
        {
            "s": events((0, 0, 1.0), (1, 0, 3.0), (0, 1, 10.0)),
            "v": np.array([1.0, 5.0], "f4"),
            "t": "abcd",
            "i": np.array([[[0, 10]], [[20, 30]]], "u1"),
        },
        {"y": 1.0, "c": np.array([1.0, 0.0]), "r": 2.0},
        {"default": "train"},
    ),
    Record(
        "k2",
        {"s": events((0, 0, 5.0)), "v": np.array([3.0, 5.0], "f4"), "t": "ab", "w": np.array([[4], [-2]], "i2")},
        {"y": 0.0, "c": np.array([1.0, 1.0]), "r": None},
        {"default": "train"},
    ),
    Record("k3", {"s": events((0, 0, 1e6)), "t": "x" * 99}, {"y": 1.0, "r": 1e6}, {"default": "test"}),
    Record("k4", {"s": events((0, 0, -1e6))}, {"y": 1.0}, {}),
]


def test_by_hand(tmp_path: Path) -> None:
    pack(ListSource(TINY, HAND, unit=1), str(tmp_path))
    statistics = open_manifest(str(tmp_path)).statistics["default"]
    assert statistics.records == 2
    s = statistics.modalities["s"]
    assert (s.present, s.count, s.mean) == (2, (3, 1, 0), (3.0, 10.0, 0.0))
    assert s.std == pytest.approx(((8 / 3) ** 0.5, 0.0, 1.0))
    assert (s.min, s.max) == ((1.0, 10.0, 0.0), (5.0, 10.0, 0.0))
    v = statistics.modalities["v"]
    assert (v.count, v.mean, v.std) == ((2, 2), (2.0, 5.0), (1.0, 0.0))
    t = statistics.modalities["t"]
    assert (t.count, t.mean, t.min, t.max) == ((2,), (3.0,), (2.0,), (4.0,))
    i = statistics.modalities["i"]
    assert (i.present, i.count, i.mean, i.std) == (1, (2, 2), (5.0, 25.0), (5.0, 5.0))
    w = statistics.modalities["w"]
    assert (w.count, w.mean, w.std) == ((2,), (1.0,), (3.0,))
    y, c, r = (statistics.tasks[name] for name in ("y", "c", "r"))
    assert (y.labelled, y.counts, y.mean) == (2, (1, 1), (0.5,))
    assert (c.labelled, c.counts) == (2, (2, 1))
    assert (r.labelled, r.counts, r.mean, r.std) == (1, (), (2.0,), (0.0,))


def test_a_split_without_a_train_part_has_no_statistics(tmp_path: Path) -> None:
    pack(ListSource(TINY, HAND[2:3]), str(tmp_path))
    manifest = open_manifest(str(tmp_path))
    assert manifest.statistics == {} and manifest.splits == {"default": {"test": 1}}


def test_each_split_has_its_own(tmp_path: Path) -> None:
    manifest, records = make_set(tmp_path), [make_record(i) for i in range(60)]
    for split in ("default", "other"):
        train = [r.values["labs"] for r in records if r.splits.get(split) == "train" and "labs" in r.values]
        found = manifest.statistics[split].modalities["labs"]
        for channel in range(3):
            values = np.concatenate([s.values_O[s.channels_O == channel] for s in train]).astype(np.float64)  # type: ignore[union-attr]
            assert found.count[channel] == len(values)
            assert found.mean[channel] == pytest.approx(values.mean(), rel=1e-12)
            assert found.std[channel] == pytest.approx(values.std(), rel=1e-12)


def test_merging_is_exact_for_any_cut_and_stable_far_from_zero() -> None:
    rng = np.random.default_rng(0)
    values, channels = (1e7 + rng.standard_normal(2000)).astype(np.float64), rng.integers(0, 3, 2000)
    whole, pieces = Moments.of(channels, values, 3), Moments(3)
    for cut in np.split(np.arange(2000), [1, 2, 500, 1999]):
        pieces.merge(Moments.of(channels[cut], values[cut], 3))
    for c in range(3):
        own = values[channels == c]
        for moments in (whole, pieces):
            assert moments.mean[c] == pytest.approx(own.mean(), rel=1e-14)
            assert np.sqrt(moments.m2[c] / moments.count[c]) == pytest.approx(own.std(), rel=1e-6)


def test_accumulators_merge() -> None:
    decoder = Decoder(SCHEMA)
    columns = [decoder.columns(encode_record(make_record(i), SCHEMA)) for i in range(40)]
    whole, parts = Accumulator(SCHEMA), Accumulator(SCHEMA)
    whole.add(columns)
    for cut in (slice(0, 1), slice(1, 30), slice(30, 30), slice(30, 40)):
        other = Accumulator(SCHEMA)
        other.add(columns[cut])
        parts.merge(other)
    a, b = whole.summary(), parts.summary()
    assert a.records == b.records == 40
    for name in SCHEMA.modality_names:
        x, y = a.modalities[name], b.modalities[name]
        assert (x.present, x.count, x.min, x.max) == (y.present, y.count, y.min, y.max)
        assert x.mean == pytest.approx(y.mean) and x.std == pytest.approx(y.std)


def test_summary_counts_what_is_there(tmp_path: Path) -> None:
    records = [make_record(i) for i in range(60)]
    table = summary(make_set(tmp_path), patterns=3)
    json.dumps(table)
    rows = {row["name"]: row for row in table["modalities"]}
    for name in SCHEMA.modality_names:
        assert rows[name]["present"] == sum(name in r.values for r in records)
    notes = [len(r.values["note"].encode()) for r in records if "note" in r.values]  # type: ignore[union-attr]
    assert rows["note"]["total_length"] == sum(notes) and rows["note"]["empty"] == notes.count(0)
    assert rows["note"]["length"]["p50"] == np.median(notes) and rows["note"]["length"]["p100"] == max(notes)
    patterns = [tuple(name in r.values for name in SCHEMA.modality_names) for r in records]
    assert table["patterns"]["count"] == len(set(patterns)) and len(table["patterns"]["most_frequent"]) == 3
    assert table["patterns"]["most_frequent"][0]["records"] == max(patterns.count(p) for p in patterns)
    test = table["splits"]["default"]["test"]
    own = [r for r in records if r.splits["default"] == "test"]
    assert test["records"] == len(own)
    assert test["present"]["static"] == sum("static" in r.values for r in own) / len(own)
    assert test["tasks"]["ward"]["counts"] == {
        w: [r.targets["ward"] for r in own].count(i) for i, w in enumerate("xyz")
    }
    assert test["tasks"]["death"]["labelled"] == sum(r.targets["death"] is not None for r in own)


def test_summary_when_a_split_first_appears_in_a_later_shard(tmp_path: Path) -> None:
    records = [make_record(i) for i in range(60)]
    for record in records[:50]:
        del record.splits["default"]
    pack(ListSource(SCHEMA, records), str(tmp_path), shard_bytes=10_000)
    table = summary(open_manifest(str(tmp_path)))
    assert sum(part["records"] for part in table["splits"]["default"].values()) == 10
    assert sum(part["records"] for part in table["splits"]["other"].values()) == 40
