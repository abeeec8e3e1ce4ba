"""Pictures with text in JSON lines: prepared layouts, masks, what is left out, and what is refused."""

from __future__ import annotations

import io
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_shards import create_source, open_manifest, pack
from data_shards.sources.readers.picture_files import PictureError
from data_shards.sources.readers.pictures import decode_picture
from tests.data_shards.sources.image_text.folders import folder, png, read


def test_a_picture_is_scaled_by_its_shorter_side_and_cut_in_the_middle() -> None:
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, 4:12] = 200
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    got = decode_picture(stream.getvalue(), 8, Counter())
    assert got.shape == (3, 8, 8) and got.dtype == np.uint8 and (got == 200).all()
    with pytest.raises(PictureError, match=r"empty \(0 bytes\)"):
        decode_picture(b"", 8, Counter())
    with pytest.raises(PictureError, match="cannot be decoded"):
        decode_picture(stream.getvalue()[:40], 8, Counter())


def test_food101_layout(tmp_path: Path) -> None:
    rows = {
        f"{part}.jsonl": [
            {"id": n, "label": label, "text": f"{label} recipe é", "img": f"images/{part}/{label}/{n}.jpg"}
            for n, label in enumerate(("apple_pie", "waffles"))
        ]
        for part in ("train", "dev", "test")
    }
    files = {line["img"]: png((9, 9, 9)) for lines in rows.values() for line in lines}
    source = create_source("image_text", {"path": folder(tmp_path / "f", rows, files), "preset": "food101", "size": 8})
    records, notes = read(source)
    assert notes == {"records_train": 2, "records_val": 2, "records_test": 2}, "dev is the part val"
    assert source.schema.task("label").classes == ("apple_pie", "waffles")
    record = records["train-0000001"]
    assert record.targets["label"] == 1.0 and record.values["text"] == "waffles recipe é"
    assert record.splits == {"default": "train"}
    pack(source, str(tmp_path / "data"))
    assert open_manifest(str(tmp_path / "data")).records == 6


def test_mm_imdb_layout(tmp_path: Path) -> None:
    rows = {"train.jsonl": [{"id": "1", "text": "a film", "img": "dataset/1.jpeg", "label": ["Drama", "Music"]}]}
    path = folder(tmp_path / "f", rows, {"dataset/1.jpeg": png((1, 2, 3))}, labels=["Action", "Drama", "Music"])
    source = create_source("image_text", {"path": path, "preset": "mm_imdb", "size": 8})
    records, _ = read(source)
    assert source.schema.task("label").kind == "multilabel"
    assert records["train-0000000"].targets["label"].tolist() == [0.0, 1.0, 1.0]  # type: ignore[union-attr]


def test_snli_ve_layout(tmp_path: Path) -> None:
    def line(picture: int, label: str) -> dict[str, Any]:
        return {
            "gold_label": label,
            "sentence1": "x",
            "sentence2": f"hypothesis {picture}",
            "Flickr30K_ID": str(picture),
        }

    rows = {
        "snli_ve_train.jsonl": [line(7, "entailment"), line(7, "neutral"), line(8, "-"), line(8, "contradiction")],
        "snli_ve_dev.jsonl": [line(8, "neutral")],
    }
    files = {f"Flickr30K/flickr30k_images/{n}.jpg": png((n, n, n)) for n in (7, 8)}
    source = create_source("image_text", {"path": folder(tmp_path / "f", rows, files), "preset": "snli_ve", "size": 8})
    records, notes = read(source)
    assert notes == {"records_train": 3, "records_val": 1, "without_label": 1, "records_left_out": 1}
    assert source.schema.task("label").classes == ("contradiction", "entailment", "neutral")
    assert records["val-0000000"].values["image"][0, 0, 0] == 8  # type: ignore[index]


def test_records_come_in_an_order_that_tells_nothing(tmp_path: Path) -> None:
    rows = [{"label": f"c{n // 40}", "text": "t", "img": "p.png"} for n in range(120)]
    path = folder(tmp_path / "f", {"train.jsonl": rows}, {"p.png": png((0, 0, 0))})
    keys = list(read(create_source("image_text", {"path": path, "size": 8}))[0])
    labels = [int(key[-7:]) // 40 for key in keys]
    assert sorted(keys) != keys and sum(a == b for a, b in pairwise(labels)) < 70
    assert keys == list(read(create_source("image_text", {"path": path, "size": 8}))[0])


@pytest.mark.parametrize(
    ("line", "option", "sentence", "note"),
    [
        ({"img": None}, "no_picture", r"line 2 has no picture \(field 'img' is absent or null\)", "without_picture"),
        (
            {"img": "empty.png"},
            "damaged",
            r"line 2, picture empty.png: the picture is empty \(0 bytes\)",
            "damaged_picture",
        ),
        (
            {"img": "gone.png"},
            "no_picture",
            r"line 2, picture gone.png: there is no such file",
            "picture_file_not_there",
        ),
    ],
)
def test_what_is_wrong_with_a_line_is_refused_or_left_out(
    tmp_path: Path, line: dict[str, Any], option: str, sentence: str, note: str
) -> None:
    rows = [{"label": "a", "text": "t", "img": "p.png"}, {"label": "b", "text": "u", "img": "p.png", **line}]
    path = folder(tmp_path / "f", {"train.jsonl": rows}, {"p.png": png((0, 0, 0)), "empty.png": b""})
    settings = {"path": path, "size": 8}
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=sentence):
        pack(create_source("image_text", settings), str(out))
    assert not (out / "manifest.json").exists(), "nothing half-written counts as a data set"
    records, notes = read(create_source("image_text", {**settings, option: "drop"}))
    assert len(records) == 1 and notes[note] == 1


