"""The source `tables`: every kind of column, any order of rows, sentences for what is wrong."""

from __future__ import annotations

import gzip
import json
import signal
import struct
import subprocess
import sys
import warnings
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import yaml
from PIL import Image

from benchmarks.tables import compare
from data_shards import PathError, Record, Series, create_source, open_manifest, pack
from data_shards.records.check import validate
from data_shards.sources.tables import source as tables
from tests.data_shards.sources.test_sources import OUTCOMES, lay_out

MAPPING: dict[str, Any] = {
    "name": "ward",
    "records": {"file": "stays.csv", "key": "stay", "group": "patient"},
    "split": {"columns": {"default": "part", "other": "part2"}, "rename": {"valid": "val"}},
    "modalities": {
        "vitals": {
            **{"kind": "series", "file": "events.csv.gz", "time": "when", "origin": "admitted", "horizon": 48},
            **{"channel": "what", "value": "value", "channels": ["HR", "SpO2"], "outside": "skip"},
        },
        "labs": {
            **{"kind": "series", "file": "events.csv.gz", "time": "when", "origin": "admitted", "horizon": 48},
            **{"channel": "what", "value": "value", "channels": ["K"], "outside": "skip"},
        },
        "motion": {
            **{"kind": "series", "file": "motion.parquet", "time": "t", "time_unit": "s", "horizon": 1},
            **{"columns": ["x", "y"]},
        },
        "static": {"kind": "vector", "columns": ["age", "height"], "empty": "known"},
        "embedding": {"kind": "vector", "file": "notes.parquet", "column": "embedding", "size": 3},
        "note": {"kind": "text", "file": "notes.parquet", "column": "text", "unknown_keys": "skip"},
        "photo": {"kind": "image", "column": "photo", "folder": "pictures", "channels": 1, "height": 2, "width": 3},
        "ecg": {"kind": "waveform", "column": "ecg", "leads": ["I", "II"], "rate": 250, "max_length": 10},
    },
    "tasks": {
        "death": {"kind": "binary", "column": "died"},
        "ward": {"kind": "multiclass", "column": "ward", "classes": ["north", "south"]},
        "codes": {"kind": "multilabel", "columns": ["p", "q"], "file": "codes.parquet"},
        "stay": {"kind": "regression", "column": "days", "unit": "days"},
    },
}
STAYS = """stay,patient,part,part2,admitted,age,height,photo,ecg,died,ward,days
s1,p1,train,,2020-01-01 00:00:00,54,,one.png,one.npy,1,south,2.5
s2,p1,train,test,2020-02-01 12:00:00,55,170,,,0,north,
s3,p2,valid,train,2020-03-01 00:00:00,,,,,,,1
"""
EVENTS = """stay,when,what,value
s2,2020-02-01 13:30:00,HR,80
s1,2020-01-01 06:00:00,K,4.1
s2,2020-02-01 12:30:00,HR,
s1,2020-01-01 01:00:00,HR,70
s2,2020-02-01 13:00:00,SpO2,98
s1,2020-01-05 00:00:00,HR,99
"""


def lay_tables(folder: Path, mapping: dict[str, Any] = MAPPING, **files: str) -> str:
    """The files of MAPPING, some of them with another text; returns the mapping file."""
    (folder / "stays.csv").write_text(files.get("stays", STAYS))
    with gzip.open(folder / "events.csv.gz", "wt") as stream:
        stream.write(files.get("events", EVENTS))
    motion = {"stay": ["s3", "s1", "s3"], "t": [0.5, 0.0, 0.25], "x": [1.0, None, 3.0], "y": [None, 2.0, 4.0]}
    pa.parquet.write_table(pa.table(motion), folder / "motion.parquet")
    notes = {"stay": ["s2", "sx"], "text": ["first, \n second", "of nobody"], "embedding": [[1.0, 2.0, 3.0], None]}
    pa.parquet.write_table(pa.table(notes), folder / "notes.parquet")
    codes = {"stay": ["s1", "s3"], "p": [1, 0], "q": [None, 1]}
    pa.parquet.write_table(pa.table(codes), folder / "codes.parquet")
    (folder / "pictures").mkdir(exist_ok=True)
    Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3)).save(folder / "pictures" / "one.png")
    np.save(folder / "one.npy", np.ones((4, 2), np.float64))
    path = folder / "mapping.yaml"
    path.write_text(yaml.safe_dump(mapping))
    return str(path)


