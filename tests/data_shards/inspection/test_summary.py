"""What `inspect` finds in data that were made to be wrong in known ways; and nothing in sound ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_shards import DatasetSchema, ModalitySpec, Record, Series, TaskSpec, open_manifest, pack, summary
from data_shards.inspection.leakage import association
from data_shards.inspection.sampling import sample_records
from data_shards.shards.index import dump_index, group_code, load_index
from data_shards.shards.reader import read_index
from launch.datasets.page import data_page
from launch.datasets.tables import LABEL_COLUMNS, MODALITY_COLUMNS, label_table, modality_table
from tests.browser import open_browser
from tests.data_shards.build import ListSource, make_record, make_set

SCHEMA = DatasetSchema(
    "ward",
    (
        ModalitySpec("labs", "series", channels=("k", "na", "never"), time_unit="hours", horizon=10.0),
        ModalitySpec("biopsy", "vector", shape=(1,)),
        ModalitySpec("gender", "vector", shape=(1,)),
    ),
    (
        TaskSpec("died", "binary"),
        TaskSpec("ward", "multiclass", classes=("a", "b", "c")),
        TaskSpec("days", "regression"),
    ),
)


def records(leaky: bool, count: int = 300) -> list[Record]:
    """Sound records; or a biopsy done on the dying, patients in two parts, and a code of 9999."""
    rng, made = np.random.default_rng(0), []
    for number in range(count):
        died, patient = float(rng.random() < 0.4), number // 2
        times = np.sort(rng.uniform(0, 10, (2, 20))).ravel().astype(np.float32)
        values = rng.normal(4, 0.5, 40).astype(np.float32)
        if leaky and number == 7:
            values[0] = 9999
        present = rng.random() < (0.9 if died else 0.1) if leaky else rng.random() < 0.5
        own: dict[str, Any] = {
            "labs": Series(times, np.repeat(np.arange(2, dtype=np.int16), 20), values),
            "gender": np.array([number % 2], np.float32),
        }
        own |= {"biopsy": np.ones(1, np.float32)} if present else {}
        part = ("train", "train", "train", "val", "test")[(number if leaky else patient) % 5]
        wards = 3 if not leaky or part == "train" else 2
        targets = {"died": died, "ward": float(rng.integers(wards)), "days": float(rng.exponential())}
        made.append(Record(f"r{number}", own, targets, {"default": part}, group=f"p{patient}"))
    return made


def facts(folder: Path, leaky: bool) -> dict[str, Any]:
    pack(ListSource(SCHEMA, records(leaky)), str(folder))
    return summary(open_manifest(str(folder)))


def test_leakage_and_odd_values_are_found_with_their_numbers(tmp_path: Path) -> None:
    found = facts(tmp_path, leaky=True)
    text = "\n".join(found["warnings"])
    rows = records(leaky=True)
    groups = {part: {r.group for r in rows if r.splits["default"] == part} for part in ("train", "test")}
    shared = groups["train"] & groups["test"]
    inside = sum(r.group in shared for r in rows if r.splits["default"] == "test")
    assert f"{len(shared)} groups are in both train (of {len(groups['train'])}) and test" in text
    assert f"{inside} records of test have relatives in train: scores on test are too good" in text
    assert "whether biopsy is present tells died" in text and "% of positive have it" not in text.split("tells died")[0]
    assert "part test has no record of ward = c" in text and "part val has no record of ward = c" in text
    assert "labs.never has no value in train" in text
    assert "labs.k goes from" in text and "to 9999" in text
    assert len(found["warnings"]) == 3 + 1 + 2 + 2  # three pairs of parts, biopsy, two missing classes, two channels


def test_nothing_is_found_where_nothing_is_wrong(tmp_path: Path) -> None:
    found = facts(tmp_path, leaky=False)
    assert found["warnings"] == [
        "split default: labs.never has no value in train; other parts' values mean nothing to a model"
    ]
    assert found["groups_known"] and sum(p["groups"] for p in found["splits"]["default"].values()) == 150


def test_sampling_is_what_the_records_hold(tmp_path: Path) -> None:
    sampled = facts(tmp_path, leaky=False)["sampling"]
    labs, rows = sampled["series"]["labs"], records(leaky=False)
    assert sampled["records"] == 300 and labs["per_time_unit"] == pytest.approx(4.0) and sum(labs["when"]) == 12_000
    gaps = np.concatenate([np.diff(r.values["labs"].times_O[:20]) for r in rows])  # type: ignore[union-attr]
    assert labs["channels"]["k"]["median_gap"] == pytest.approx(np.median(gaps), rel=1e-5)
    assert labs["channels"]["k"] | {"median_gap": 0} == {"per_record": 20.0, "share": 1.0, "median_gap": 0}
    assert labs["channels"]["never"] == {"per_record": None, "share": 0.0, "median_gap": None}
    manifest = open_manifest(str(tmp_path))
    keys = [record.key for record in sample_records(manifest, 7)]
    assert len(keys) == 7 and keys[0] == "r0" and keys[-1] == "r299"


@pytest.mark.parametrize("kind", ["binary", "multiclass", "regression"])
def test_association_is_strong_only_where_presence_depends_on_the_target(kind: Any) -> None:
    rng = np.random.default_rng(1)
    task = TaskSpec("t", kind, classes=("a", "b", "c") if kind == "multiclass" else ())
    target = rng.normal(size=500) if kind == "regression" else rng.integers(0, 3 if kind == "multiclass" else 2, 500)
    target = target.astype(float)
    told = rng.random(500) < np.where(target > 0, 0.8, 0.2)
    strength, sure, words = association(task, target, told)
    assert strength > 0.4 and sure > 6 and words
    strength, sure, _ = association(task, target, rng.random(500) < 0.5)
    assert strength < 0.15 and sure < 4
    assert association(task, target, np.ones(500, bool))[0] == 0


def test_an_index_without_groups_is_still_read(tmp_path: Path) -> None:
    from data_shards.records.arrays import dump_tensors, load_tensors

    manifest = make_set(tmp_path)
    index, schema = read_index(manifest, 0), manifest.schema
    assert index.group_n[0] == index.group_n[1] == group_code("g0") and group_code(None) == 0
    tensors, metadata = load_tensors(dump_index(index))
    old = dump_tensors({name: array for name, array in tensors.items() if name != "group"}, metadata)
    width = (len(manifest.splits), len(schema.modalities), schema.target_offsets[-1])
    assert not load_index(old, len(index), *width).group_n.any()


def test_the_page_opens_in_a_browser_by_itself(tmp_path: Path) -> None:
    found = facts(tmp_path / "leaky", leaky=True)
    everything = summary(make_set(tmp_path / "everything"))
    with open_browser(tmp_path) as browser:
        for facts_, pictures, title in ((found, 4, "ward"), (everything, 5, "everything")):
            file = tmp_path / "page.html"
            file.write_text(data_page(facts_), "utf-8")
            page = browser.open(file)
            assert page.evaluate("document.title") == title
            assert page.problems == [] and page.requests == [page.url]
            assert page.evaluate("document.querySelectorAll('figure svg').length") == pictures
            assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "nothing is cut off"
            assert page.evaluate("document.scripts.length") == 1
            shown = page.evaluate("document.querySelectorAll('.alarm li').length")
            assert shown == len(facts_["warnings"]) > 0


def test_names_cannot_become_markup(tmp_path: Path) -> None:
    schema = DatasetSchema(
        "<b>x</b>", (ModalitySpec("v", "vector", shape=(1,), channels=("<script>alert(1)</script>",)),)
    )
    rows = [Record(f"r{n}", {"v": np.ones(1, np.float32)}, {}, {"default": "train"}) for n in range(3)]
    pack(ListSource(schema, rows), str(tmp_path / "set"))
    text = data_page(summary(open_manifest(str(tmp_path / "set"))))
    assert "<script>alert" not in text and "<b>x" not in text and "&lt;script&gt;alert" in text


def test_terminal_and_page_share_rows_and_a_long_list_of_channels_is_cut(tmp_path: Path) -> None:
    channels = tuple(f"channel{n:02d}" for n in range(40))
    schema = DatasetSchema("wide", (ModalitySpec("v", "vector", shape=(40,), channels=channels),), SCHEMA.tasks[:1])
    rows = [Record(f"r{n}", {"v": np.ones(40, np.float32)}, {"died": n % 2}, {"default": "train"}) for n in range(4)]
    pack(ListSource(schema, rows), str(tmp_path / "set"))
    found = summary(open_manifest(str(tmp_path / "set")))
    (row,) = modality_table(found)
    assert dict(zip(MODALITY_COLUMNS, row, strict=True)) == {
        "modality": "v",
        "kind": "vector",
        "present": 4,
        "share": "100.0%",
        "median length": None,
        "longest": None,
        "channels or shape": f"{', '.join(channels)[:110]} ... (40)",
    }
    (row,) = label_table(found["splits"]["default"])
    assert dict(zip(LABEL_COLUMNS, row, strict=True)) == {
        "part": "train",
        "records": 4,
        "groups": None,
        "task": "died",
        "kind": "binary",
        "labelled": 4,
        "labels": "negative 2, positive 2",
    }


def test_of_many_shards_some_are_looked_at_and_it_is_said(tmp_path: Path) -> None:
    manifest = make_set(tmp_path, 90)
    whole, some = summary(manifest), summary(manifest, indexed=40)
    shards = len(manifest.shards)
    wanted = shards * 40 // 90
    numbers = [n * shards // wanted for n in range(wanted)]
    assert 1 < wanted < shards and numbers[-1] > shards // 2
    assert whole["indexed"] == {"records": 90, "shards": shards} == summary(manifest, indexed=0)["indexed"]
    seen = sum(manifest.shards[n].records for n in numbers)
    assert some["indexed"] == {"records": seen, "shards": wanted}
    assert some["warnings"][0].startswith(f"only {wanted} of {shards} shards were looked at ({seen} of 90 records)")
    assert not any("were looked at" in words for words in whole["warnings"])
    keys = [key for n in numbers for key in read_index(manifest, n).keys]
    notes = sum("note" in make_record(int(key[1:])).values for key in keys)
    assert [row["present"] for row in some["modalities"] if row["name"] == "note"] == [notes]
    for name in ("records", "values", "observations", "source"):
        assert some[name] == whole[name]
    parts = [
        {p: (own["records"], own["samples"]) for p, own in facts["splits"]["default"].items()}
        for facts in (some, whole)
    ]
    assert parts[0] == parts[1]
