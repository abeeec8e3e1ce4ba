"""What `inspect` says of objects with times and of codes, by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from data_shards import DatasetSchema, Manifest, ModalitySpec, Record, TaskSpec, open_manifest, pack, summary
from data_shards.inspection.sampling import sample_records, without_contents
from data_shards.records.columns import timed_rows
from data_shards.records.record import Codes, Objects
from data_shards.records.schema import LENGTH_UNITS, RAGGED, Kind
from data_shards.records.vocabulary import Vocabulary, VocabularyRule
from launch.datasets.inspect import inspect_data
from launch.datasets.page import data_page
from launch.datasets.tables import OBJECT_COLUMNS, code_table, code_words, object_table
from tests.data_shards.build import ListSource

HOURS: dict[str, Any] = {"time_unit": "hours", "horizon": 40.0}
SCHEMA = DatasetSchema(
    "objects",
    (
        ModalitySpec("notes", "text", timed=True, **HOURS),
        ModalitySpec("scans", "image", shape=(1, 2, 2), timed=True, **HOURS),
        ModalitySpec("ecg", "waveform", shape=(1,), rate=10.0, timed=True, **HOURS),
        ModalitySpec("gases", "vector", shape=(2,), timed=True, **HOURS),
        ModalitySpec("drugs", "codes", timed=True, valued=True, **HOURS),
        ModalitySpec("history", "codes"),
    ),
    (TaskSpec("died", "binary"),),
)


def record(number: int) -> Record:
    """Notes 10 hours apart, 0 to 3 of them; three drugs at 0, 2 and 8 hours; a quarter is of the test part."""
    notes = number % 4
    values: dict[str, Any] = {
        "notes": Objects(10.0 * np.arange(notes, dtype=np.float32), ["four"] * notes),
        "scans": Objects(np.array([5.0], np.float32), [np.ones((1, 2, 2), np.uint8)]),
        "ecg": Objects(np.array([1.0, 3.0], np.float32), [np.zeros((n, 1), np.float32) for n in (3, 4)]),
        "gases": Objects(np.array([20.0], np.float32), [np.ones(2, np.float32)]),
        "drugs": Codes(
            ["aspirin", "heparin", f"seldom{number}" if number % 4 == 0 else "aspirin"],
            np.array([0, 2, 8], np.float32),
            np.array([np.nan, 5.0 + number, np.nan], np.float32),
        ),
    }
    history: dict[str, Any] = {"history": Codes(["stroke"])} if number % 2 else {}
    return Record(
        f"r{number:02d}",
        values | history,
        {"died": float(number % 3 == 0)},
        {"default": "test" if number % 8 >= 6 else "train"},
    )


class CodeSource(ListSource):
    def __init__(self, records: list[Record]) -> None:
        super().__init__(SCHEMA, records)
        self.vocabulary_rules = {"drugs": VocabularyRule(min_count=2)}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = str(tmp_path_factory.mktemp("objects"))
    pack(CodeSource([record(number) for number in range(40)]), folder)
    return open_manifest(folder)


def test_every_kind_that_has_a_length_says_in_what(manifest: Manifest) -> None:
    assert set(LENGTH_UNITS) == set(RAGGED) < set(get_args(Kind))
    rows = {row["name"]: row for row in summary(manifest)["modalities"]}
    assert {name: (row["length_unit"], row["total_length"]) for name, row in rows.items()} == {
        "notes": ("bytes", 10 * (1 + 2 + 3) * 4),
        "scans": (None, None),
        "ecg": ("samples", 40 * 7),
        "gases": (None, None),
        "drugs": ("codes", 120),
        "history": ("codes", 20),
    }


def test_codes_without_values_are_no_finding(manifest: Manifest) -> None:
    facts = summary(manifest)
    assert not any("history" in warning or "notes" in warning for warning in facts["warnings"])
    channels = {(row["modality"], row["channel"]) for row in facts["values"]["default"]}
    assert ("drugs", "value") in channels and ("notes", "bytes") in channels
    assert "history" not in {modality for modality, _ in channels}
    assert "<h2>Modalities</h2>" in data_page(facts)


def test_how_many_and_when(manifest: Manifest) -> None:
    found = summary(manifest)["objects"]
    assert list(found) == ["notes", "scans", "ecg", "gases", "drugs", "history"]
    notes = found["notes"]
    assert (notes["present"], notes["empty"]) == (40, 10)
    assert notes["per_record"] == {"p0": 0, "p5": 0, "p50": 1.5, "p95": 3, "p100": 3, "mean": 1.5}
    # Of train, records 0 to 5 of every 8: notes 0, 1, 2, 3, 0, 1, so times are 0 (four), 10 (two) and 20 (one).
    assert notes["times_of"] == "default" and notes["times"]["mean"] == pytest.approx(40 / 7)
    assert (notes["times"]["p50"], notes["times"]["p95"], notes["times"]["p100"]) == (0, 20, 20)
    assert notes["gap"] == {"p0": 10, "p5": 10, "p50": 10, "p95": 10, "p100": 10, "mean": 10}
    # Of all 40 records 30 have a note at 0, 20 at 10 and 10 at 20 hours; a bin is 40 / 48 hours.
    assert {bin_: count for bin_, count in enumerate(notes["when"]) if count} == {0: 30, 12: 20, 24: 10}
    assert (notes["start"], notes["window"], notes["time_unit"]) == (0, 40, "hours")
    assert found["ecg"]["per_record"]["p100"] == 2 and found["ecg"]["gap"]["p50"] == 2
    assert found["scans"]["gap"] is None, "no record has two"
    assert found["gases"]["times"]["p50"] == 20
    drugs, history = found["drugs"], found["history"]
    assert drugs["per_record"]["mean"] == 3 and (drugs["gap"]["p0"], drugs["gap"]["p100"]) == (2, 6)
    assert (history["present"], history["empty"], history["times"], history["when"]) == (20, 0, None, None)


def test_codes_are_named_and_what_has_no_name_is_counted(manifest: Manifest) -> None:
    facts = summary(manifest)
    drugs, history = facts["codes"]["drugs"], facts["codes"]["history"]
    assert (drugs["named"], drugs["rare"], drugs["codes"]) == (2, 10, 120)
    # All ten seldom drugs are of records 0 and 4 of every 8, in train.
    assert (drugs["unknown_codes"], drugs["rare_codes"]) == (0, 10)
    assert drugs["most_frequent"] == [("aspirin", 30), ("heparin", 30)] and drugs["counted"] == "training records"
    assert history["most_frequent"] == [("stroke", 15)]
    assert code_words(facts) == [
        "drugs: codes with a number of their own 2, rare ones that share one 10; of 120 codes in the records 0 (0.0%) "
        "are unknown and 10 (8.3%) are rare",
        "history: codes with a number of their own 1, rare ones that share one 0; of 20 codes in the records 0 (0.0%) "
        "are unknown and 0 (0.0%) are rare",
    ]


def test_codes_of_a_given_vocabulary_are_counted_in_the_sample(tmp_path: Path) -> None:
    source = CodeSource([record(number) for number in range(8)])
    source.vocabularies = {"drugs": Vocabulary(("heparin", "aspirin")), "history": Vocabulary(("stroke",))}
    source.vocabulary_rules = {}
    pack(source, str(tmp_path))
    drugs = summary(open_manifest(str(tmp_path)))["codes"]["drugs"]
    assert (drugs["unknown_codes"], drugs["rare_codes"], drugs["counted"]) == (2, 0, "8 sampled records")
    assert drugs["most_frequent"] == [("aspirin", 8), ("heparin", 8)]


def test_terminal_and_page_say_it(manifest: Manifest, capsys: pytest.CaptureFixture[str]) -> None:
    facts = summary(manifest)
    rows = {row[0]: dict(zip(OBJECT_COLUMNS, row, strict=True)) for row in object_table(facts)}
    assert rows["notes"]["empty"] == "25.0%" and rows["notes"]["each: 5 to 95 %"] == "0 to 3"
    assert rows["drugs"]["median gap"] == 4 and rows["drugs"]["unit of time"] == "hours"
    assert rows["history"]["times: median"] is None
    assert code_table(facts)[0] == ("drugs", "aspirin", 30, "training records")
    page = data_page(facts)
    assert "Objects and codes" in page and "Sampling of series" not in page and "10 (8.3%) are rare" in page
    inspect_data(manifest.url, as_json=False, html=None)
    said = capsys.readouterr().out
    assert "objects and codes of a record" in said and "aspirin" in said


def test_a_window_that_ends_at_moments_shows_all_times(tmp_path: Path) -> None:
    schema = DatasetSchema("m", SCHEMA.modalities[:1], (TaskSpec("y", "binary", timed=True, time_unit="hours"),))
    rows = [
        Record(
            f"r{n}",
            {"notes": Objects(np.array([-20.0, 100.0], np.float32), ["a", "b"])},
            {"y": np.array([0.0, 1.0], np.float32)},
            {"default": "train"},
            moments=np.array([50.0, 100.0], np.float32),
        )
        for n in range(5)
    ]
    pack(ListSource(schema, rows), str(tmp_path))
    notes = summary(open_manifest(str(tmp_path)))["objects"]["notes"]
    assert (notes["start"], notes["window"], sum(notes["when"])) == (-20, 120, 10)


def test_a_sample_holds_no_contents(manifest: Manifest) -> None:
    record = next(sample_records(manifest, 1))
    light = without_contents(record)
    assert record.arrays and len(record.features_) and not light.arrays and not len(light.features_)
    for (ids, times), (kept_ids, kept_times) in zip(timed_rows(record), timed_rows(light), strict=True):
        assert np.array_equal(ids, kept_ids) and np.array_equal(times, kept_times)
        assert not np.shares_memory(times, kept_times) or not len(times)
