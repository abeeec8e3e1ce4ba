"""What `inspect` says of records that are seen at moments, by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_shards import DatasetSchema, Manifest, ModalitySpec, Record, TaskSpec, open_manifest, pack, summary
from data_shards.inspection.labels import part_labels
from launch.datasets.page import data_page
from launch.datasets.tables import moment_columns, moment_table, moment_words
from tests.data_shards.build import ListSource, make_set

SCHEMA = DatasetSchema(
    "hourly",
    (ModalitySpec("age", "vector", shape=(1,)), ModalitySpec("scan", "vector", shape=(1,))),
    (
        TaskSpec("sepsis", "binary", timed=True, time_unit="hours"),
        TaskSpec("ward", "multiclass", classes=("a", "b"), timed=True, time_unit="hours"),
        TaskSpec("died", "binary"),
    ),
)


def record(number: int) -> Record:
    """Moments at 0, 1, ... 7 hours (every other record: at 0 to 3); positive from hour 6 on only."""
    moments = np.arange(8 if number % 2 else 4, dtype=np.float32)
    sepsis = np.where(moments == 7, np.nan, moments >= 6)
    targets = {"sepsis": sepsis, "ward": (moments % 2).astype(np.float32), "died": float(number % 3 == 0)}
    values = {"age": np.ones(1, np.float32)} | ({"scan": np.ones(1, np.float32)} if number % 2 else {})
    return Record(
        f"r{number:02d}", values, targets, {"default": "val" if number % 5 == 1 else "train"}, moments=moments
    )  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = str(tmp_path_factory.mktemp("hourly"))
    pack(ListSource(SCHEMA, [record(number) for number in range(60)]), folder)
    return open_manifest(folder)


def test_moments_and_labels_by_time(manifest: Manifest) -> None:
    facts = summary(manifest)
    found = facts["moments"]
    assert found["samples"] == 30 * 8 + 30 * 4 == 360 and found["unit"] == "hours"
    assert (found["per_record"]["p0"], found["per_record"]["p100"], found["per_record"]["mean"]) == (4, 8, 6)
    assert found["edges"] == np.linspace(0, 7, 9).tolist() and found["counts"] == [60, 60, 60, 60, 30, 30, 30, 30]
    assert found["labels"]["sepsis"] == [0, 0, 0, 0, 0, 0, 1, None]
    assert found["labels"]["ward = b"] == [0, 1, 0, 1, 0, 1, 0, 1] and "died" not in found["labels"]
    assert facts["splits"]["default"]["train"]["samples"] + facts["splits"]["default"]["val"]["samples"] == 360
    assert facts["splits"]["default"]["val"]["records"] == 12
    assert moment_columns(facts) == ("moments, hours", "samples", "sepsis", "ward = a", "ward = b")
    assert moment_table(facts)[6] == ("5.25 to 6.125", 30, "1", "1", "0")
    assert moment_words(facts) == "labels at 360 moments of 60 records; a record has 4 to 8, in the middle 6"
    assert "Labels by moment" in data_page(facts)


def test_warnings_look_at_every_moment_and_count_records(manifest: Manifest) -> None:
    """Positives that are at no record's last moment are there; who has a scan is who becomes positive."""
    (found,) = (text for text in summary(manifest)["warnings"] if "sepsis" in text)
    assert found.startswith("split default: whether scan is present tells sepsis (100% of 1 have it, 0% of the others)")


def test_labels_of_a_part_know_records(manifest: Manifest) -> None:
    seen = part_labels(manifest, "default", "val", ["sepsis", "ward"], lambda _: False)
    assert seen.values["sepsis"] == ({0.0, 1.0},) and seen.peaks["sepsis"] == ({0.0, 1.0},)
    assert seen.labelled == {"sepsis": 6 * 7 + 6 * 4, "ward": 6 * 8 + 6 * 4}


def test_records_that_are_seen_whole_have_none(tmp_path: Path) -> None:
    facts = summary(make_set(tmp_path, 20))
    assert facts["moments"] is None and "Labels by moment" not in data_page(facts)
