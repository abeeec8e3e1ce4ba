"""`init` on folders as people have them: the mapping that is drafted is packed as it stands, its values known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_shards import create_source, open_manifest, pack, summary
from data_shards.yaml_file import parse_yaml
from launch.draft.dialects import likely_dialect
from launch.draft.init import draft_folder
from launch.errors import UsageError
from trainer.config.preset import FITTED
from trainer.config.recipe import load_recipe


def table(path: Path, head: str, rows: list[tuple[object, ...]], mark: str = ",") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([head, *(mark.join(map(str, row)) for row in rows)]) + "\n", encoding="utf-8")


def drafted(folder: Path, out: Path | None = None):
    """(text, tree) of the drafted mapping."""
    draft_folder(str(folder), None if out is None else str(out), False)
    text = ((out or folder) / "mapping.yaml").read_text(encoding="utf-8")
    return text, parse_yaml(text, "mapping")


def packed(mapping: Path, out: Path):
    return pack(create_source("tables", {"path": str(mapping)}), str(out))


def test_one_wide_table(tmp_path, capsys):
    folder = tmp_path / "wide"
    places = ("north", "south", "east")
    rows = [
        (n, 20 + n % 50, "mf"[n % 2], "" if n % 7 == 0 else 20.25 + n % 11, places[n % 3], ("home", "died")[n % 5 == 0])
        for n in range(60)
    ]
    table(folder / "patients.csv", "id,age,sex,bmi,site,outcome", rows)
    text, tree = drafted(folder)
    assert tree == {
        "name": "wide",
        "records": {"file": "patients.csv", "key": "id"},
        "split": {"shares": {"train": 0.8, "val": 0.1, "test": 0.1}},
        "modalities": {
            "numbers": {"kind": "vector", "columns": ["age", "bmi"], "empty": "known"},
            "categories": {"kind": "codes", "columns": ["sex", "site"]},
        },
        "tasks": {"outcome": {"kind": "binary", "column": "outcome", "classes": ["home", "died"]}},
    }
    assert "  # sure? binary: of the two classes 'died' is yes\n  outcome: {kind: binary" in text
    report = packed(folder / "mapping.yaml", tmp_path / "packed")
    assert report["records"] == 60 and report["vocabularies"] == {"categories": 7}
    said = json.loads(capsys.readouterr().out)
    assert said["mapping"] == str(folder / "mapping.yaml") and len(said["doubts"]) == 2
    recipe = load_recipe(said["recipe"])
    assert recipe.data.url == "data/wide" and recipe.preset == "good" and recipe.unnamed == list(FITTED)


def test_records_and_long_events_with_dates(tmp_path):
    folder = tmp_path / "ward"
    stays = [
        (f"s{n}", f"p{n // 2}", f"2020-01-{1 + n % 28:02d} 08:00:00", f"2020-02-01 0{n % 9}:00:00", n % 4 == 0)
        for n in range(40)
    ]
    table(folder / "stays.csv", "stay_id,patient,admitted,discharged,died", stays)
    events = [
        (
            f"s{n % 41}",
            f"2020-01-{1 + n % 41 % 28:02d} {7 + n % 10:02d}:{n % 60:02d}:00",
            ("HR", "SpO2", "K")[n % 3],
            60 + n % 40,
        )
        for n in range(410)
    ]
    table(folder / "events.csv", "stay_id,charttime,item,value", events)
    text, tree = drafted(folder, tmp_path / "elsewhere")
    assert tree["records"] == {"file": str(folder / "stays.csv"), "key": "stay_id", "group": "patient"}
    assert tree["modalities"] == {
        "events": {
            "kind": "series", "file": str(folder / "events.csv"), "unknown_keys": "skip", "time": "charttime",
            "origin": "admitted", "outside": "skip", "channel": "item", "value": "value",
            "channels": ["HR", "K", "SpO2"],
        }
    }  # fmt: skip
    assert tree["tasks"] == {"died": {"kind": "binary", "column": "died"}}
    strangers = sum(stay == "s40" for stay, *_ in events)
    early = sum(stay != "s40" and time[11:13] == "07" for stay, time, *_ in events)
    assert (
        f"# sure? {strangers} rows are of records that" in text
        and f"# sure? {early} rows lie before 'admitted'" in text
    )
    assert "column 'discharged': it holds dates, which no table of events counts from" in text
    report = packed(tmp_path / "elsewhere" / "mapping.yaml", tmp_path / "packed")
    assert report["records"] == 40 and report["observations"] == 410 - strangers - early
    assert report["source"]["notes"]["rows_of_unknown_records"] == strangers


def test_records_notes_and_pictures(tmp_path):
    folder = tmp_path / "clinic"
    (folder / "pictures").mkdir(parents=True)
    for n in range(20):
        Image.fromarray(np.full((24, 32, 3), 5 * n, np.uint8)).save(folder / "pictures" / f"x{n}.png")
    visits = [
        (
            f"v.{n}",
            "" if n % 5 == 0 else f"pictures/x{n}.png",
            50 + n / 2,
            "abc"[n % 3],
            ("train", "valid", "test")[n % 3],
        )
        for n in range(20)
    ]
    table(folder / "visits.csv", "visit,photo,weight,label,part", visits)
    notes = [(f"v.{n % 20}", n / 2, f'"the patient feels better today, says note {n}"') for n in range(30)]
    table(folder / "notes.csv", "visit,minutes,note", notes)
    text, tree = drafted(folder)
    assert tree["records"] == {"file": "visits.csv", "key": "visit", "keys": "escape"}
    assert tree["split"] == {"columns": {"default": "part"}, "rename": {"valid": "val"}}
    assert tree["modalities"] == {
        "notes": {"kind": "text", "file": "notes.csv", "time": "minutes", "time_unit": "minutes", "column": "note"},
        "numbers": {"kind": "vector", "columns": ["weight"]},
        "photo": {"kind": "image", "column": "photo", "channels": 3, "height": 24, "width": 32, "resize": True},
    }
    assert tree["tasks"] == {"label": {"kind": "multiclass", "column": "label", "classes": ["a", "b", "c"]}}
    assert "# sure? height, width: the first one has 32 x 24 pixels" in text
    report = packed(folder / "mapping.yaml", tmp_path / "packed")
    assert report["splits"]["default"] == {"train": 7, "val": 7, "test": 6}
    rows = summary(open_manifest(str(tmp_path / "packed")))["modalities"]
    assert {row["name"]: row["present"] for row in rows} == {"notes": 20, "numbers": 20, "photo": 16}


def test_a_table_in_which_semicolons_and_commas_stand_for_commas_and_points(tmp_path):
    folder = tmp_path / "german"
    rows = [(f"f{n}", f"{1 + n % 28:02d}.03.2020 08:15", f"3{n % 9},5", ("leicht", "schwer")[n % 2]) for n in range(30)]
    table(folder / "faelle.csv", "Fall_id;Aufnahme;Temperatur;label", rows, ";")
    long = [(f"f{n % 30}", f"{2 + n % 28:02d}.04.2020 09:00", f"{n},25") for n in range(60)]
    table(folder / "werte.csv", "Fall_id;Zeit;Wert", long, ";")
    _, tree = drafted(folder)
    assert tree["csv"] == {"separator": ";", "decimal": ",", "date": "%d.%m.%Y %H:%M"}
    assert tree["modalities"]["werte"]["columns"] == ["Wert"] and tree["modalities"]["werte"]["origin"] == "Aufnahme"
    report = packed(folder / "mapping.yaml", tmp_path / "packed")
    assert (report["records"], report["observations"]) == (30, 60)


@pytest.mark.parametrize(
    ("cells", "form"),
    [
        (["31/12/2020", "01/02/2020"], "%d/%m/%Y"),
        (["12/31/2020", "01/02/2020"], "%m/%d/%Y"),
        (["1.2.2020 10:00:05"], "%d.%m.%Y %H:%M:%S"),
        (["2020-02-01"], None),
        (["10.5", "3/4"], None),
    ],
)
def test_dates_are_recognised_if_all_cells_fit(tmp_path, cells, form):
    table(tmp_path / "a.csv", "id,when", [(n, cell) for n, cell in enumerate(cells)])
    assert likely_dialect([tmp_path / "a.csv"])[0].date == form


def test_what_is_refused(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    table(tmp_path / "twice" / "a.csv", "x,y", [(1, 2), (1, 3), (2, 3)])
    for folder, sentence in (
        (tmp_path / "nothing", "is no folder"),
        (empty, "holds no table: CSV (.csv, .tsv, .txt), Parquet"),
        (tmp_path / "twice", "no column of a.csv can name records: one has to be different in every row"),
    ):
        with pytest.raises(ValueError, match=r".") as found:
            draft_folder(str(folder), None, False)
        assert sentence in str(found.value)
    table(tmp_path / "fine" / "a.csv", "id,y,label", [(n, n % 3, n % 2) for n in range(9)])
    draft_folder(str(tmp_path / "fine"), None, False)
    with pytest.raises(UsageError, match=r"mapping.yaml exists: give another folder with --out, or --overwrite"):
        draft_folder(str(tmp_path / "fine"), None, False)
    draft_folder(str(tmp_path / "fine"), None, True)


def test_a_key_that_is_there_twice_is_said_and_so_are_two_ways_of_writing(tmp_path):
    folder = tmp_path / "twice"
    rows = [(n if n < 60 else 3, 1000 + 7 * n, ("no", "yes")[n % 2], n % 9) for n in range(61)]
    table(folder / "patients.csv", "patient_id,zip,died,age", rows)
    table(folder / "labs.csv", "patient_id,hour,value", [(n % 60, n % 24, n % 5) for n in range(120)])
    text, tree = drafted(folder)
    assert (
        tree["records"]["key"] == "zip" and "labs.csv refer to column 'patient_id', which cannot be the key as" in text
    )
    assert "'3' is there more than once (1 of 61 rows too many)" in text
    table(folder / "patients.csv", "patient_id,zip,died", [row[:3] for row in rows])
    with pytest.raises(ValueError, match=r"nothing is left that could be a modality: .*labs\.csv refer to column"):
        draft_folder(str(folder), str(tmp_path / "out"), False)
    table(folder / "labs.csv", "patient_id;hour;value", [(n % 60, n % 24, n % 5) for n in range(120)], ";")
    with pytest.raises(ValueError, match=r"labs.csv is separated by ';' and patients.csv by ','"):
        draft_folder(str(folder), str(tmp_path / "out"), False)


def test_digits_that_begin_with_a_zero_are_names(tmp_path):
    rows = [(n, f"0{n % 4}123", f"{n % 24:02d}", f"{n:05d}", ("no", "yes")[n % 2]) for n in range(48)]
    table(tmp_path / "z" / "people.csv", "id,zip,hour,card,died", rows)
    _, tree = drafted(tmp_path / "z")
    assert tree["modalities"]["categories"]["columns"] == ["zip"]
    assert tree["modalities"]["numbers"]["columns"] == ["hour"], "05 is an hour"


def test_a_table_mostly_of_other_records_is_left_out_with_the_nearest_column(tmp_path):
    folder = tmp_path / "clinic"
    folder.mkdir()
    table(folder / "stays.csv", "stay,age,died", [(f"s{n}", 50 + n, n % 2) for n in range(20)])
    table(folder / "labs.csv", "stay,hours,sodium", [(f"s{n // 2}", n / 2, 135.5 + n) for n in range(100)])
    table(folder / "wards.csv", "ward,beds", [(f"w{n}", 5 + n) for n in range(30)])
    text, tree = drafted(folder)
    assert set(tree["modalities"]) == {"numbers"}
    assert "labs.csv: no column of it names records of stays.csv (40% of the values of 'stay' do: if it" in text
    assert "wards.csv: no column of it names records of stays.csv\n" in text
