"""What fields hold: nothing becomes a word that is none, every error has file and line, every line is counted."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards import create_source
from data_shards.sources.base import Source
from tests.data_shards.sources.image_text.folders import folder, png, read

GREY = {"p.png": png((120, 120, 120))}


def line(label: Any = "a", text: Any = "x", img: Any = "p.png", **more: Any) -> dict[str, Any]:
    return {"img": img, "text": text, "label": label, **more}


def source(path: Path, rows: list[dict[str, Any]] | bytes, **options: Any) -> Source:
    """Of one training file, as objects or as bytes."""
    lines = rows if isinstance(rows, list) else []
    where = folder(path, {"train.jsonl": lines}, GREY)
    if isinstance(rows, bytes):
        (path / "train.jsonl").write_bytes(rows)
    return create_source("image_text", {"path": where, "size": 8, **options})


def classes(made: Source) -> tuple[str, ...]:
    return made.schema.task("label").classes


@pytest.mark.parametrize("label", [None, float("nan"), "", "  ", [], "-"])
def test_no_label_is_no_class_and_counted(tmp_path: Path, label: Any) -> None:
    made = source(tmp_path / "f", [line("a"), line(label), line("b")], no_label="-")
    records, notes = read(made)
    assert classes(made) == ("a", "b") and set(records) == {"train-0000000", "train-0000002"}
    assert notes == {"records_train": 2, "without_label": 1, "records_left_out": 1}
    kept = source(tmp_path / "g", [line("a"), line(label), line("b")], no_label="-", unlabelled="keep")
    records, notes = read(kept)
    assert classes(kept) == ("a", "b") and notes == {"records_train": 3, "unlabelled_train": 1}
    assert records["train-0000001"].targets == {"label": None} and records["train-0000002"].targets == {"label": 1.0}
    with pytest.raises(ValueError, match=r"train.jsonl, line 2 has no label \(field 'label' is .*\): leave such"):
        read(source(tmp_path / "h", [line("a"), line(label), line("b")], no_label="-", unlabelled="refuse"))


def test_an_absent_label_is_no_label_and_none_at_all_is_refused(tmp_path: Path) -> None:
    bare = {"img": "p.png", "text": "x"}
    assert read(source(tmp_path / "f", [line("a"), bare, line("b")]))[1]["without_label"] == 1
    with pytest.raises(ValueError, match=r"line 1 has no field 'label', nor has any other record of training"):
        source(tmp_path / "g", [bare, bare])
    with pytest.raises(ValueError, match=r"no record of training has a label in field 'label'"):
        source(tmp_path / "h", [line(None), line("")])
    with pytest.raises(ValueError, match=r"the labels are \['a'\], and a class needs another"):
        source(tmp_path / "i", [line("a"), line("a")])


def test_labels_are_texts_whole_numbers_and_truth_values(tmp_path: Path) -> None:
    made = source(tmp_path / "f", [line(1), line(1.0), line(True), line("true"), line(False), line(" b "), line(["b"])])
    records, notes = read(made)
    assert classes(made) == ("1", "b", "false", "true")
    assert [records[f"train-{n:07d}"].targets["label"] for n in range(7)] == [0, 0, 3, 3, 2, 1, 1]
    assert notes == {"records_train": 7}
    words = source(tmp_path / "g", [line("None"), line("nan"), line("null"), line("NaN")])
    assert classes(words) == ("NaN", "None", "nan", "null"), "a word that is written is a class"


def test_several_labels_are_for_multilabel(tmp_path: Path) -> None:
    rows = [line("a"), line("b"), line(["b", "a"]), line(["b", "b"])]
    with pytest.raises(
        ValueError, match=r"train.jsonl, line 3 has 2 labels, 'b', 'a', and one is read: say -o kind=mul"
    ):
        source(tmp_path / "f", rows)
    records, notes = read(source(tmp_path / "g", rows, kind="multilabel"))
    got = [np.asarray(records[f"train-{n:07d}"].targets["label"]).tolist() for n in range(4)]
    assert got == [[1, 0], [0, 1], [1, 1], [0, 1]] and notes["labels_repeated"] == 1
    assert read(source(tmp_path / "h", [line("a"), line(["b", "b"])]))[1] == {"records_train": 2, "labels_repeated": 1}


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (line(1.5), r"field 'label' holds a number with a decimal point, and a label is a text, a whole number or"),
        (line(float("inf")), r"field 'label' holds a number with a decimal point"),
        (line({"x": 1}), r"field 'label' holds a object"),
        (line([["a"]]), r"field 'label' holds a list"),
        (line(["a", None]), r"one of the labels in 'label' is empty"),
        (line(["a", " "]), r"one of the labels in 'label' is empty"),
        (line("\ud83d"), r"field 'label' holds half of a character, '\\ud83d' at place 1"),
        (line("a", "x \ud83d y"), r"field 'text' holds half of a character, '\\ud83d' at place 3"),
        (line("a", 5), r"field 'text' is a whole number, not a text: write it in quotes"),
        (line("a", ["x"]), r"field 'text' is a list, not a text"),
        (line("a", True), r"field 'text' is a truth value, not a text"),
        (line("a", "x", 1.5), r"field 'img' is a number with a decimal point, not a text or a whole number"),
        (line("a", "x", ["p.png"]), r"field 'img' is a list, not a text or a whole number"),
        (line("a", "x", "p\0.png"), r"field 'img' holds control characters: 'p\\x00.png'"),
        (line("a", "x", "n" * 5000), r"there is no such file"),
    ],
)
def test_values_of_other_types_are_refused_with_file_and_line(tmp_path: Path, wrong: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=rf"train.jsonl, line 3.*{sentence}"):
        read(source(tmp_path / "f", [line("a"), line("b"), wrong]))


@pytest.mark.parametrize(
    ("third", "sentence"),
    [
        (
            b'{"img":"p.png","text":"caf\xe9","label":"a"}',
            r"is not UTF-8 \(byte 0xe9 at place 27\): save the file as UTF",
        ),
        (b'{"img":"p.png","label":"a","label":"b"}', r"is not read: it names the field 'label' twice"),
        (b'{"img":"p.png","label":"a"', r"is not JSON: Expecting ',' delimiter, at character 27$"),
        (b'["p.png"]', r"begins a JSON array, and a JSON object a line is read"),
        (b'"p.png"', r"is a JSON text, not an object"),
        (b"null", r"is a JSON null, not an object"),
        (b"{'img': 'p.png'}", r"is not JSON: Expecting property name"),
        (b'{"n": ' + b"9" * 5000 + b"}", r"is not read: Exceeds the limit"),
        (b'{"n": ' + b"[" * 100_000 + b"}", r"is not read: maximum recursion"),
    ],
)
def test_lines_that_are_no_objects_are_refused_with_file_and_line(tmp_path: Path, third: bytes, sentence: str) -> None:
    good = json.dumps(line("a")).encode()
    with pytest.raises(ValueError, match=rf"train.jsonl, line 4 {sentence}"):
        source(tmp_path / "f", b"\n".join([good, b"", good, third, good]))


def test_an_array_instead_of_lines_is_said_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train.jsonl, line 1 begins a JSON array"):
        source(tmp_path / "f", json.dumps([line("a"), line("b")], indent=1).encode())


def test_marks_line_ends_and_blank_lines_change_no_record(tmp_path: Path) -> None:
    rows = [
        json.dumps(line("a", "é")).encode(),
        json.dumps(line("b", "\u2028")).encode(),
        json.dumps(line("a")).encode(),
    ]
    plain, _ = read(source(tmp_path / "f", b"\n".join(rows)))
    odd, _ = read(source(tmp_path / "g", b"\xef\xbb\xbf\r\n" + b"\r\n \r\n".join(rows) + b"\r\n\r\n\n"))
    assert list(plain) == list(odd) and len(plain) == 3
    for key, record in plain.items():
        assert record.targets == odd[key].targets and record.values["text"] == odd[key].values["text"]
    with pytest.raises(ValueError, match=r"the part train holds no record"):
        source(tmp_path / "h", b"\n \n")


def test_a_text_that_is_not_there_is_no_modality(tmp_path: Path) -> None:
    rows = [line("a"), line("b", None), line("b", ""), {"img": "p.png", "label": "a"}, line("a", float("nan"))]
    records, notes = read(source(tmp_path / "f", rows))
    assert [set(records[f"train-{n:07d}"].values) for n in range(5)] == [{"image", "text"}] + [{"image"}] * 4
    assert notes == {"records_train": 5, "without_text": 4}
    nothing, notes = read(source(tmp_path / "g", [*rows, line("a", None, None)], no_picture="keep"))
    assert len(nothing) == 5 and notes["without_text_and_picture"] == notes["records_left_out"] == 1


def test_a_text_that_is_cut_is_counted(tmp_path: Path) -> None:
    records, notes = read(source(tmp_path / "f", [line("a", "aé"), line("b", "aéb")], max_bytes=3))
    assert [records[f"train-{n:07d}"].values["text"] for n in range(2)] == ["aé", "aé"] and notes["texts_cut"] == 1


@pytest.mark.parametrize(("policy", "kept", "left"), [("drop", 1, 2), ("keep", 3, 0)])
def test_a_named_picture_that_is_not_there_is_no_picture(tmp_path: Path, policy: str, kept: int, left: int) -> None:
    rows = [line("a"), line("b", "x", "gone.png"), line("b", "x", None)]
    records, notes = read(source(tmp_path / "f", rows, no_picture=policy))
    assert len(records) == kept and notes["records_left_out"] == left
    assert notes["picture_file_not_there"] == notes["without_picture"] == 1
    with pytest.raises(
        ValueError, match=r"line 2, picture gone.png: there is no such file; leave such records out with"
    ):
        read(source(tmp_path / "g", rows[:2]))


def test_unlabelled_records_of_test_are_packed_and_unknown_labels_may_be_ignored(tmp_path: Path) -> None:
    rows = {
        "train.jsonl": [line("a"), line("b")],
        "dev.jsonl": [line("b"), line(None)],
        "test.jsonl": [{"img": "p.png", "text": "x"}, line(["new", "b"])],
    }
    options = {"path": folder(tmp_path / "f", rows, GREY), "size": 8, "kind": "multilabel", "unseen": "ignore"}
    records, notes = read(create_source("image_text", options))
    assert notes == {"records_train": 2, "records_val": 2, "records_test": 2, "unlabelled_val": 1, "unlabelled_test": 1,
                     "labels_ignored": 1}  # fmt: skip
    assert records["test-0000000"].targets == {"label": None}
    assert np.asarray(records["test-0000001"].targets["label"]).tolist() == [0, 1]


def test_own_ids_are_keys(tmp_path: Path) -> None:
    records, _ = read(source(tmp_path / "f", [line("a", id=7), line("b", id="x-1")], id="id"))
    assert set(records) == {"7", "x-1"} and records["x-1"].targets["label"] == 1.0
    for wrong, sentence in (
        ("a.b", r"line 2: 'id' is 'a.b', and a key is 1 to 90 letters, digits, '_' or '-'"),
        (None, r"line 2 has no 'id', which is to be its key"),
        (1.5, r"line 2: field 'id' is a number with a decimal point"),
        ("7", r"line 2 has the id '7', which .*train.jsonl, line 1 has already: ids must be unique in all parts"),
    ):
        with pytest.raises(ValueError, match=sentence):
            source(tmp_path / f"g{wrong}", [line("a", id=7), line("b", id=wrong)], id="id")


ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(["a", "b", "p.png"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
ROW = st.fixed_dictionaries({}, optional={"img": ANY, "text": ANY, "label": ANY, "id": ANY})
USUAL = st.builds(
    line, st.sampled_from(["a", "b", None, ["b"]]), st.sampled_from(["x", None]), st.sampled_from(["p.png", "no"])
)
RAW = st.binary(max_size=30) | st.sampled_from([b"", b" ", b"[1]", b"{}", b'{"label": NaN}', b'{"a":1,"a":1}'])


@settings(max_examples=300, deadline=None)
@given(
    lines=st.lists(USUAL | USUAL | USUAL | ROW | RAW, max_size=8),
    ends=st.sampled_from([b"\n", b"\r\n"]),
    choices=st.fixed_dictionaries(
        {
            "kind": st.sampled_from(["multiclass", "multilabel"]),
            "unlabelled": st.sampled_from([None, "drop", "keep", "refuse"]),
            "no_picture": st.sampled_from(["refuse", "drop", "keep"]),
            "unseen": st.sampled_from(["refuse", "drop", "ignore"]),
            "damaged": st.sampled_from(["refuse", "drop"]),
            "id": st.sampled_from([None, None, None, "id"]),
        }
    ),
)
def test_any_lines_are_records_or_counted_or_one_sentence(
    lines: list[dict[str, Any] | bytes], ends: bytes, choices: dict[str, Any]
) -> None:
    """records in = packed + counted; else a ValueError that names the folder, never another one."""
    data = ends.join(
        row if isinstance(row, bytes) else json.dumps(row).encode() for row in [line("a"), line("b"), *lines]
    )
    with tempfile.TemporaryDirectory() as home:
        where = folder(Path(home) / "f", {}, GREY)
        for part in ("train", "test"):
            (Path(where) / f"{part}.jsonl").write_bytes(data)
        expected = 2 * sum(bool(own.strip()) for own in data.split(b"\n"))
        options = {"path": where, "size": 8, **{name: value for name, value in choices.items() if value}}
        try:
            records, notes = read(create_source("image_text", options))
        except ValueError as error:
            assert where in str(error) and "\n" not in str(error)
            return
    counted: Counter[str] = Counter({name: n for name, n in notes.items() if name.startswith("records_")})
    assert len(records) == counted["records_train"] + counted["records_test"]
    assert counted.total() == expected
    assert all(np.isfinite(record.values["image"]).all() for record in records.values() if "image" in record.values)