def read(path: str) -> tuple[dict[str, Record], Counter[str]]:
    source, notes = create_source("tables", {"path": path}), Counter[str]()
    records = {record.key: record for unit in source.units() for record in source.read(unit, notes)}
    for record in records.values():
        validate(source.schema, record)
    return records, notes


def events(value: object) -> list[tuple[float, int, float]]:
    assert isinstance(value, Series)
    columns = (value.times_O, value.channels_O, value.values_O)
    return sorted((float(t), int(c), float(v)) for t, c, v in zip(*columns, strict=True))


def test_every_kind_of_column_becomes_what_it_should(tmp_path: Path) -> None:
    records, notes = read(lay_tables(tmp_path))
    one, two, three = (records[key] for key in ("s1", "s2", "s3"))
    assert one.values.keys() == {"vitals", "labs", "motion", "static", "photo", "ecg"}
    assert two.values.keys() == {"vitals", "static", "embedding", "note"}
    assert three.values.keys() == {"motion", "static"}
    assert events(one.values["vitals"]) == [(1.0, 0, 70.0)]  # the one after four days is outside the window
    assert events(one.values["labs"]) == [(6.0, 0, pytest.approx(4.1))]
    assert events(two.values["vitals"]) == [(1.0, 1, 98.0), (1.5, 0, 80.0)]
    assert events(three.values["motion"]) == [(0.25, 0, 3.0), (0.25, 1, 4.0), (0.5, 0, 1.0)]
    assert np.asarray(one.values["static"]).tolist() == [54, 0, 1, 0]
    assert np.asarray(three.values["static"]).tolist() == [0, 0, 0, 0]
    assert np.asarray(two.values["embedding"]).tolist() == [1, 2, 3]
    assert two.values["note"] == "first, \n second"
    assert np.asarray(one.values["photo"]).tolist() == [[[0, 1, 2], [3, 4, 5]]]
    assert np.asarray(one.values["ecg"]).shape == (4, 2)
    assert (one.targets["death"], two.targets["death"], three.targets["death"]) == (1.0, 0.0, None)
    assert (one.targets["ward"], two.targets["ward"]) == (1.0, 0.0)
    assert np.isnan(np.asarray(one.targets["codes"])).tolist() == [False, True]
    assert two.targets["codes"] is None and np.isnan(float(two.targets["stay"]))  # type: ignore[arg-type]
    assert (one.group, two.group, three.group) == ("p1", "p1", "p2")
    assert (one.splits, three.splits) == ({"default": "train"}, {"default": "val", "other": "train"})
    assert {name: count for name, count in notes.items() if count} == {
        "observations": 8, "empty_values": 1, "observations_outside_window": 1, "rows_of_unknown_records": 1,
        "records_without_part.other": 1,
    }  # fmt: skip