def test_text_alone_may_be_kept(tmp_path: Path) -> None:
    rows = [{"label": "a", "text": "t", "img": "p.png"}, {"label": "b", "text": "u", "img": None}]
    path = folder(tmp_path / "f", {"train.jsonl": rows}, {"p.png": png((0, 0, 0))})
    records, _ = read(create_source("image_text", {"path": path, "size": 8, "no_picture": "keep"}))
    assert set(records["train-0000001"].values) == {"text"}


def test_masks_keep_their_class_numbers_and_are_cut_like_their_pictures(tmp_path: Path) -> None:
    numbers = np.zeros((8, 16), np.uint8)
    numbers[2:6, 6:10], numbers[0, 4] = 3, 255
    files = {"a.png": png((1, 2, 3), (16, 8))}
    palette = Image.frombytes("P", (16, 8), numbers.tobytes())
    palette.putpalette([channel for number in range(256) for channel in (number, 0, 255 - number)])
    for name, mask in (("grey.png", Image.fromarray(numbers)), ("palette.png", palette)):
        stream = io.BytesIO()
        mask.save(stream, "png")
        files[name] = stream.getvalue()
    line = {"img": "a.png", "text": "t"}
    rows = [{**line, "mask": "grey.png"}, {**line, "mask": "palette.png"}, {**line, "mask": None}, {**line}]
    options = {"path": folder(tmp_path / "x", {"train.jsonl": rows}, files), "mask": "mask", "size": 8}
    source = create_source("image_text", options)
    assert source.schema.tasks == () and source.schema.modalities[2].shape == (1, 8, 8)
    records, notes = read(source)
    assert notes["without_mask"] == 2
    found = [record.values.get("mask") for record in records.values()]
    masks = [mask for mask in found if isinstance(mask, np.ndarray)]
    assert len(found) == 4 and len(masks) == 2
    assert all(np.array_equal(mask[0], numbers[:, 4:12]) for mask in masks)
    colours = folder(tmp_path / "y", {"train.jsonl": [{**line, "mask": "a.png"}]}, files)
    with pytest.raises(ValueError, match=r"line 1, mask a.png: a mask is a grey or palette picture .* mode RGB"):
        read(create_source("image_text", {**options, "path": colours}))


def test_labels_that_training_lacks(tmp_path: Path) -> None:
    rows = {
        "train.jsonl": [{"label": "a", "text": "t", "img": "p.png"}, {"label": "b", "text": "t", "img": "p.png"}],
        "test.jsonl": [{"label": "new", "text": "t", "img": "p.png"}],
    }
    path = folder(tmp_path / "f", rows, {"p.png": png((0, 0, 0))})
    with pytest.raises(ValueError, match=r"test.jsonl, line 1 has the label 'new', which no training record has"):
        read(create_source("image_text", {"path": path, "size": 8}))
    records, notes = read(create_source("image_text", {"path": path, "size": 8, "unseen": "drop"}))
    assert len(records) == 2 and notes["unseen_label"] == 1


def test_paths_cannot_leave_the_folder_and_fields_must_be_there(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png((0, 0, 0)))
    rows = [{"label": "a", "text": "t", "img": "../secret.png"}, {"label": "b", "text": "t", "img": "x.png"}]
    path = folder(tmp_path / "f", {"train.jsonl": rows}, {"x.png": png((0, 0, 0))})
    with pytest.raises(ValueError, match=r"picture '../secret.png' is outside of"):
        read(create_source("image_text", {"path": path, "size": 8}))
    with pytest.raises(
        ValueError, match=r"line 1 has no field 'title', nor has any other .* it has label, text, img: say which"
    ):
        create_source("image_text", {"path": path, "size": 8, "text": "title"})
    with pytest.raises(ValueError, match=r"has no snli_ve_train.jsonl; it has train.jsonl. Say which"):
        create_source("image_text", {"path": path, "preset": "snli_ve"})
