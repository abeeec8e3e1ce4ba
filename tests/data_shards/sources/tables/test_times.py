"""Texts, pictures, recordings and vectors with times: any number a record, in its window, none lost in silence."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from data_shards import create_source
from data_shards.records.record import Objects
from tests.data_shards.sources.tables.build import read

STAYS = "id,adm\na,2020-01-01 00:00:00\nb,2020-01-02 12:00:00\nc,2020-01-03 00:00:00\n"
NOTES = (
    "id,when,text\n"
    "b,2020-01-02 14:30:00,second\n"
    "a,2020-01-01 06:00:00,same time\n"
    "b,2020-01-02 13:00:00,first\n"
    "a,2020-01-01 06:00:00,other\n"
    "a,2020-01-01 07:00:00,\n"
    "a,2020-01-09 00:00:00,too late\n"
)


def notes(**more: Any) -> dict[str, Any]:
    section = {
        "kind": "text",
        "file": "n.csv",
        "column": "text",
        "time": "when",
        "origin": "adm",
        "horizon": 48,
        **more,
    }
    return {"records": {"file": "r.csv", "key": "id"}, "modalities": {"notes": section}}


def times_and(value: Any) -> list[tuple[float, Any]]:
    assert isinstance(value, Objects)
    plain = [own if isinstance(own, str) else own.tolist() for own in value.values]
    return list(zip(value.times_N.tolist(), plain, strict=True))


def test_texts_stand_apart_at_their_times(tmp_path: Path) -> None:
    records, counted = read(tmp_path, notes(outside="skip"), r_csv=STAYS, n_csv=NOTES)
    assert times_and(records["a"].values["notes"]) == [(6.0, "same time"), (6.0, "other")]
    assert times_and(records["b"].values["notes"]) == [(2.5, "second"), (1.0, "first")]
    assert "notes" not in records["c"].values
    assert counted == {"objects": 4, "rows_without_object": 1, "objects_outside_window": 1}


def test_the_same_rows_without_a_time_are_one_text(tmp_path: Path) -> None:
    mapping = notes()
    mapping["modalities"]["notes"] = {"kind": "text", "file": "n.csv", "column": "text"}
    records, _ = read(tmp_path, mapping, r_csv=STAYS, n_csv=NOTES)
    assert records["a"].values["notes"] == "same time\nother\ntoo late"


def test_the_schema_says_what_is_timed(tmp_path: Path) -> None:
    read(tmp_path, notes(outside="skip", max_objects=7, time_unit="days", horizon=2), r_csv=STAYS, n_csv=NOTES)
    source = create_source("tables", {"path": str(tmp_path / "mapping.yaml")})
    spec = source.schema.modalities[0]
    assert (spec.timed, spec.time_unit, spec.horizon, spec.max_objects) == (True, "days", 2.0, 7)


@pytest.mark.parametrize(
    ("more", "files", "sentence"),
    [
        ({}, {}, r"n\.csv: 1 objects of a unit are outside 0 to 48 hours, the first at 192; set a larger horizon, or"),
        ({"horizon": 500}, {"n_csv": NOTES.replace("2020-01-09 00:00:00", "")}, "1 rows have no 'when'; an object"),
        ({"horizon": 500}, {"n_csv": NOTES.replace("2020-01-09", "9 January")}, "n.csv, row 6: column 'when': '9 Jan"),
        ({"horizon": 500}, {"r_csv": STAYS.replace("2020-01-02 12:00:00", "")}, "1 records have no 'adm', .* 'b'"),
        ({"horizon": 500}, {"n_csv": NOTES.replace("0:00,too", "0:00Z,too")}, "(dates with a zone|have a zone)"),
        ({"horizon": 500, "max_length": 8}, {}, "record a, modality notes: object 0: 9 bytes of text, at most 8"),
        ({"time": None}, {}, r"modalities\.notes: horizon says something of times, and there is no time"),
        ({"max_objects": 0}, {}, r"modalities\.notes\.max_objects"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_times_is_a_sentence(
    tmp_path: Path, more: dict[str, Any], files: dict[str, str], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        read(tmp_path, notes(**more), **{"r_csv": STAYS, "n_csv": NOTES, **files})


def test_a_text_is_cut_by_itself_and_counted(tmp_path: Path) -> None:
    mapping = notes(outside="skip", max_length=5, too_long="cut")
    records, counted = read(tmp_path, mapping, r_csv=STAYS, n_csv=NOTES)
    assert times_and(records["a"].values["notes"]) == [(6.0, "same "), (6.0, "other")]
    assert counted["texts_cut"] == 2


def test_a_window_that_nobody_named_ends_with_the_last_object(tmp_path: Path) -> None:
    read(tmp_path, notes(horizon=None), r_csv=STAYS, n_csv=NOTES)
    source = create_source("tables", {"path": str(tmp_path / "mapping.yaml")})
    source.units()
    assert source.report(Counter())["horizons_from_longest_times"] == {"notes": 192.0}
    assert source.schema.modalities[0].horizon == 192.0


def picture(value: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((1, 2), value, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def test_pictures_recordings_and_vectors_have_times_too(tmp_path: Path) -> None:
    """Pictures in cells and by path, recordings of different lengths, vectors with a gap; minutes."""
    rows = {"id": ["a", "b", "a", "a"], "t": [30, 5, 10, 20], "png": [picture(1), None, picture(3), picture(4)]}
    pa.parquet.write_table(pa.table(rows), tmp_path / "p.parquet")
    for number in (2, 5):
        np.save(tmp_path / f"{number}.npy", np.arange(number, dtype=np.float32))
    (tmp_path / "w.csv").write_text("id,t,path\na,1,5.npy\na,1,2.npy\nb,2.5,\n")
    (tmp_path / "v.csv").write_text("id,t,x,y\nb,3,1,\nb,2,,\na,4,5,6\n")
    clock = {"time": "t", "time_unit": "minutes", "horizon": 60}
    mapping = {
        "records": {"file": "r.csv", "key": "id"},
        "modalities": {
            "xray": {"kind": "image", "file": "p.parquet", "column": "png", "channels": 1, "height": 1, "width": 2}
            | clock,
            "ecg": {"kind": "waveform", "file": "w.csv", "column": "path"} | clock,
            "lab": {"kind": "vector", "file": "v.csv", "columns": ["x", "y"], "empty": "known"} | clock,
        },
    }
    records, counted = read(tmp_path, mapping, r_csv="id\na\nb\n")
    assert times_and(records["a"].values["xray"]) == [(30, [[[1, 1]]]), (10, [[[3, 3]]]), (20, [[[4, 4]]])]
    assert "xray" not in records["b"].values and "ecg" not in records["b"].values
    assert times_and(records["a"].values["ecg"]) == [(1, [[0], [1], [2], [3], [4]]), (1, [[0], [1]])]
    assert times_and(records["b"].values["lab"]) == [(3, [1, 0, 1, 0]), (2, [0, 0, 0, 0])]
    assert times_and(records["a"].values["lab"]) == [(4, [5, 6, 1, 1])]
    assert counted == {"objects": 8, "rows_without_object": 2}


def test_times_that_float32_would_move_are_refused_or_counted(tmp_path: Path) -> None:
    unix = "id,t,text\n" + "".join(f"a,{1_600_000_000 + 7 * n},x\n" for n in range(5))
    section = {"kind": "text", "file": "n.csv", "column": "text", "time": "t", "time_unit": "seconds", "horizon": 2e9}
    mapping = {"records": {"file": "r.csv", "key": "id"}, "modalities": {"notes": section}}
    with pytest.raises(ValueError, match=r"n\.csv, column 't' .seconds.: times up to 1600000028 would move by up to"):
        read(tmp_path, mapping, r_csv="id\na\n", n_csv=unix)
    section["rounding"] = "allow"
    records, counted = read(tmp_path, mapping, r_csv="id\na\n", n_csv=unix)
    assert len(records["a"].values["notes"]) == 5 and counted["times_rounded"] == 4


def test_pictures_of_records_that_are_left_out_are_not_read(tmp_path: Path) -> None:
    mapping = {
        "records": {"file": "r.csv", "key": "id", "need_any": ["age"]},
        "modalities": {
            "age": {"kind": "vector", "columns": ["age"]},
            "photo": {"kind": "image", "file": "p.csv", "column": "path", "height": 1, "width": 2, "channels": 1}
            | {"time": "t", "horizon": 9},
        },
    }
    (tmp_path / "good.png").write_bytes(picture(7))
    files = {"r_csv": "id,age\na,\nb,4\n", "p_csv": "id,t,path\na,1,gone.png\nb,2,good.png\n"}
    records, counted = read(tmp_path, mapping, **files)
    assert list(records) == ["b"] and times_and(records["b"].values["photo"]) == [(2, [[[7, 7]]])]
    assert counted["records_without_any_needed_modality"] == 1
