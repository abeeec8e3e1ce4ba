"""Statistics of timed objects, codes and moments, and quantiles: by hand, against all values, joined from pieces."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from data_shards import Codes, DatasetSchema, ModalitySpec, Objects, Record, TaskSpec
from data_shards.loading.schema_map import statistics_in
from data_shards.records.codec import encode_record
from data_shards.records.columns import Columns
from data_shards.records.decoder import Decoder
from data_shards.records.distributions.sketch import PROBABILITIES
from data_shards.records.statistics import DENSE_SAMPLE, Accumulator, SplitStatistics
from data_shards.records.vocabulary import Vocabulary
from tests.data_shards.records.test_objects import HOURLY, PLAIN, VOCABULARIES, record_of

LETTERS = Vocabulary(("a", "b", "c"))
SMALL = DatasetSchema(
    "small",
    (
        ModalitySpec("notes", "text", timed=True, horizon=48.0),
        ModalitySpec(
            "drugs", "codes", timed=True, valued=True, horizon=48.0, codes=LETTERS.size, vocabulary=LETTERS.digest
        ),
        ModalitySpec("xray", "image", shape=(2, 1, 2), dtype="uint8", timed=True, horizon=48.0),
        ModalitySpec("sex", "codes", codes=LETTERS.size, vocabulary=LETTERS.digest),
        ModalitySpec("static", "vector", shape=(2,)),
    ),
    (TaskSpec("y", "binary", timed=True, time_unit=""), TaskSpec("stay", "regression")),
)


def stored(schema: DatasetSchema, records: list[Record]) -> list[Columns]:
    decoder = Decoder(schema)
    numberings = VOCABULARIES if "history" in schema.numbers else {"drugs": LETTERS, "sex": LETTERS}
    return [decoder.columns(encode_record(record, schema, numberings)) for record in records]


def statistics(schema: DatasetSchema, records: list[Record]) -> SplitStatistics:
    accumulator = Accumulator(schema)
    accumulator.add(stored(schema, records))
    return accumulator.summary()


def times(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


HAND = [
    Record(
        "a",
        {
            "notes": Objects(times(5, 1, 1), ["four", "", "ab"]),
            "drugs": Codes(["b", "a", "b"], times(0, 2, 4), times(np.nan, 3, 5)),
            "xray": Objects(times(9), [np.array([[[0, 10]], [[20, 30]]], np.uint8)]),
            "sex": Codes(["a", "c"]),
            "static": times(1, 2),
        },
        {"y": np.array([0.0, np.nan, 1.0]), "stay": 4.0},
        moments=times(1, 2, 3),
    ),
    Record("b", {"notes": Objects(times(), []), "drugs": Codes([], times())}, {"y": np.array([1.0])}, moments=times(7)),
    Record("c", {"static": times(3, 2)}, {"y": np.array([1.0]), "stay": 6.0}),
]


def test_by_hand() -> None:
    found = statistics(SMALL, HAND)
    assert found.records == 3
    notes, drugs, xray, sex, static = (found.modalities[name] for name in SMALL.modality_names)
    assert (notes.present, notes.count, notes.mean, notes.min, notes.max) == (2, (3,), (2.0,), (0.0,), (4.0,))
    assert notes.quantiles[0][0] == 0 and notes.quantiles[0][16] == 2 and notes.quantiles[0][-1] == 4
    assert notes.times is not None and notes.objects is not None
    assert (notes.times.count, notes.times.min, notes.times.max, notes.times.quantiles[16]) == (3, 1.0, 5.0, 1.0)
    assert notes.times.mean == pytest.approx(7 / 3)
    # Present but empty counts as a record with no object, absent does not count
    assert (notes.objects.count, notes.objects.mean, notes.objects.min, notes.objects.max) == (2, 1.5, 0.0, 3.0)
    assert (drugs.present, drugs.count, drugs.mean, drugs.std) == (2, (2,), (4.0,), (1.0,))
    assert drugs.times is not None and (drugs.times.count, drugs.times.mean) == (3, 2.0)
    assert drugs.objects is not None and (drugs.objects.count, drugs.objects.mean) == (2, 1.5)
    assert (xray.count, xray.mean) == ((2, 2), (5.0, 25.0)) and xray.quantiles[1][16] == 25
    assert xray.times is not None and (xray.times.count, xray.times.mean) == (1, 9.0)
    assert (sex.count, sex.mean, sex.std, sex.min, sex.max) == ((0,), (0.0,), (1.0,), (0.0,), (0.0,))
    assert sex.quantiles == ((0.0,) * 33,) and sex.times is None
    assert sex.objects is not None and (sex.objects.count, sex.objects.mean) == (1, 2.0)
    assert (static.quantiles[0][0], static.quantiles[0][16], static.quantiles[1][16]) == (1.0, 2.0, 2.0)
    assert static.times is None and static.objects is None
    # Labels count once a moment: the stay of the first record is that of its three moments, the second has none
    y, stay = found.tasks["y"], found.tasks["stay"]
    assert (y.labelled, y.counts, y.quantiles) == (4, (1, 3), ())
    assert (stay.labelled, stay.mean, stay.quantiles[0][16]) == (4, (4.5,), 4.0)


def test_values_count_once_however_many_moments_there_are() -> None:
    rng = np.random.default_rng(1)
    records = [record_of(rng, HOURLY, f"r{number}") for number in range(40)]
    few = [replace(record, moments=None, targets={}) for record in records]
    assert any(record.moments is not None and len(record.moments) > 2 for record in records)
    assert statistics(HOURLY, records).modalities == statistics(HOURLY, few).modalities


def test_quantiles_are_those_of_all_values() -> None:
    rng = np.random.default_rng(2)
    records = [record_of(rng, PLAIN, f"r{number}") for number in range(60)]
    found = statistics(PLAIN, records)
    labs = [own for record in records if (own := record.values.get("labs")) is not None]
    for channel in range(3):
        values = np.concatenate([own.values_O[own.channels_O == channel] for own in labs])  # type: ignore[union-attr]
        exact = np.quantile(values.astype(np.float64), PROBABILITIES)
        assert found.modalities["labs"].quantiles[channel] == pytest.approx(exact, rel=1e-12)
    ecgs = [own for record in records if (own := record.values.get("ecgs")) is not None]
    values = np.concatenate([recording[:, 1] for own in ecgs for recording in own.values])  # type: ignore[union-attr]
    assert found.modalities["ecgs"].quantiles[1] == pytest.approx(np.quantile(values, PROBABILITIES), rel=1e-12)
    seen = np.concatenate([own.times_N for own in ecgs]).astype(np.float64)  # type: ignore[union-attr]
    assert found.modalities["ecgs"].times is not None
    assert found.modalities["ecgs"].times.quantiles == pytest.approx(np.quantile(seen, PROBABILITIES), rel=1e-12)


def test_of_a_dense_object_the_sketch_sees_every_nth_value_of_each_channel() -> None:
    schema = DatasetSchema(
        "dense",
        (
            ModalitySpec("picture", "image", shape=(2, 50, 60), dtype="float32"),
            ModalitySpec("ecg", "waveform", shape=(2,)),
        ),
    )
    rng = np.random.default_rng(3)
    picture, ecg = rng.standard_normal((2, 50, 60)).astype("f4"), rng.standard_normal((1025, 2)).astype("f4")
    accumulator = Accumulator(schema)
    accumulator.add(stored(schema, [Record("a", {"picture": picture, "ecg": ecg})]))
    # 3000 pixels a channel: every third; 1025 samples a lead: every second
    assert accumulator.values.sketch.counts().tolist() == [1000, 1000, 513, 513] and DENSE_SAMPLE == 1024
    found = accumulator.summary().modalities
    assert found["picture"].count == (3000, 3000) and found["ecg"].count == (1025, 1025)
    median = [np.median(picture[c].ravel()[::3].astype("f8")) for c in range(2)] + [np.median(ecg[::2, 1].astype("f8"))]
    assert [row[16] for row in (*found["picture"].quantiles, found["ecg"].quantiles[1])] == pytest.approx(median)
    assert found["ecg"].quantiles[0][0] == ecg[:, 0].min(), "the ends are those of all values"


def test_pieces_join_to_equal_sketches_in_any_order() -> None:
    rng = np.random.default_rng(4)
    columns = stored(HOURLY, [record_of(rng, HOURLY, f"r{number}") for number in range(60)])
    whole = Accumulator(HOURLY)
    whole.add(columns)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(60)
        joined = Accumulator(HOURLY)
        for piece in np.array_split(order, 7):
            other = Accumulator(HOURLY)
            other.add([columns[i] for i in piece.tolist()])
            joined.merge(other)
        for mine, theirs in zip(joined.distributions, whole.distributions, strict=True):
            for a, b in zip(mine.sketch.columns(), theirs.sketch.columns(), strict=True):
                assert np.array_equal(a, b)
        assert joined.summary().modalities["labs"].quantiles == whole.summary().modalities["labs"].quantiles


def test_channels_in_another_order_take_their_quantiles_along() -> None:
    spec = ModalitySpec("v", "vector", channels=("x", "y"))
    own = DatasetSchema("own", (spec,))
    other = DatasetSchema("other", (replace(spec, channels=("y", "x")),))
    found = statistics(own, [Record(str(i), {"v": times(i, 10 * i)}) for i in range(5)])
    moved = statistics_in(found, own, other).modalities["v"]
    assert [row[-1] for row in moved.quantiles] == [40.0, 4.0] and moved.max == (40.0, 4.0)