def test_pieces_processes_and_row_order_do_not_change_the_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two records a unit and four rows a buffer, in a process of its own, against everything at once."""
    path = lay_tables(tmp_path)
    whole = pack(create_source("tables", {"path": path}), str(tmp_path / "whole"))
    monkeypatch.setattr("data_shards.sources.readers.spill.BUFFER_ROWS", 2)
    monkeypatch.setattr(tables, "UNIT_RECORDS", 2)
    records, _ = read(path)
    pack(create_source("tables", {"path": path, "scratch": str(tmp_path)}), str(tmp_path / "pieces"))
    one, two = (open_manifest(str(tmp_path / name)) for name in ("whole", "pieces"))
    assert [shard.sha256 for shard in one.shards] == [shard.sha256 for shard in two.shards]
    assert whole["records"] == len(records) == 3
    monkeypatch.undo()
    pack(create_source("tables", {"path": path}), str(tmp_path / "processes"), workers=2)
    three = open_manifest(str(tmp_path / "processes"))
    assert [shard.sha256 for shard in one.shards] == [shard.sha256 for shard in three.shards]
    assert not list(tmp_path.glob("fleximoe-tables-*")), "temporary files are removed"


def test_groups_stay_together_in_shares_and_in_a_file_by_group(tmp_path: Path) -> None:
    (tmp_path / "stays.csv").write_text("stay,patient,x\n" + "".join(f"s{n},p{n // 4},1\n" for n in range(400)))
    (tmp_path / "parts.csv").write_text(
        "patient,part\n" + "".join(f"p{n},{'a' if n % 2 else 'b'}\n" for n in range(100))
    )
    plain = {"x": {"kind": "vector", "columns": ["x"]}}
    base = {"name": "n", "records": MAPPING["records"], "modalities": plain}
    path = tmp_path / "mapping.yaml"
    path.write_text(yaml.safe_dump({**base, "split": {"shares": {"train": 0.5, "test": 0.5}}}))
    records, _ = read(str(path))
    parts = {(record.group, record.splits["default"]) for record in records.values()}
    assert len(parts) == 100 and {part for _, part in parts} == {"train", "test"}
    by_group = {"file": "parts.csv", "key": "patient", "by": "group", "columns": {"default": "part"}}
    path.write_text(yaml.safe_dump({**base, "split": by_group}))
    records, _ = read(str(path))
    assert all(r.splits["default"] == ("a" if int(str(r.group)[1:]) % 2 else "b") for r in records.values())


def changed(**changes: Any) -> dict[str, Any]:
    """MAPPING with some entries set by their dotted place; None removes."""
    tree: dict[str, Any] = json.loads(json.dumps(MAPPING))
    for place, value in changes.items():
        *sections, last = place.split("__")
        inner = tree
        for section in sections:
            inner = inner[section]
        inner[last] = value
    return tree


@pytest.mark.parametrize(
    ("changes", "files", "sentence"),
    [
        ({"modalities__note__kind": "txt"}, {}, "modalities.note: .*'txt'"),
        ({"modalities__note__colum": "text"}, {}, "modalities.note.colum: there is no such entry"),
        ({"modalities__motion__channels": ["x"]}, {}, "modalities.motion: a series has either"),
        ({"split": {"shares": {"train": 0.5}}}, {}, "split: shares add up to 0.5"),
        ({"records__file": "nowhere.csv"}, {}, "nowhere.csv does not exist"),
        ({"records__need_any": ["vital"]}, {}, "need_any names vital"),
        ({"modalities__note__column": "texts"}, {}, "no column 'texts'; it has 'stay', 'text', 'emb.*'"),
        ({"modalities__static__columns": ["age", "weight"]}, {}, "has no column 'weight'; it has .*with separator ','"),
        ({"modalities__static__columns": ["age", "ward"]}, {}, "column 'ward' of .* used as number and as text"),
        ({"modalities__static__empty": "error"}, {}, "column 'height' is empty for record 's1'"),
        ({"modalities__note__unknown_keys": "error"}, {}, "1 rows belong to records .* 'sx'; set unknown_keys"),
        ({"modalities__labs__channels": ["Na"]}, {}, "'what' that no modality lists, e.g. 'K'"),
        ({"modalities__vitals__outside": "error"}, {}, "outside 0 to 48 hours, the first at 96"),
        ({"modalities__photo__width": 4}, {}, "3 x 2 pixels, not 4 x 2; set resize: true"),
        ({"modalities__embedding__size": 4}, {}, "a list of 3 numbers for record .s2., not of 4"),
        ({"tasks__ward__classes": ["north", "east"]}, {}, "'south' .* record 's1', is none of north, east"),
        ({}, {"stays": STAYS.replace("s2,", "s1,")}, "'s1' occurs 2 times"),
        ({}, {"stays": STAYS.replace("s2,", ",")}, "1 rows have no 'stay'"),
        ({}, {"stays": STAYS.replace("55,170", "55,tall")}, "stays.csv, row 2: column 'height': 'tall' is no number"),
        ({}, {"stays": STAYS.splitlines()[0] + "\n"}, "holds no row"),
        ({}, {"events": EVENTS.replace(",70", ",fast")}, "'fast' in column 'value', record 's1', is no number"),
        ({}, {"events": EVENTS.replace("2020-01-01 01:00:00", "")}, "have no 'when'"),
        ({}, {"events": EVENTS.replace("s1,", "x1,").replace("s2,", "x2,")}, "belong to records .* 'x2'"),
        ({}, {"stays": STAYS.replace("one.png", "two.png")}, "two.png cannot be read"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_a_sentence(
    tmp_path: Path, changes: dict[str, Any], files: dict[str, str], sentence: str
) -> None:
    path = lay_tables(tmp_path, changed(**changes), **files)
    with pytest.raises(ValueError, match=sentence):
        pack(create_source("tables", {"path": path}), str(tmp_path / "out"))
    assert not (tmp_path / "out" / "manifest.json").exists()


MEASURE = """
import json, sys
from collections import Counter
import pyarrow as pa
from data_shards import create_source
from data_shards.sources.readers import csv_files, spill
csv_files.BLOCK_BYTES, spill.BUFFER_ROWS, spill.PART_BYTES = 1 << 18, 20_000, 4 << 20
source, notes = create_source("tables", {"path": sys.argv[1]}), Counter()
records = sum(1 for unit in source.units() for record in source.read(unit, notes))
print(json.dumps([records, notes["observations"], pa.default_memory_pool().max_memory()]))
"""


def test_memory_does_not_grow_with_the_table(tmp_path: Path) -> None:
    """Tables in random order, one three times the other, read in pieces of a quarter of a MB."""
    most = {}
    for rows in (300_000, 1_000_000):
        rng = np.random.default_rng(0)
        stays, times = rng.integers(0, 5_000, rows).tolist(), rng.uniform(0, 10, rows).tolist()
        (tmp_path / "stays.csv").write_text("stay\n" + "".join(f"s{n}\n" for n in range(5_000)))
        lines = [f"s{stay},{time:.14f},k,1.5\n" for stay, time in zip(stays, times, strict=True)]
        (tmp_path / "events.csv").write_text("stay,t,what,v\n" + "".join(lines))
        labs = {
            "kind": "series",
            "file": "events.csv",
            "time": "t",
            "horizon": 10,
            "channel": "what",
            "value": "v",
            "channels": ["k"],
        }
        tree = {"name": "n", "records": {"file": "stays.csv", "key": "stay"}, "modalities": {"labs": labs}}
        (tmp_path / "mapping.yaml").write_text(yaml.safe_dump(tree))
        command = [sys.executable, "-c", MEASURE, str(tmp_path / "mapping.yaml")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        records, observations, most[rows] = json.loads(done.stdout)
        assert (records, observations) == (5_000, rows)
    assert (tmp_path / "events.csv").stat().st_size > 25e6
    assert most[1_000_000] < 1.5 * most[300_000]


def test_a_waveform_file_with_objects_is_never_unpickled(tmp_path: Path) -> None:
    path = lay_tables(tmp_path)
    np.save(tmp_path / "one.npy", np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"one\.npy: it holds objects, not numbers; save one array"):
        read(path)


@pytest.mark.parametrize("side", [9_000, 60_000])
def test_an_absurdly_large_picture_is_refused_before_it_is_decoded(tmp_path: Path, side: int) -> None:
    """A PNG whose header claims so many pixels; Pillow has a limit of its own, above the one here."""
    path = lay_tables(tmp_path)
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    (tmp_path / "pictures" / "one.png").write_bytes(png)
    with pytest.raises(ValueError, match=r"one\.png"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read(path)


def test_physionet_through_tables_is_the_same_data_set(tmp_path: Path) -> None:
    """The official layout in small; the real data are compared by the slow test and by `benchmarks.tables`."""
    folder = tmp_path / "files"
    folder.mkdir()
    lay_out(folder, archive=True)
    groups = json.dumps({"modalities": _groups()})
    (folder / "modalities.json").write_text(groups)
    rows = [f"{record},train,test" for record in OUTCOMES]
    (folder / "raindrop_splits.csv").write_text("\n".join(["RecordID,split1,split2", *rows]) + "\n")
    result = compare(folder, tmp_path, "ab")
    assert (result["records"], result["equal"], result["only_in_one"]) == (3, 3, 0)
    assert result["same_shards"] and result["same_splits"] and result["observations"] == 10


def _groups() -> dict[str, tuple[str, ...]]:
    from data_shards.sources.physionet2012 import GROUPS

    return GROUPS


@pytest.mark.long
def test_the_real_physionet_through_tables_is_the_same_data_set(tmp_path: Path) -> None:
    folder = Path(__file__).parents[4] / "shared" / "data" / "physionet2012"
    if not folder.is_dir():
        pytest.skip(f"the PhysioNet 2012 data are not at {folder}")
    result = compare(folder, tmp_path, "a")  # a third of them; `python -m benchmarks.tables DIR` compares all
    assert (result["records"], result["equal"], result["only_in_one"]) == (3_997, 3_997, 0)
    assert result["same_shards"] and result["same_statistics"] and result["same_splits"]


def test_places_in_a_mapping_start_from_its_folder_and_follow_the_one_rule(tmp_path, monkeypatch):
    """The mapping is called by way of ~, and names files of its own folder, of home and of elsewhere."""
    home, elsewhere = tmp_path / "home", tmp_path / "site #1"
    (home / "maps" / "~").mkdir(parents=True)
    (elsewhere / "pictures").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    (home / "maps" / "~" / "stays.csv").write_text("stay,photo\na,one.png\nb,\n")
    (home / "ages.csv").write_text("stay,age\na,50\nb,60\n")
    for number, stay in enumerate("ab"):
        (elsewhere / f"notes{number}.csv").write_text(f"stay,text\n{stay},note {stay}\n")
    (elsewhere / "parts.csv").write_text("stay,part\na,train\nb,test\n")
    Image.fromarray(np.full((2, 2), 7, np.uint8)).save(elsewhere / "pictures" / "one.png")
    mapping = {
        "name": "places",
        "records": {"file": "./~/stays.csv", "key": "stay"},
        "split": {"file": f"file://{elsewhere}/parts.csv", "key": "stay", "columns": {"default": "part"}},
        "modalities": {
            "age": {"kind": "vector", "file": "~/ages.csv", "columns": ["age"]},
            "note": {"kind": "text", "file": f"file://localhost{elsewhere}/notes*.csv", "column": "text"},
            "photo": {
                "kind": "image",
                "column": "photo",
                "folder": f"file://{elsewhere}/pictures",
                "height": 2,
                "width": 2,
            }
            | {"channels": 1},
        },
    }
    (home / "maps" / "mapping.yaml").write_text(yaml.safe_dump(mapping))
    source = create_source("tables", {"path": "~/maps/mapping.yaml", "scratch": "~"})
    records = {record.key: record for record in source.records()}
    assert [records[key].values["age"].tolist() for key in "ab"] == [[50.0], [60.0]]
    assert [records[key].values["note"] for key in "ab"] == ["note a", "note b"]
    assert records["a"].values["photo"].tolist() == [[[7, 7], [7, 7]]] and "photo" not in records["b"].values
    assert [records[key].splits for key in "ab"] == [{"default": "train"}, {"default": "test"}]
    report = source.report(Counter())
    assert report["options"] == {"path": "~/maps/mapping.yaml", "mapping": None, "scratch": "~"}, "as typed"
    assert Path(source._temporary.name).parent == home
    (home / "maps" / "mapping.yaml").write_text(yaml.safe_dump(mapping | {"records": {"file": "s3://b/x", "key": "k"}}))
    with pytest.raises(PathError, match="'s3://b/x' is a URL"):
        create_source("tables", {"path": "~/maps/mapping.yaml"})


KILLED = """
import os, signal, sys
from data_shards import create_source
source = create_source("tables", {"path": sys.argv[1], "scratch": sys.argv[2]})
source.units()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_rows_that_a_killed_pack_had_sorted_out_are_removed_by_the_next_one(tmp_path: Path) -> None:
    path, scratch = lay_tables(tmp_path), tmp_path / "scratch"
    scratch.mkdir()
    ended = subprocess.run([sys.executable, "-c", KILLED, path, str(scratch)], check=False)
    (left,) = scratch.iterdir()
    assert ended.returncode == -signal.SIGKILL and any(own.suffix == ".arrow" for own in left.iterdir())
    report = pack(create_source("tables", {"path": path, "scratch": str(scratch)}), str(tmp_path / "after"))
    assert not list(scratch.iterdir())
    # As one that nothing had happened to
    alone = pack(create_source("tables", {"path": path}), str(tmp_path / "alone"))
    one, two = (open_manifest(own["url"]) for own in (report, alone))
    assert [shard.sha256 for shard in one.shards] == [shard.sha256 for shard in two.shards]
