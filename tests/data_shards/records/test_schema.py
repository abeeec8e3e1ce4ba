"""What a schema and a record may be, and the sentences that say what is wrong."""

from __future__ import annotations

import numpy as np
import pytest

from data_shards import DatasetSchema, ModalitySpec, Record, Series, TaskSpec, group_layout
from data_shards.records.check import validate
from tests.data_shards.build import SCHEMA, make_record


def test_json_round_trip_keeps_the_digest() -> None:
    again = DatasetSchema.from_json(SCHEMA.to_json())
    assert again == SCHEMA and again.digest() == SCHEMA.digest()
    other = DatasetSchema(SCHEMA.name, SCHEMA.modalities[::-1], SCHEMA.tasks)
    assert other.digest() != SCHEMA.digest()


def test_group_layout_gathers_equal_shapes() -> None:
    assert group_layout(SCHEMA) == {
        "image/1x2x2": [8],
        "image/1x2x3": [3],
        "series": [0, 5],
        "text": [1],
        "vector/3": [2, 7],
        "vector/5": [6],
        "waveform/2": [4],
    }


@pytest.mark.parametrize(
    ("task", "dim", "width"),
    [
        (TaskSpec("t", "binary"), 1, 1),
        (TaskSpec("t", "multiclass", classes=("a", "b", "c")), 3, 1),
        (TaskSpec("t", "multilabel", classes=("a", "b", "c")), 3, 3),
        (TaskSpec("t", "regression", dim=4), 4, 4),
        (TaskSpec("t", "survival", edges=(1.0, 2.5, 7.0)), 3, 2),
    ],
)
def test_widths_of_logits_and_targets(task: TaskSpec, dim: int, width: int) -> None:
    assert (task.dim, task.width) == (dim, width)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": "a b", "kind": "series"}, "letters, digits"),
        ({"name": "a", "kind": "sound"}, "is none of series"),
        ({"name": "a", "kind": "series"}, "needs the names of its channels"),
        ({"name": "a", "kind": "series", "channels": ("x", "x")}, "must be unique"),
        ({"name": "a", "kind": "vector"}, "must hold 1 positive"),
        ({"name": "a", "kind": "image", "shape": (3, 0, 4)}, "must hold 3 positive"),
        ({"name": "a", "kind": "vector", "shape": (2,), "dtype": "object"}, "dtype 'object' is none of"),
        ({"name": "a", "kind": "vector", "shape": (2,), "channels": ("x",)}, "1 channel names for shape"),
        ({"name": "a", "kind": "series", "channels": ("x",), "horizon": 0.0}, "must be positive"),
        ({"name": "a", "kind": "series", "channels": ("x",), "units": ("m", "s")}, "2 units for 1 channels"),
    ],
)
def test_illegal_modalities(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ModalitySpec(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kind": "ranking"}, "is none of binary"),
        ({"kind": "multiclass", "classes": ("one",)}, "too few"),
        ({"kind": "binary", "classes": ("a", "b", "c")}, "two class names or none"),
        ({"kind": "multiclass", "classes": ("a", "b"), "dim": 5}, "dim 5 must be 2"),
        ({"kind": "survival"}, "must ascend from above 0, as float32; survival has some, other kinds none"),
        ({"kind": "binary", "edges": (1.0,)}, "survival has some, other kinds none"),
        ({"kind": "survival", "edges": (0.0, 1.0)}, "must ascend from above 0"),
        ({"kind": "survival", "edges": (2.0, 1.0)}, "must ascend from above 0"),
        ({"kind": "survival", "edges": (1.0, 1.0 + 1e-9)}, "must ascend from above 0, as float32"),
        ({"kind": "survival", "edges": (1.0, float("inf"))}, "must ascend from above 0"),
        ({"kind": "survival", "edges": (1.0, 2.0), "dim": 3}, "dim 3 must be 2"),
    ],
)
def test_illegal_tasks(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TaskSpec("t", **fields)  # type: ignore[arg-type]


def test_a_name_twice_is_refused() -> None:
    vector = ModalitySpec("v", "vector", shape=(2,))
    with pytest.raises(ValueError, match="modality v is declared twice"):
        DatasetSchema("d", (vector, vector))


def events(**changes: object) -> Series:
    fields = {"times_O": np.array([1.0, 2.0], "f4"), "channels_O": np.array([0, 2]), "values_O": np.ones(2, "f4")}
    return Series(**(fields | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"unknown": "x"}, "modality 'unknown' is not in schema"),
        ({"labs": np.zeros(3)}, "needs a Series, got ndarray"),
        ({"note": np.zeros(3)}, "needs a str"),
        ({"static": "x"}, "needs an array"),
        ({"labs": events(channels_O=np.array([0, 3]))}, "channel 0 to 3 is outside 0 to 2"),
        ({"labs": events(channels_O=np.array([0.0, 1.0]))}, "must be integers"),
        ({"labs": events(values_O=np.array([1, np.nan], "f4"))}, "must be finite"),
        ({"labs": events(times_O=np.array([1, 49], "f4"))}, "leave the window 0 to 48 hours"),
        ({"labs": events(times_O=np.array([1.0], "f4"))}, "must be equally long"),
        ({"note": "x" * 201}, "201 bytes of text, at most 200"),
        ({"static": np.zeros(4, "f4")}, r"shape \(4,\), not \(3\)"),
        ({"static": np.zeros(3)}, "dtype float64, not float32"),
        ({"static": np.array([0, np.inf, 0], "f4")}, "holds NaN or infinity"),
        ({"ecg": np.zeros((51, 2), "i2")}, "51 samples, at most 50"),
        ({"ecg": np.zeros((5, 3), "i2")}, r"shape \(5, 3\), not \(L, 2\)"),
        ({"picture": np.zeros((2, 3), "u1")}, r"shape \(2, 3\)"),
    ],
)
def test_illegal_values_name_key_and_modality(values: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        validate(SCHEMA, Record("k1", values))  # type: ignore[arg-type]
    assert "k1" in str(caught.value)


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        ({"death": 2.0}, "label 2 is out of range, legal are 0 to 1"),
        ({"ward": 3.0}, "label 3 is out of range, legal are 0 to 2"),
        ({"ward": 0.5}, "label 0.5 is out of range"),
        ({"codes": np.array([0.0, -1.0])}, "label -1 is out of range"),
        ({"codes": np.array([0.0])}, r"target shape \(1,\), not \(2,\)"),
        ({"stay": float("inf")}, "is infinite"),
        ({"other": 1.0}, "task other is not in schema"),
    ],
)
def test_illegal_targets(targets: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        validate(SCHEMA, Record("k1", {}, targets))  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "../a", "x" * 91, "ä"])
def test_illegal_keys(key: str) -> None:
    with pytest.raises(ValueError, match="record key"):
        validate(SCHEMA, Record(key, {}))


def test_legal_records_pass() -> None:
    for number in range(50):
        validate(SCHEMA, make_record(number))
    validate(SCHEMA, Record("nothing", {}))


def test_dense_table_becomes_observed_events_only() -> None:
    values = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    mask = np.array([[True, False], [True, True], [False, False]])
    result = Series.from_dense(np.array([0.5, 1.5, 2.5]), values, mask)
    assert result.times_O.tolist() == [0.5, 1.5, 1.5]
    assert result.channels_O.tolist() == [0, 0, 1]
    assert result.values_O.tolist() == [1.0, 3.0, 4.0]


def test_the_shape_of_a_vector_or_waveform_follows_from_its_channels():
    assert ModalitySpec("ecg", "waveform", channels=("I", "II", "V1")).shape == (3,)
    assert ModalitySpec("age", "vector", channels=("age", "age_known")).shape == (2,)
    with pytest.raises(ValueError, match="shape"):
        ModalitySpec("ecg", "waveform")
