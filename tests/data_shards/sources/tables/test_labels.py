"""Labels at moments, times until an event, and all the cells that mean one class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_shards import create_source
from tests.data_shards.sources.tables.build import events, read

STAYS = "id,adm,age\na,2020-01-01 00:00:00,1\nb,2020-01-02 12:00:00,2\nc,2020-01-03 00:00:00,3\n"
HOURLY = (
    "id,when,sepsis,left\n"
    "a,2020-01-01 02:00:00,1,20\n"
    "a,2020-01-01 01:00:00,0,\n"
    "b,2020-01-02 13:30:00,,5\n"
    "a,2020-01-01 03:00:00,NA,18\n"
)
VITALS = "id,t,v\na,-5,1\na,2.5,2\na,400,3\n"


def moments(**more: Any) -> dict[str, Any]:
    clock = {"file": "h.csv", "time": "when", "origin": "adm"}
    return {
        "records": {"file": "r.csv", "key": "id"},
        "modalities": {"age": {"kind": "vector", "columns": ["age"]}},
        "tasks": {
            "sepsis": {"kind": "binary", "column": "sepsis", **clock, **more},
            "left": {"kind": "regression", "column": "left", **clock},
            "old": {"kind": "binary", "column": "age", "classes": {"no": ["1", "2"], "yes": ["3"]}},
        },
    }


def same(value: Any, wanted: list[Any]) -> bool:
    return np.array_equal(np.asarray(value), np.array(wanted, float), equal_nan=True)


def one_type(mapping: dict[str, Any]) -> dict[str, Any]:
    """Without the column that is a number and a class."""
    mapping["modalities"] = {"who": {"kind": "codes", "columns": ["age"]}}
    return mapping


def test_labels_at_moments_are_ordered_and_joined(tmp_path: Path) -> None:
    records, counted = read(tmp_path, one_type(moments()), r_csv=STAYS, h_csv=HOURLY)
    a, b, c = (records[key] for key in "abc")
    assert same(a.moments, [1, 2, 3]) and same(b.moments, [1.5]) and c.moments is None
    assert same(a.targets["sepsis"], [0, 1, np.nan]) and same(a.targets["left"], [np.nan, 20, 18])
    assert same(b.targets["sepsis"], [np.nan]) and same(b.targets["left"], [5])
    assert [r.targets["old"] for r in (a, b, c)] == [0, 0, 1], "a label without a time holds at every moment"
    assert {k: n for k, n in counted.items() if "code" not in k and "words" not in k} == {
        "moments": 8, "labels_empty.sepsis": 1, "records_without_moments": 1
    }  # fmt: skip
    source = create_source("tables", {"path": str(tmp_path / "mapping.yaml")})
    assert [(t.timed, t.time_unit) for t in source.schema.tasks] == [(True, "hours")] * 2 + [(False, "")]


def test_tasks_of_different_tables_share_a_records_moments(tmp_path: Path) -> None:
    mapping = one_type(moments())
    mapping["tasks"]["two"] = {"kind": "multilabel", "columns": ["p", "q"], "file": "m.csv", "time": "t"}
    files = {"r_csv": STAYS, "h_csv": HOURLY, "m_csv": "id,t,p,q\na,2,1,0\na,2.5,,1\nc,-1,0,0\n"}
    records, _ = read(tmp_path, mapping, **files)
    a, b, c = (records[key] for key in "abc")
    assert same(a.moments, [1, 2, 2.5, 3]) and same(b.moments, [1.5]) and same(c.moments, [-1])
    nan = np.nan
    assert same(a.targets["two"], [[nan, nan], [1, 0], [nan, 1], [nan, nan]])
    assert same(a.targets["sepsis"], [0, 1, nan, nan]) and same(a.targets["left"], [nan, 20, nan, 18])
    assert same(b.targets["two"], [[nan, nan]]) and same(c.targets["two"], [[0, 0]])
    assert same(c.targets["sepsis"], [nan])


def test_with_moments_any_time_is_kept(tmp_path: Path) -> None:
    """The window ends at a moment, so the packer cannot know what lies outside."""
    mapping = one_type(moments())
    mapping["modalities"]["v"] = {"kind": "series", "file": "v.csv", "time": "t", "columns": ["v"], "horizon": 4}
    records, counted = read(tmp_path, mapping, r_csv=STAYS, h_csv=HOURLY, v_csv=VITALS)
    assert events(records["a"], "v") == [(-5, 0, 1), (2.5, 0, 2), (400, 0, 3)]
    assert "observations_outside_window" not in counted


@pytest.mark.parametrize(
    ("more", "files", "sentence"),
    [
        ({}, {"h_csv": HOURLY.replace("01:00:00,0", "02:00:00,0")}, "h.csv: two rows of record 'a' have 'when' 2 "),
        ({}, {"h_csv": HOURLY.replace("03:00:00,NA", "02:00:00,NA")}, "h.csv: two rows of record 'a' have 'when' 2 "),
        ({}, {"h_csv": HOURLY.replace("2020-01-02 13:30:00", "")}, "1 rows have no 'when'; a label without a time has"),
        ({}, {"h_csv": HOURLY.replace(",1,20", ",maybe,20")}, "label 'maybe' of column 'sepsis', record 'a', is none"),
        ({"time_unit": "days"}, {}, "timed tasks count time in 'days' and in hours"),
        ({"seen": "x"}, {}, "seen, intervals and edges are for a survival task, and this one is binary"),
        ({"replace": {"x": 1}}, {}, "replace is for numbers; what cells mean is said in classes"),
        ({"classes": {"no": ["0"], "yes": ["1", "0"]}}, {}, "classes lists the cell '0' twice"),
    ],
)
def test_what_is_wrong_with_moments_is_a_sentence(
    tmp_path: Path, more: dict[str, Any], files: dict[str, str], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        read(tmp_path, one_type(moments(**more)), **{"r_csv": STAYS, "h_csv": HOURLY, **files})


def test_a_window_before_a_moment_has_a_length(tmp_path: Path) -> None:
    mapping = one_type(moments())
    mapping["modalities"]["v"] = {"kind": "series", "file": "v.csv", "time": "t", "columns": ["v"]}
    with pytest.raises(ValueError, match="task left has labels at moments, so modality v needs horizon"):
        read(tmp_path, mapping, r_csv=STAYS, h_csv=HOURLY, v_csv=VITALS)


def outcome(**more: Any) -> dict[str, Any]:
    return {
        "records": {"file": "r.csv", "key": "id"},
        "modalities": {"age": {"kind": "vector", "columns": ["age"]}},
        "tasks": {"y": {"column": "y", **more}},
    }


CELLS = "id,age,y\na,1,Y\nb,1,1\nc,1,expired\nd,1,N\ne,1,home\nf,1,\ng,1,NA\n"


def test_all_the_cells_that_mean_a_class(tmp_path: Path) -> None:
    mapping = outcome(kind="binary", classes={"no": ["N", 0, "home"], "yes": ["Y", 1, "expired"]})
    records, counted = read(tmp_path, mapping, r_csv=CELLS)
    assert [r.targets["y"] for r in records.values()] == [1, 1, 1, 0, 0, None, None]
    assert counted == {"labels_empty.y": 1}
    assert create_source("tables", {"path": str(tmp_path / "mapping.yaml")}).schema.tasks[0].classes == ("no", "yes")


def test_a_cell_that_is_in_no_list_is_an_error_or_counted(tmp_path: Path) -> None:
    classes = {"no": "N", "yes": ["Y", 1]}
    with pytest.raises(ValueError, match="label 'expired' of column 'y', record 'c', is none of N, Y, 1; list it in"):
        read(tmp_path, outcome(kind="binary", classes=classes), r_csv=CELLS)
    mapping = outcome(kind="binary", classes=classes, other_labels="skip")
    records, counted = read(tmp_path, mapping, r_csv=CELLS)
    assert [r.targets["y"] for r in records.values()] == [1, 1, None, 0, None, None, None]
    assert counted == {"labels_empty.y": 1, "labels_of_no_class.y": 2}


def test_classes_of_many_cells_keep_the_order_of_the_file(tmp_path: Path) -> None:
    mapping = outcome(kind="multiclass", classes={"gone": ["expired"], "here": ["home", "NA"], "else": ["Y", "N", 1]})
    records, counted = read(tmp_path, mapping, r_csv=CELLS)
    assert [r.targets["y"] for r in records.values()] == [2, 2, 0, 2, 1, None, 1] and counted == {}


RATS = "id,age,days,dead,part\n" + "".join(
    f"r{n},1,{days},{dead},{part}\n"
    for n, (days, dead, part) in enumerate(
        [(5, 1, "train"), (9, 0, "train"), (2, 1, "train"), (7, 1, "train"), (11, 1, "test"), ("", 1, "train"),
         (3, "", "train"), (8, 1, "train")]
    )
)  # fmt: skip


def survival(**more: Any) -> dict[str, Any]:
    mapping = outcome()
    task = {"kind": "survival", "time": "days", "time_unit": "days", "seen": "dead", **more}
    return mapping | {"tasks": {"death": task}, "split": {"columns": {"default": "part"}}}


def test_a_time_and_whether_it_was_seen(tmp_path: Path) -> None:
    records, counted = read(tmp_path, survival(intervals=2), r_csv=RATS)
    assert same(records["r0"].targets["death"], [5, 1]) and same(records["r1"].targets["death"], [9, 0])
    for half in ("r5", "r6"):
        assert same(records[half].targets["death"], [np.nan, np.nan])
    assert counted == {"survival_half_known": 2}
    source = create_source("tables", {"path": str(tmp_path / "mapping.yaml")})
    assert len(source.schema.tasks[0].edges) == 2, "their number is known before the data were seen"
    source.units()
    task = source.schema.tasks[0]
    # Seen times of the training part are 2, 5, 7 and 8; the 11 days of the test part say nothing
    assert (task.edges, task.dim, task.unit, task.timed) == ((5.0, 8.0), 2, "days", False)


@pytest.mark.parametrize(
    ("more", "rows", "sentence"),
    [
        ({}, RATS, "a survival task has either intervals"),
        ({"intervals": 2, "edges": [1]}, RATS, "a survival task has either intervals"),
        ({"edges": [3, 2]}, RATS, r"edges \[3.0, 2.0\] must be above 0 and ascending"),
        ({"edges": [3], "column": "age"}, RATS, "a survival task has time and seen .columns., and neither column"),
        ({"edges": [3], "seen": None}, RATS, "a survival task has time and seen"),
        (
            {"edges": [3]},
            RATS.replace("r3,1,7", "r3,1,-7"),
            "r.csv: column 'days' of record 'r3' is -7 days, and no ti",
        ),
        ({"edges": [3]}, RATS.replace(",7,1", ",7,?"), "label '[?]' of column 'dead', record 'r3', is none of"),
        ({"intervals": 2}, RATS.replace(",1,train", ",0,train"), "task death: none of 5 training records was seen"),
    ],
)
def test_what_is_wrong_with_survival_is_a_sentence(
    tmp_path: Path, more: dict[str, Any], rows: str, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        read(tmp_path, survival(**more), r_csv=rows)


def test_survival_by_dates_and_by_other_words(tmp_path: Path) -> None:
    rows = "id,age,from,to,state\na,1,2020-01-01,2020-03-01,gone\nb,1,2020-01-01,2020-01-02 12:00,lost\n"
    task = {
        **{"kind": "survival", "time": "to", "origin": "from", "time_unit": "days", "seen": "state", "edges": [30, 90]},
        "classes": {"censored": ["lost"], "seen": ["gone"]},
    }
    records, _ = read(tmp_path, outcome() | {"tasks": {"death": task}}, r_csv=rows)
    assert same(records["a"].targets["death"], [60, 1]) and same(records["b"].targets["death"], [1.5, 0])
