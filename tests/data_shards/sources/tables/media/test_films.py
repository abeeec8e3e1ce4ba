"""Films of a mapping: the pictures' times in the modality's unit, within the window, in the declared shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from data_shards import create_source, open_manifest, pack
from tests.data_shards.sources.build import packed_records
from tests.data_shards.sources.readers.recordings.build import lay_film, square
from tests.data_shards.sources.tables.build import read


def mapping(**more: Any) -> dict[str, Any]:
    film = {"kind": "image", "column": "p", "frames": 0.5, "height": 48, "width": 64, "horizon": 60}
    own = {**film, "time_unit": "seconds", **more}
    said = {key: value for key, value in own.items() if value is not None}
    return {"records": {"file": "r.csv", "key": "id"}, "modalities": {"v": said}}


def pictures(record: Any) -> list[tuple[float, int]]:
    """(time, left edge of the square), in order of time."""
    found = record.values["v"]
    edges = [int(np.nonzero(picture[0] > 128)[1].min()) for picture in found.values]
    return sorted(zip(found.times_N.tolist(), edges, strict=True))


@pytest.fixture
def film(tmp_path: Path) -> Path:
    return lay_film(tmp_path / "x.mkv", [square(n) for n in range(25)], codec="libx264", form="yuv420p")


def test_times_are_those_of_the_film_in_the_modalitys_unit(film: Path) -> None:
    csv = "id,p\na,x.mkv\nb,\n"
    records, notes = read(film.parent, mapping(), r_csv=csv)
    assert pictures(records["a"]) == [(0, 0), (0.5, 10), (1, 20), (1.5, 30), (2, 40)] and notes["film_pictures"] == 5
    assert records["b"].values == {} and notes["rows_without_film"] == 1
    minutes, _ = read(film.parent, mapping(time_unit="minutes", frames=1.2), r_csv=csv)
    assert pictures(minutes["a"]) == [(0, 0), (np.float32(0.02), 24), (np.float32(0.04), 48)]
    keys, _ = read(film.parent, mapping(frames="key"), r_csv=csv)
    assert pictures(keys["a"]) == [(0, 0), (1, 20), (2, 40)]


def test_a_film_starts_when_its_row_says(film: Path) -> None:
    """As numbers, and as dates since the record's time 0; two films a record; a stretch of one."""
    files = {"f_csv": "id,p,t,from,to\na,x.mkv,10,,1\na,x.mkv,20,0.5,1.5\nb,x.mkv,1,2,\n"}
    own = mapping(file="f.csv", time="t", start="from", end="to")
    records, _ = read(film.parent, own, r_csv="id\na\nb\n", **files)
    assert pictures(records["a"]) == [(10, 0), (10.5, 10), (20, 10), (20.5, 20)]
    assert pictures(records["b"]) == [(1, 40)]
    dates = "id,p,t\na,x.mkv,2020-01-01 00:00:30\n"
    own = mapping(file="g.csv", time="t", origin="adm", frames=1)
    records, _ = read(film.parent, own, r_csv="id,adm\na,2020-01-01 00:00:10\n", g_csv=dates)
    assert pictures(records["a"]) == [(20, 0), (21, 20), (22, 40)]


def test_what_lies_outside_the_window_is_refused_or_counted(film: Path) -> None:
    csv = {"r_csv": "id,p,t\na,x.mkv,-1\nb,x.mkv,0\n"}
    with pytest.raises(ValueError, match=r"record 'a': film .*x\.mkv: its picture at -1 seconds is outside 0 to 1\.2;"):
        read(film.parent, mapping(time="t", horizon=1.2), **csv)
    records, notes = read(film.parent, mapping(time="t", horizon=1.2, outside="skip"), **csv)
    assert pictures(records["a"]) == [(0, 20), (0.5, 30), (1, 40)]
    assert pictures(records["b"]) == [(0, 0), (0.5, 10), (1, 20)]
    assert notes == {
        "film_pictures": 6, "film_pictures_before_time_0": 2, "films_that_go_on_after_the_window": 1,
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"record 'b': film .*: its picture at 1\.5 seconds is outside 0 to 1\.2;"):
        read(film.parent, mapping(time="t", horizon=1.2), r_csv="id,p,t\nb,x.mkv,0\n")


def test_pictures_have_the_declared_shape_or_are_refused(film: Path) -> None:
    csv = "id,p\na,x.mkv\n"
    with pytest.raises(ValueError, match=r"record 'a': film .*x\.mkv is 64 x 48 pixels, not 32 x 24; set resize: true"):
        read(film.parent, mapping(height=24, width=32), r_csv=csv)
    records, _ = read(film.parent, mapping(height=24, width=32, resize=True, channels=1), r_csv=csv)
    assert records["a"].values["v"].values[2].shape == (1, 24, 32)  # type: ignore[union-attr]
    assert pictures(records["a"])[2] == (1, 10)
    colour = lay_film(film.parent / "red.mkv", [square(3, colour=(255, 0, 0))])
    records, _ = read(film.parent, mapping(), r_csv=f"id,p\na,{colour.name}\n")
    assert records["a"].values["v"].values[0][:, 20, 10].tolist() == [255, 0, 0]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"horizon": None}, "modalities.v: a film's pictures need horizon, the length of the observation window"),
        ({"time_unit": "frames"}, "modalities.v: time_unit 'frames' of a film must be one of"),
        ({"frames": None, "time_unit": None, "horizon": None, "start": "s"}, "modalities.v: start and end are for"),
        ({"frames": 0}, r"modalities\.v\.frames"),
    ],
)  # fmt: skip
def test_a_mapping_of_films_that_does_not_fit(film: Path, more: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read(film.parent, mapping(**more), r_csv="id,p,s\na,x.mkv,1\n")


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ("none.mkv,,", r"record 'a': film .*none\.mkv: it cannot be read: No such file"),
        ("r.csv,,", r"record 'a': film .*r\.csv: it is no film that is read \(\.mp4, "),
        ("x.mkv,2,1", r"record 'a': film .*x\.mkv: a stretch from second 2 to 1 is none"),
        ("x.mkv,-1,1", r"record 'a': film .*x\.mkv: a stretch from second -1 to 1 is none"),
        ("x.mkv,1,3", r"record 'a': film .*x\.mkv: the stretch to second 3 goes on after its end, which is 2\.5"),
    ],
)
def test_a_film_that_cannot_be_read_is_a_sentence(film: Path, cells: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read(film.parent, mapping(start="s", end="e"), r_csv=f"id,p,s,e\na,{cells}\n")


def test_packed_films_are_timed_pictures(film: Path) -> None:
    (film.parent / "r.csv").write_text("id,p\na,x.mkv\n")
    own = mapping(max_objects=2, channels=1)
    own["split"] = {"shares": {"train": 1.0}}
    (film.parent / "m.yaml").write_text(yaml.safe_dump({"name": "films", **own}))
    pack(create_source("tables", {"path": str(film.parent / "m.yaml")}), str(film.parent / "out"), workers=1)
    spec = open_manifest(str(film.parent / "out")).schema.modalities[0]
    assert (spec.timed, spec.time_unit, spec.horizon, spec.shape, spec.dtype) == (
        True,
        "seconds",
        60,
        (1, 48, 64),
        "uint8",
    )
    (record,) = packed_records(film.parent / "out").values()
    assert pictures(record) == [(1.5, 30), (2, 40)], "the newest two"
