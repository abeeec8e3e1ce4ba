"""Names of part files, and MM-IMDB and Food-101 as they are distributed."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_shards import create_source, open_manifest, pack
from tests.data_shards.sources.image_text.folders import folder, png, read

ROWS = [{"img": "p.png", "text": "x", "label": label, "id": f"{label}1"} for label in ("a", "b")]
GREY = {"p.png": png((120, 120, 120))}


def test_files_of_other_names_are_named_and_can_be_parts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = ("train.jsonl", "dev_seen.jsonl", "test_seen.jsonl", "extra.NDJSON")
    path = folder(tmp_path / "f", dict.fromkeys(names, ROWS), GREY)
    with caplog.at_level(logging.WARNING):
        made = create_source("image_text", {"path": path, "size": 8})
    assert "not read: dev_seen.jsonl, extra.NDJSON, test_seen.jsonl; say -o val=FILE" in caplog.text
    pack(made, str(tmp_path / "data"))
    report = open_manifest(str(tmp_path / "data")).source
    assert report["files_not_read"] == ["dev_seen.jsonl", "extra.NDJSON", "test_seen.jsonl"]
    assert report["notes"] == {"files_not_read": 3, "records_train": 2}
    named = {"path": path, "size": 8, "val": "dev_seen.jsonl", "test": "test_seen.jsonl"}
    made = create_source("image_text", named)
    assert read(made)[1] == {"records_train": 2, "records_val": 2, "records_test": 2}
    assert made.report(read(made)[1])["files_not_read"] == ["extra.NDJSON"]


def test_val_has_four_names_and_a_second_file_of_them_is_not_read(tmp_path: Path) -> None:
    for name in ("val", "dev", "valid", "validation"):
        path = folder(tmp_path / name, dict.fromkeys(("train.jsonl", f"{name}.jsonl"), ROWS), GREY)
        assert read(create_source("image_text", {"path": path, "size": 8}))[1]["records_val"] == 2
    path = folder(tmp_path / "two", dict.fromkeys(("train.jsonl", "val.jsonl", "dev.jsonl"), ROWS), GREY)
    made = create_source("image_text", {"path": path, "size": 8})
    assert made.report(read(made)[1])["files_not_read"] == ["dev.jsonl"]


def test_what_is_there_is_listed_where_nothing_fits(tmp_path: Path) -> None:
    path = folder(tmp_path / "f", {"Training.jsonl": ROWS, "validation_set.jsonl": ROWS}, GREY)
    with pytest.raises(
        ValueError, match=r"has no train.jsonl; it has Training.jsonl, validation_set.jsonl. Say which is"
    ):
        create_source("image_text", {"path": path})
    with pytest.raises(
        ValueError, match=r"option val: .*dev.jsonl is not there; it has Training.jsonl, validation_set"
    ):
        create_source("image_text", {"path": path, "train": "Training.jsonl", "val": "dev.jsonl"})
    with pytest.raises(ValueError, match=r"Training.jsonl is the file of two parts"):
        create_source("image_text", {"path": path, "train": "Training.jsonl", "test": "Training.jsonl"})
    with pytest.raises(ValueError, match=r"option file is 'Training.jsonl': write \{part\} where"):
        create_source("image_text", {"path": path, "file": "Training.jsonl"})
    with pytest.raises(ValueError, match=r"option picture is '\{x\}': only \{value\} can stand in braces"):
        create_source("image_text", {"path": path, "picture": "{x}", "train": "Training.jsonl"})
    with pytest.raises(ValueError, match=r"it has no .jsonl file at all"):
        create_source("image_text", {"path": folder(tmp_path / "g", {}, GREY)})


def test_a_share_of_training_can_be_val_and_pictures_stay_in_one_part(tmp_path: Path) -> None:
    rows = [{"img": f"{n % 60}.png", "text": "x", "label": "ab"[n % 2]} for n in range(120)]
    files = {f"{n}.png": png((n, n, n)) for n in range(60)}
    path = folder(tmp_path / "f", {"train.jsonl": rows}, files)
    records, notes = read(create_source("image_text", {"path": path, "size": 8, "val_share": 0.3}))
    assert notes["records_train"] + notes["records_val"] == 120 and 16 <= notes["records_val"] <= 56
    homes: dict[int, set[str]] = {}
    for record in records.values():
        homes.setdefault(int(np.asarray(record.values["image"])[0, 0, 0]), set()).add(record.splits["default"])
    assert len(homes) == 60 and all(len(parts) == 1 for parts in homes.values())
    again = folder(tmp_path / "g", {"train.jsonl": rows, "dev.jsonl": rows}, files)
    with pytest.raises(ValueError, match=r"option val_share makes a part val, and there is one already"):
        create_source("image_text", {"path": again, "val_share": 0.3})


def films(path: Path, told: dict[str, Any], split: Any) -> str:
    where = folder(path, {}, {f"dataset/{film}.jpeg": png((int(film) % 250,) * 3) for film in told})
    for film, about in told.items():
        (path / f"dataset/{film}.json").write_text(json.dumps(about))
    (path / "split.json").write_text(json.dumps(split))
    return where


def test_mm_imdb_as_distributed(tmp_path: Path) -> None:
    told = {
        "0001": {"plot": ["short", "a longer plot"], "genres": ["Drama", "Music"], "title": "x"},
        "0002": {"plot": ["p"], "genres": ["News", "Music"]},
        "0003": {"plot": [], "genres": ["Drama"]},
        "0004": {"plot": ["q"], "genres": []},
    }
    path = films(tmp_path / "f", told, {"train": ["0001", "0002"], "dev": ["0003"], "test": ["0004"]})
    made = create_source("image_text", {"path": path, "preset": "mm_imdb", "size": 8, "id": "id"})
    assert made.schema.name == "mm_imdb" and made.schema.task("label").classes == ("Drama", "Music", "News")
    records, notes = read(made)
    assert notes == {"records_train": 2, "records_val": 1, "records_test": 1, "without_text": 1, "unlabelled_test": 1}
    assert records["0001"].values["text"] == "a longer plot"
    assert np.asarray(records["0001"].targets["label"]).tolist() == [1, 1, 0]
    assert np.asarray(records["0002"].values["image"])[0, 0, 0] == 2 and "text" not in records["0003"].values
    (tmp_path / "f" / "labels.txt").write_text("Drama\nMusic\n")
    records, notes = read(
        create_source("image_text", {"path": path, "preset": "mm_imdb", "size": 8, "unseen": "ignore"})
    )
    assert np.asarray(records["train-0000001"].targets["label"]).tolist() == [0, 1] and notes["labels_ignored"] == 1


@pytest.mark.parametrize(
    ("split", "about", "sentence"),
    [
        ({"train": ["0001", "9"]}, {}, r"split.json names '9', and .*dataset/9.json is not there"),
        ({"train": ["0001"], "dev": ["0001"]}, {}, r"split.json: film 0001 is in train and in dev"),
        ({"train": ["../x"]}, {}, r"split.json: 'train' lists '../x', which is no film's id"),
        ({"train": ["0001"], "more": []}, {}, r"split.json: 'more' is not one of train, dev and test with a list"),
        ({"dev": ["0001"]}, {}, r"split.json has no list train"),
        ({"train": ["0001"]}, {"plot": [5]}, r"0001.json: field 'text' is a whole number, not a text"),
        ({"train": ["0001"]}, {"genres": [1.5]}, r"0001.json: field 'label' holds a number with a decimal point"),
    ],
)
def test_mm_imdb_that_is_not_whole(tmp_path: Path, split: Any, about: dict[str, Any], sentence: str) -> None:
    path = films(tmp_path / "f", {"0001": {"plot": ["p"], "genres": ["Drama"], **about}}, split)
    with pytest.raises(ValueError, match=sentence):
        read(create_source("image_text", {"path": path, "preset": "mm_imdb", "size": 8}))


TITLES = (
    "apple_pie_0.jpg,Apple pie, the best, ever,apple_pie\n"
    'waffles_1.jpg,"Waffles, ""crisp""",waffles\r\n'
    'waffles_2.jpg,"A", or "B",waffles\n'
    "waffles_3.jpg,,waffles\n"
)


