"""easy-VQA from its archive and its folder."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from data_shards import create_source
from tests.data_shards.sources.image_text.folders import read
from tests.trainer.vqa import archive


def test_easy_vqa_is_read_from_its_archive(tmp_path: Path) -> None:
    archive(tmp_path / "source", pictures=12)
    source = create_source("easy_vqa", {"path": str(tmp_path / "source"), "size": 16, "val": 0.3})
    records, notes = read(source)
    assert len(records) == 36 + 18 and notes["questions_test"] == 18 and notes["questions_val"] > 0
    homes: dict[str, set[str]] = {}
    for record in records.values():
        homes.setdefault(str(record.group), set()).add(record.splits["default"])
    assert all(len(parts) == 1 for parts in homes.values()), "questions about one picture are in one part"
    record = records["train-00000"]
    assert record.values["question"] == "what color is the shape?"
    colour = source.schema.task("colour").classes[int(record.targets["colour"])]  # type: ignore[arg-type]
    assert source.schema.task("answer").classes[int(record.targets["answer"])] == colour  # type: ignore[arg-type]
    words = source.schema.task("words").classes
    assert {word for word, said in zip(words, record.targets["words"], strict=True) if said} == {  # type: ignore[arg-type]
        "what",
        "color",
        "is",
        "the",
        "shape",
    }
    with tarfile.open(tmp_path / "source" / "easy_vqa_data.tar.gz") as whole:
        whole.extractall(
            tmp_path / "unpacked", filter="data", members=[m for m in whole.getmembers() if m.name[0] == "d"]
        )
    again, _ = read(create_source("easy_vqa", {"path": str(tmp_path / "unpacked"), "size": 16, "val": 0.3}))
    assert again.keys() == records.keys()
    assert np.array_equal(again["train-00000"].values["image"], record.values["image"])  # type: ignore[arg-type]


def test_easy_vqa_that_is_not_there_or_cut_short(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds neither easy_vqa_data.tar.gz nor"):
        create_source("easy_vqa", {"path": str(tmp_path)})
    path = archive(tmp_path / "source", pictures=4)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(ValueError, match=r"is not a readable .tar.gz archive|has no data/"):
        create_source("easy_vqa", {"path": str(path)})


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (
            '[null, "red", 1]',
            r"questions.json: number 0 is \[None, 'red', 1\], not \[question, answer, picture's number\]",
        ),
        ('["what?", null, 1]', r"number 0 is \['what\?', None, 1\], not"),
        ('["what?", "red", 1.5]', r"number 0 is \['what\?', 'red', 1.5\], not"),
        ('["what?", "red"', r"data/train/questions.json is not JSON: Expecting"),
    ],
)
def test_questions_of_other_types_are_refused(tmp_path: Path, row: str, sentence: str) -> None:
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "questions.json").write_text(f"[{row}]" if part == "train" else json.dumps([]))
    (tmp_path / "answers.txt").write_text("red\n")
    with pytest.raises(ValueError, match=sentence):
        create_source("easy_vqa", {"path": str(tmp_path)})
