"""What `inspect` says of objects with times and of codes, by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from data_shards import DatasetSchema, Manifest, ModalitySpec, Record, TaskSpec, open_manifest, pack, summary
from data_shards.records.record import Codes, Objects
from data_shards.records.schema import LENGTH_UNITS, RAGGED, Kind
from data_shards.records.vocabulary import VocabularyRule
from launch.datasets.page import data_page
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
    """Notes 10 hours apart, 0 to 3 of them; three drugs at 0, 2 and 8 hours; every fourth record is of the test part."""
    notes = number % 4
    values = {
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
    history = {"history": Codes(["stroke"])} if number % 2 else {}
    return Record(
        f"r{number:02d}",
        values | history,
        {"died": float(number % 3 == 0)},
        {"default": "test" if number % 8 >= 6 else "train"},
    )


class CodeSource(ListSource):
    vocabulary_rules = {"drugs": VocabularyRule(min_count=2)}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = str(tmp_path_factory.mktemp("objects"))
    pack(CodeSource(SCHEMA, [record(number) for number in range(40)]), folder)
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