def test_food101_as_distributed(tmp_path: Path) -> None:
    names = ("apple_pie_0", "waffles_1", "waffles_2", "waffles_3")
    files = {f"images/train/{name[:-2]}/{name}.jpg": png((10 * n, 0, 0)) for n, name in enumerate(names)}
    files["images/test/waffles/waffles_9.jpg"] = png((99, 0, 0))
    path = folder(tmp_path / "f", {}, files)
    (tmp_path / "f/texts").mkdir()
    (tmp_path / "f/texts/train_titles.csv").write_bytes(TITLES.encode())
    (tmp_path / "f/texts/test_titles.csv").write_text("waffles_9.jpg,Plain,waffles\n")
    options = {"path": path, "preset": "food101", "size": 8, "id": "id"}
    made = create_source("image_text", options)
    records, notes = read(made)
    assert made.schema.task("label").classes == ("apple_pie", "waffles") and made.schema.name == "food101"
    assert notes == {"records_train": 4, "records_test": 1, "without_text": 1}
    texts = {key: record.values.get("text") for key, record in records.items()}
    assert texts == {"apple_pie_0": "Apple pie, the best, ever", "waffles_1": 'Waffles, "crisp"',
                     "waffles_2": '"A", or "B"', "waffles_3": None, "waffles_9": "Plain"}  # fmt: skip
    assert np.asarray(records["waffles_2"].values["image"])[0, 0, 0] == 20
    shared, _ = read(create_source("image_text", {**options, "val_share": 0.5}))
    assert {record.splits["default"] for record in shared.values()} == {"train", "val", "test"}
    (tmp_path / "f/texts/train_titles.csv").write_text("\napple_pie_0.jpg,apple_pie\n")
    with pytest.raises(ValueError, match=r"train_titles.csv, line 2 is not of the form image,title,class"):
        create_source("image_text", options)


def test_json_lines_go_before_what_is_distributed(tmp_path: Path) -> None:
    path = films(tmp_path / "f", {"0001": {"plot": ["p"], "genres": ["Drama"]}}, {"train": ["0001"]})
    (tmp_path / "f/train.jsonl").write_text(json.dumps({"img": "dataset/0001.jpeg", "text": "t", "label": ["x"]}))
    made = create_source("image_text", {"path": path, "preset": "mm_imdb", "size": 8})
    assert made.schema.task("label").classes == ("x",)
    with pytest.raises(ValueError, match=r"has no train.jsonl; it has no .jsonl file at all"):
        create_source("image_text", {"path": folder(tmp_path / "g", {}, GREY), "preset": "food101"})
