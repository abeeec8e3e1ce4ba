"""Timed objects, codes, moments: what is packed is what is read, in batches, too; what lies after a moment is gone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from data_shards import Batch, Codes, DatasetSchema, ModalitySpec, Objects, Record, Series, TaskSpec
from data_shards.errors import RecordError
from data_shards.loading.collate import Collator
from data_shards.records.arrays import dump_tensors, load_tensors
from data_shards.records.codec import encode_record
from data_shards.records.columns import Columns, cut, last_time, samples_of
from data_shards.records.decoder import Decoder
from data_shards.records.record import Value
from data_shards.records.schema import FIRST_CODE, RARE, UNKNOWN

HOURS = {"time_unit": "hours", "horizon": 48.0}
NAMES = tuple(f"code {i} äß✓" for i in range(20))
MODALITIES = (
    ModalitySpec("labs", "series", channels=("a", "b", "c"), **HOURS),  # type: ignore[arg-type]
    ModalitySpec("notes", "text", timed=True, max_length=200, **HOURS),  # type: ignore[arg-type]
    ModalitySpec("summary", "text", max_length=200),
    ModalitySpec("scores", "vector", shape=(3,), timed=True, **HOURS),  # type: ignore[arg-type]
    ModalitySpec("static", "vector", shape=(3,)),
    ModalitySpec("pictures", "image", shape=(1, 2, 3), dtype="uint8", timed=True, **HOURS),  # type: ignore[arg-type]
    ModalitySpec("face", "image", shape=(1, 2, 3), dtype="uint8"),
    ModalitySpec("ecgs", "waveform", shape=(2,), dtype="int16", timed=True, max_length=50, **HOURS),  # type: ignore[arg-type]
    ModalitySpec("voice", "waveform", shape=(2,), dtype="int16", max_length=50),
    ModalitySpec("drugs", "codes", timed=True, valued=True, codes=22, vocabulary="ab" * 32, **HOURS),  # type: ignore[arg-type]
    ModalitySpec("history", "codes", codes=22, vocabulary="ab" * 32),
    ModalitySpec("count.ecgs", "waveform", shape=(2,), dtype="int16", timed=True, max_length=50, **HOURS),  # type: ignore[arg-type]
)
PLAIN = DatasetSchema("objects", MODALITIES, (TaskSpec("death", "binary"), TaskSpec("stay", "regression", dim=2)))
HOURLY = DatasetSchema(
    "hourly",
    MODALITIES,
    (TaskSpec("sepsis", "binary", timed=True, time_unit="hours"), TaskSpec("stay", "regression", dim=2)),
)


class Twenty:
    """A vocabulary of the twenty names; the last two are rare."""

    def ids(self, codes: Sequence[str]) -> np.ndarray:
        numbers = {name: i + FIRST_CODE for i, name in enumerate(NAMES[:-2])} | dict.fromkeys(NAMES[-2:], RARE)
        return np.array([numbers.get(code, UNKNOWN) for code in codes], np.int32)

    def name(self, number: int) -> str:
        return ("unknown", "rare", *NAMES)[number]


VOCABULARIES = {"drugs": Twenty(), "history": Twenty()}


def objects_of(rng: np.random.Generator, spec: ModalitySpec, span: float) -> Value:
    """A random value of a modality: 0 to 50 objects, times that are often equal."""

    def one() -> str | np.ndarray:
        if spec.kind == "text":
            return "äß✓ 🙂 text"[: int(rng.integers(0, 10))]
        if spec.kind == "vector":
            return rng.standard_normal(spec.shape).astype(np.float32)
        if spec.kind == "image":
            return rng.integers(0, 256, spec.shape).astype(np.uint8)
        return rng.integers(-300, 300, (int(rng.integers(0, 20)), *spec.shape)).astype(np.int16)

    number = int(rng.choice([0, 1, 2, 7, 50]))
    times = rng.choice([0.0, 1.5, span / 2, span, float(rng.uniform(0, span))], number).astype(np.float32)
    if spec.kind == "series":
        return Series(times, rng.integers(0, 3, number), rng.standard_normal(number).astype(np.float32))
    if spec.kind == "codes":
        names = [str(name) for name in rng.choice([*NAMES, "never seen"], number)]
        values = np.where(rng.random(number) < 0.5, np.nan, rng.standard_normal(number)).astype(np.float32)
        return Codes(names, times if spec.timed else None, values if spec.valued else None)
    if spec.timed:
        return Objects(times, [one() for _ in range(number)])  # type: ignore[arg-type]
    return one()


def record_of(rng: np.random.Generator, schema: DatasetSchema, key: str, span: float = 48.0) -> Record:
    values = {spec.name: objects_of(rng, spec, span) for spec in schema.modalities if rng.random() < 0.7}
    if not schema.has_moments:
        return Record(key, values, {"death": float(rng.integers(2)), "stay": rng.standard_normal(2)})
    moments = np.unique(rng.uniform(0, span, int(rng.integers(0, 6))).astype(np.float32))
    labels = np.where(rng.random(max(1, len(moments))) < 0.3, np.nan, rng.integers(0, 2, max(1, len(moments))))
    return Record(key, values, {"sepsis": labels, "stay": rng.standard_normal(2)}, moments=moments)


def by_time(value: Objects) -> list[tuple[float, object]]:
    order = np.argsort(value.times_N, kind="stable").tolist()
    return [
        (float(value.times_N[i]), v if isinstance(v := value.values[i], str) else (v.shape, v.tobytes())) for i in order
    ]


def known_as(code: str) -> str:
    return Twenty().name(int(Twenty().ids([code])[0]))


def same(a: Value, b: Value) -> bool:
    """Whether a value is what was packed: objects in order of time, codes by time and number."""
    if isinstance(a, Objects) and isinstance(b, Objects):
        return by_time(a) == by_time(b)
    if isinstance(a, Codes) and isinstance(b, Codes):
        rows = [
            sorted(
                zip(
                    [0.0] * len(own) if own.times_O is None else own.times_O.tolist(),
                    [known_as(code) if own is a else code for code in own.codes],
                    ["none"] * len(own) if own.values_O is None else map(str, own.values_O.tolist()),
                    strict=True,
                )
            )
            for own in (a, b)
        ]
        return rows[0] == rows[1] and (a.times_O is None) == (b.times_O is None)
    if isinstance(a, Series) and isinstance(b, Series):
        rows_a, rows_b = (
            sorted(zip(s.channels_O.tolist(), s.times_O.tolist(), s.values_O.tolist(), strict=True)) for s in (a, b)
        )
        return rows_a == rows_b
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    return isinstance(a, str) and a == b


@pytest.mark.parametrize("schema", [PLAIN, HOURLY], ids=lambda schema: schema.name)
def test_what_is_packed_is_what_is_read(schema: DatasetSchema) -> None:
    rng = np.random.default_rng(0)
    decoder, seen = Decoder(schema, vocabularies=VOCABULARIES), 0
    for number in range(150):
        record = record_of(rng, schema, f"r{number}")
        back = decoder.record(encode_record(record, schema, VOCABULARIES))
        assert back.values.keys() == record.values.keys()
        for name, value in record.values.items():
            assert same(value, back.values[name]), name
            seen += 1
        for task, target in record.targets.items():
            assert np.allclose(np.ravel(back.targets[task]), np.ravel(target), equal_nan=True)  # type: ignore[arg-type]
        assert np.array_equal(
            [] if back.moments is None else back.moments, record.moments if record.moments is not None else []
        )
    assert seen > 1000


def test_present_but_empty_is_not_absent() -> None:
    none = np.empty(0, np.float32)
    empty = {"notes": Objects(none, []), "ecgs": Objects(none, []), "history": Codes([]), "pictures": Objects(none, [])}
    columns = columns_of(Record("r", empty), PLAIN)
    assert columns.present() == [1, 5, 7, 10]
    assert columns.objects(12).tolist() == [-1, 0, -1, -1, -1, 0, -1, 0, -1, -1, 1, -1]
    assert columns.lengths(PLAIN).tolist() == [-1, 0, -1, -1, -1, 0, -1, 0, -1, -1, 0, -1]
    batch = Collator(PLAIN)([columns, columns_of(Record("s", {}), PLAIN)], np.array([3, 4]))
    assert batch.present_BM[0].nonzero()[:, 0].tolist() == [1, 5, 7, 10]
    assert not batch.present_BM[1].any()
    assert [group.pairs for group in batch.groups.values()] == [int(name == "codes") for name in batch.groups]


def test_lengths_and_objects_of_a_record_by_hand() -> None:
    pair = np.array([2.0, 1.0], np.float32)
    waves = [np.ones((3, 2), np.int16), np.ones((4, 2), np.int16)]
    values = {"notes": Objects(pair, ["äß", "x"]), "ecgs": Objects(pair, waves), "drugs": Codes(["a"] * 2, pair)}
    columns = columns_of(Record("r", {**values, "scores": Objects(pair, [np.ones(3, np.float32)] * 2)}), PLAIN)
    assert columns.objects(12).tolist() == [-1, 2, -1, 2, -1, -1, -1, 2, -1, 1, -1, -1]
    assert columns.lengths(PLAIN).tolist() == [-1, 5, -1, 2, -1, -1, -1, 7, -1, 2, -1, -1]


def columns_of(record: Record, schema: DatasetSchema) -> Columns:
    return Decoder(schema).columns(encode_record(record, schema, VOCABULARIES))


def batch_of(records: list[Record], schema: DatasetSchema) -> Batch:
    return Collator(schema)([columns_of(record, schema) for record in records], np.arange(len(records)))


def test_a_batch_holds_every_object_once_in_order() -> None:
    rng = np.random.default_rng(1)
    records = [record_of(rng, PLAIN, f"r{number}") for number in range(30)]
    batch = batch_of(records, PLAIN)
    group = batch.groups["timed_text"]
    wanted = []
    for row, record in enumerate(records):
        if isinstance(own := record.values.get("notes"), Objects):
            wanted += [(1, row, time, text) for time, text in by_time(own)]
    texts = [
        bytes(group.bytes_O[a:b].tolist()).decode() for a, b in zip(group.offsets, group.offsets[1:], strict=False)
    ]  # type: ignore[attr-defined]
    found = zip(group.modality_P.tolist(), group.sample_P.tolist(), group.times_P.tolist(), texts, strict=True)  # type: ignore[attr-defined]
    assert list(found) == wanted and len(wanted) > 50
    assert set(batch.groups) == {
        "series", "text", "timed_text", "vector/3", "timed_vector/3", "image/1x2x3", "timed_image/1x2x3",
        "waveform/2", "timed_waveform/2", "codes", "timed_codes",
    }  # fmt: skip
    again = Batch.from_buffer(batch.to_buffer())
    assert all(
        a.equal(b) or bool(a.isnan().any())
        for a, b in zip(batch.tensors().values(), again.tensors().values(), strict=True)
    )
    # Of waveforms two modalities with times: by modality, then by record, then by time.
    waves = batch.groups["timed_waveform/2"]
    order = list(zip(waves.modality_P.tolist(), waves.sample_P.tolist(), waves.times_P.tolist(), strict=True))  # type: ignore[attr-defined]
    assert order == sorted(order) and {7, 11} == set(waves.modality_P.tolist())


def test_codes_of_a_batch_have_their_numbers() -> None:
    times, values = np.array([3.0, 1.0, 3.0], np.float32), np.array([np.nan, 7.0, 5.0], np.float32)
    record = Record(
        "r", {"drugs": Codes([NAMES[4], NAMES[19], "never seen"], times, values), "history": Codes([NAMES[0]])}
    )
    group = batch_of([record], PLAIN).groups["timed_codes"]
    assert (group.ids_O.tolist(), group.times_O.tolist()) == ([RARE, UNKNOWN, 4 + FIRST_CODE], [1.0, 3.0, 3.0])  # type: ignore[attr-defined]
    assert group.values_O.tolist()[:2] == [7.0, 5.0] and bool(group.values_O[2].isnan())  # type: ignore[attr-defined]


# What a moment sees, against the obvious loop over the record in memory.


def seen_at(record: Record, schema: DatasetSchema, moment: float) -> Record:
    """The record with nothing after the moment and nothing older than the horizon, times from the window's start.

    A modality whose first row is still to come is absent.
    """
    values: dict[str, Value] = {}
    for name, value in record.values.items():
        spec = schema.modalities[schema.numbers[name]]
        if not spec.has_times:
            values[name] = value
            continue
        times = np.asarray(value.times_O if isinstance(value, Series | Codes) else value.times_N, np.float64)  # type: ignore[union-attr]
        if not (times <= moment).any():
            continue
        start = moment - float(spec.horizon or 0)
        keep = [i for i in range(len(times)) if start <= times[i] <= moment]
        shifted = np.array([times[i] - start for i in keep], np.float32)
        if isinstance(value, Series):
            values[name] = Series(shifted, value.channels_O[keep], value.values_O[keep])
        elif isinstance(value, Codes):
            own = None if value.values_O is None else value.values_O[keep]
            values[name] = Codes([value.codes[i] for i in keep], shifted, own)
        else:
            values[name] = Objects(shifted, [value.values[i] for i in keep])  # type: ignore[union-attr]
            if spec.max_objects:
                values[name] = values[name].newest(spec.max_objects)  # type: ignore[union-attr]
    return replace(record, values=values)


@pytest.mark.parametrize("most", [None, 3])
def test_a_moment_sees_what_lies_before_it_and_in_its_window(most: int | None) -> None:
    limited = [replace(spec, max_objects=most) if spec.has_objects else spec for spec in HOURLY.modalities]
    schema = replace(HOURLY, modalities=tuple(limited))
    rng, decoder = np.random.default_rng(2), Decoder(schema, vocabularies=VOCABULARIES)
    checked = 0
    for number in range(80):
        record = record_of(rng, schema, f"r{number}", span=200.0)
        columns = decoder.columns(encode_record(record, schema, VOCABULARIES))
        ends = columns.moments_K.tolist() or [last_time(columns, schema)]
        assert samples_of(columns) == len(ends)
        for k, end in enumerate(ends):
            wanted = seen_at(record, schema, end)
            wanted.moments, wanted.targets = None, {}
            found = cut(columns, schema, k)
            assert found.moments_K.tolist() == [end]
            assert np.array_equal(found.targets_KW, columns.targets_KW[k : k + 1], equal_nan=True)
            whole = decoder.columns(encode_record(wanted, schema, VOCABULARIES))
            for name in vars(whole).keys() - {"key", "moments_K", "targets_KW", "arrays", "array_times"}:
                assert np.array_equal(getattr(found, name), getattr(whole, name), equal_nan=name == "code_values_C"), (
                    name
                )
            assert found.array_times.keys() == whole.array_times.keys()
            for n, arrays in whole.arrays.items():
                assert [array.tobytes() for array in found.arrays[n]] == [array.tobytes() for array in arrays]
                assert np.array_equal(found.array_times[n], whole.array_times[n])
            checked += len(found.times_O) + len(found.text_X)
    assert checked > 300


def test_units_of_moments_and_modalities_may_differ() -> None:
    spec = ModalitySpec("hr", "series", channels=("hr",), time_unit="minutes", horizon=120.0)
    schema = DatasetSchema("units", (spec,), (TaskSpec("risk", "binary", timed=True, time_unit="hours"),))
    series = Series(
        np.array([0.0, 59.0, 60.0, 61.0, 200.0], np.float32), np.zeros(5, int), np.arange(5, dtype=np.float32)
    )
    columns = columns_of(
        Record("r", {"hr": series}, {"risk": np.array([0.0, 1.0])}, moments=np.array([1.0, 3.0])), schema
    )
    assert cut(columns, schema, 0).values_O.tolist() == [0.0, 1.0, 2.0]
    assert cut(columns, schema, 0).times_O.tolist() == [60.0, 119.0, 120.0]
    assert cut(columns, schema, 1).values_O.tolist() == [2.0, 3.0]
    with pytest.raises(ValueError, match="'hours' and in 'fortnights' cannot be compared"):
        replace(schema, modalities=(replace(spec, time_unit="fortnights"),))


ONE, TWO = np.zeros(1, np.float32), np.zeros(2, np.float32)
THREE_AND_TWO = [np.ones(3, np.float32), np.ones(2, np.float32)]
WRONG: dict[str, tuple[dict[str, Value], str]] = {
    "an object where several may be": ({"notes": "text"}, "needs Objects"),
    "several where one may be": ({"summary": Objects(ONE, ["x"])}, "needs a str"),
    "fewer times than objects": ({"notes": Objects(ONE, ["x", "y"])}, r"times \(1,\) for 2 objects"),
    "outside the window": ({"notes": Objects(ONE + 49, ["x"])}, "leave the window 0 to 48 hours"),
    "time NaN": ({"notes": Objects(ONE * np.nan, ["x"])}, "times must be finite"),
    "one of the objects": ({"scores": Objects(TWO, THREE_AND_TWO)}, "object 1: shape"),
    "codes without times": ({"drugs": Codes(["a"])}, "codes need a time each"),
    "codes with times": ({"history": Codes(["a"], ONE)}, "codes without times were declared"),
    "codes with values": ({"history": Codes(["a"], None, ONE)}, "codes without values were declared"),
    "an empty code": ({"history": Codes([""])}, "text of 1 to 200 bytes"),
    "an infinite value": ({"drugs": Codes(["a"], ONE, ONE + np.inf)}, "infinite"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_refused_with_a_sentence(name: str) -> None:
    values, words = WRONG[name]
    with pytest.raises(ValueError, match=words):
        encode_record(Record("r", values), PLAIN, VOCABULARIES)


def test_moments_that_do_not_fit_are_refused() -> None:
    labels = {"sepsis": np.array([0.0, 1.0])}
    with pytest.raises(ValueError, match="must ascend"):
        encode_record(Record("r", {}, labels, moments=np.array([2.0, 2.0])), HOURLY)
    with pytest.raises(ValueError, match=r"target shape \(3, 1\), not \(2, 1\)"):
        encode_record(Record("r", {}, {"sepsis": np.zeros(3)}, moments=np.array([1.0, 2.0])), HOURLY)
    with pytest.raises(ValueError, match="no task of schema objects has labels at moments"):
        encode_record(Record("r", {}, moments=np.array([1.0])), PLAIN)


def forged(name: str, place: int | None, value: float) -> bytes:
    """A good record of both texts, vectors, waveforms and codes with one number changed, or a column cut short."""
    pair = np.array([1.0, 2.0], np.float32)
    waves = [np.ones((3, 2), np.int16), np.ones((4, 2), np.int16)]
    values: dict[str, Value] = {
        "notes": Objects(pair, ["é", "é"]),
        "scores": Objects(pair, [np.ones(3, np.float32)] * 2),
        "ecgs": Objects(pair, waves),
        "pictures": Objects(np.empty(0, np.float32), []),
        "drugs": Codes([NAMES[1], NAMES[2]], np.ones(2, np.float32), np.ones(2, np.float32)),
    }
    record = Record("r", values, {"sepsis": np.array([0.0, 1.0])}, moments=np.array([1.0, 2.0]))
    tensors, metadata = load_tensors(encode_record(record, HOURLY, VOCABULARIES))
    tensors = {key: array.copy() for key, array in tensors.items()}
    if place is None:
        tensors[name] = tensors[name][:-1]
    else:
        tensors[name][place] = value
    return dump_tensors(tensors, metadata)


FORGERIES: dict[str, tuple[str, int | None, float, str]] = {
    "text time back": ("text.time", 1, 0.5, "not sorted by time"),
    "text time NaN": ("text.time", 0, np.nan, "not finite"),
    "text times short": ("text.time", None, 0, "1 times for 2 objects"),
    "character cut in two": ("text.count", 0, 1, "do not add up"),
    "vector modality": ("vector.modality", 0, 4, "not ascending"),
    "waveform lengths": ("count.ecgs", 0, 4, "do not add up"),
    "waveform times": ("time.ecgs", 1, 0.5, "not finite and ascending"),
    "empty and full": ("empty", 0, 1, "cannot be there without objects"),
    "empty series": ("empty", 0, 0, "cannot be there without objects"),
    "empty outside": ("empty", 0, 99, "not ascending within the schema"),
    "code outside": ("codes.id", 1, 22, "outside its vocabulary"),
    "code negative": ("codes.id", 0, -1, "outside its vocabulary"),
    "codes unsorted": ("codes.time", 1, 0.5, "not sorted by time and number"),
    "code value": ("codes.value", 0, np.inf, "NaN or infinite"),
    "moments": ("moment.time", 1, 1.0, "not finite and ascending"),
    "moments short": ("moment.time", None, 0, "targets of shape"),
    "label of a moment": ("target", 1, 7.0, "out of range"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forged_records_are_refused(name: str) -> None:
    column, place, value, words = FORGERIES[name]
    with pytest.raises(RecordError, match=words):
        Decoder(HOURLY).columns(forged(column, place, value), "r")


def test_texts_cut_within_a_character_are_refused() -> None:
    tensors, metadata = load_tensors(forged("text.count", 0, 2))
    tensors = {**tensors, "text.count": np.array([1, 3], np.int32)}
    with pytest.raises(RecordError, match="not UTF-8"):
        Decoder(HOURLY).columns(dump_tensors(tensors, metadata), "r")


def test_a_moment_ends_at_the_very_number() -> None:
    end = np.float32(5.3)
    times = np.array([np.nextafter(end, np.float32(0)), end, np.nextafter(end, np.float32(9))], np.float32)
    values: dict[str, Value] = {
        "labs": Series(times, np.zeros(3, int), np.arange(3, dtype=np.float32)),
        "notes": Objects(times, ["before", "at", "after"]),
        "drugs": Codes([NAMES[0], NAMES[1], NAMES[2]], times),
    }
    found = cut(columns_of(Record("r", values, {"sepsis": np.zeros(1)}, moments=np.array([end])), HOURLY), HOURLY, 0)
    assert found.values_O.tolist() == [0.0, 1.0]
    assert bytes(found.bytes_).decode() == "beforeat"
    assert found.code_ids_C.tolist() == [FIRST_CODE, FIRST_CODE + 1]
