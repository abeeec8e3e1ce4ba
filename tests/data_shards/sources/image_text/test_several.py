"""Several pictures and the turns of a dialogue in one record, as objects in their order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_shards import Objects, create_source
from tests.data_shards.sources.image_text.folders import folder, png, read

COLOURS = {"red": (250, 0, 0), "green": (0, 250, 0), "blue": (0, 0, 250)}
DIALOGUE = [{"from": "human", "value": "which?"}, {"from": "gpt", "value": "both"}]
ROWS: list[dict[str, Any]] = [
    {"img": ["red.png", "green.png"], "text": DIALOGUE, "label": "a"},
    {"img": "blue.png", "text": "alone", "label": "b"},
    {"img": ["red.png", None, "green.png", "blue.png", "red.png"], "text": ["1", "", "2", "3", "4"], "label": "a"},
    {"img": ["blue.png"], "text": [{"role": "user", "content": "hm"}, {"content": "no name"}], "label": "b"},
]  # fmt: skip


def lay(path: Path, rows: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
    files = {f"{name}.png": png(colour) for name, colour in COLOURS.items()}
    return {"path": folder(path, {"train.jsonl": rows}, files), "size": 8, "several": 3, **options}


def objects(value: Any) -> tuple[list[float], list[Any]]:
    assert isinstance(value, Objects)
    return value.times_N.tolist(), list(value.values)


def colours(value: Any) -> tuple[list[float], list[str]]:
    times, pictures = objects(value)
    names = {colour: name for name, colour in COLOURS.items()}
    return times, [names[tuple(np.asarray(picture)[:, 0, 0].tolist())] for picture in pictures]


def test_pictures_and_turns_keep_their_order(tmp_path: Path) -> None:
    source = create_source("image_text", lay(tmp_path / "a", ROWS))
    assert [(m.name, m.timed, m.time_unit, m.horizon) for m in source.schema.modalities] == [
        ("image", True, "places", 3.0), ("text", True, "places", 3.0),
    ]  # fmt: skip
    records, notes = read(source)
    first, second, third, fourth = (records[f"train-000000{n}"].values for n in range(4))
    assert colours(first["image"]) == ([0, 1], ["red", "green"])
    assert objects(first["text"]) == ([0, 1], ["human: which?", "gpt: both"])
    assert colours(second["image"]) == ([0], ["blue"]) and objects(second["text"]) == ([0], ["alone"])
    assert colours(third["image"]) == ([0, 1, 2], ["green", "blue", "red"])  # the last three
    assert objects(third["text"]) == ([0, 1, 2], ["2", "3", "4"])
    assert objects(fourth["text"]) == ([0, 1], ["user: hm", "no name"])
    assert (notes["pictures_left_out"], notes["turns_left_out"]) == (1, 1)


def test_a_picture_that_is_not_there_leaves_its_place_empty(tmp_path: Path) -> None:
    rows = [*ROWS, {"img": ["red.png", "none.png", "blue.png"], "text": [], "label": "a"}]
    options = lay(tmp_path / "a", rows)
    with pytest.raises(ValueError, match=r"picture none\.png: there is no such file"):
        read(create_source("image_text", options))
    records, notes = read(create_source("image_text", {**options, "no_picture": "keep"}))
    last = records["train-0000004"].values
    assert colours(last["image"]) == ([0, 2], ["red", "blue"]) and "text" not in last
    assert (notes["picture_file_not_there"], notes["without_text"]) == (1, 1)


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        ([{"from": "human"}], "turn 1: field 'text' holds an object without content or value"),
        (["one", 2], "turn 2: field 'text' is a whole number, not a text"),
    ],
)
def test_a_turn_that_is_none_is_refused(tmp_path: Path, turns: list[Any], said: str) -> None:
    rows = [*ROWS, {"img": "red.png", "text": turns, "label": "a"}]
    with pytest.raises(ValueError, match=rf"train\.jsonl, line 5, {said}"):
        read(create_source("image_text", lay(tmp_path / "a", rows)))


def test_without_the_option_a_list_is_refused_and_masks_go_with_one_picture(tmp_path: Path) -> None:
    options = lay(tmp_path / "a", ROWS)
    with pytest.raises(ValueError, match="is a list, not a text"):
        read(create_source("image_text", {**options, "several": None}))
    with pytest.raises(ValueError, match="option several is for records without a mask"):
        create_source("image_text", {**options, "mask": "mask"})
