"""Is a data set that comes through tables and a mapping file the same as through its own source?

    python -m benchmarks.tables DIR [--sets a b c]

DIR holds the official files of PhysioNet 2012 (and raindrop_splits.csv). They are turned into a long-form CSV of
observations, a table of stays and a mapping file, by a reading of the official files of its own; both ways are packed
and compared record by record, byte by byte. Prints the seconds of either way. The last line is one JSON object; equal
bytes in equal order give equal training, so nothing is trained.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import io
import json
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from data_shards import create_source, open_manifest, pack
from data_shards.paths import absolute_path
from data_shards.shards.manifest import Manifest
from data_shards.shards.tar import members

ONCE = ("RecordID", "Age", "Gender", "Height", "ICUType", "Weight")
WARDS = ("icu_coronary", "icu_cardiac_surgery", "icu_medical", "icu_surgical")
KNOWN = ("age_known", "gender_known", "height_known", "icu_known", "weight_known")
STATIC = ("age", "gender", "height", *WARDS, "weight", *KNOWN)


def stays(folder: Path, name: str) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """(record, (HH:MM, parameter, value) lines) of one set, by record number."""
    texts: dict[str, str] = {}
    plain = folder / f"set-{name}"
    if plain.is_dir():
        texts = {file.stem: file.read_text() for file in plain.glob("*.txt")}
    else:
        with tarfile.open(folder / f"set-{name}.tar.gz") as archive:
            for member in archive.getmembers():
                stream = archive.extractfile(member)
                if stream is not None and member.name.endswith(".txt"):
                    texts[Path(member.name).stem] = stream.read().decode()
    for record in sorted(texts):
        rows = list(csv.reader(io.StringIO(texts[record])))
        yield record, [(row[0], row[1], row[2]) for row in rows[1:]]


def static_cells(once: dict[str, float]) -> list[float]:
    """The 13 descriptors of a stay, 0 where unknown."""
    known = [float(once[name] >= 0) for name in ("Age", "Gender", "Height")]
    ward = [float(once["ICUType"] == number) for number in (1, 2, 3, 4)]
    cells = [max(once[name], 0.0) for name in ("Age", "Gender", "Height")] + ward + [max(once["Weight"], 0.0)]
    return [*cells, *known, float(any(ward)), float(once["Weight"] >= 0)]


def export(folder: Path, out: Path, sets: str = "abc") -> Path:
    """Write stays.csv, events.csv.gz, splits and mapping.yaml into ``out``; returns the mapping file."""
    with (
        gzip.open(out / "events.csv.gz", "wt", compresslevel=1, newline="") as stream,
        (out / "stays.csv").open("w") as table,
    ):
        events, rows = csv.writer(stream), csv.writer(table)
        events.writerow(("stay", "hours", "parameter", "value"))
        rows.writerow(("stay", *STATIC, "in_hospital_death", "los_gt_7", "length_of_stay"))
        for name in sets:
            with (folder / f"Outcomes-{name}.txt").open() as lines:
                outcomes = {row["RecordID"]: row for row in csv.DictReader(lines)}
            for record, observations in stays(folder, name):
                once: dict[str, float] = {}
                for clock, parameter, value in observations:
                    if clock == "00:00" and parameter in ONCE and parameter not in once:
                        once[parameter] = float(value)
                    elif parameter and value:
                        hours = (int(clock[:-3]) * 60 + int(clock[-2:])) / 60
                        events.writerow((record, repr(hours), parameter, value))
                days, death = int(outcomes[record]["Length_of_stay"]), int(outcomes[record]["In-hospital_death"])
                labels = ["" if death < 0 else death, *(["", ""] if days < 0 else [int(days > 7), days])]
                rows.writerow([record, *static_cells(once), *labels])
    file = out / "mapping.yaml"
    file.write_text(yaml.safe_dump(mapping(folder), sort_keys=False))
    return file


def mapping(folder: Path) -> dict[str, Any]:
    """What a user would write by hand for these tables."""
    groups = json.loads((folder / "modalities.json").read_text())["modalities"]
    splits = folder / "raindrop_splits.csv"
    header = splits.read_text().splitlines()[0].split(",")
    long: dict[str, Any] = {"kind": "series", "file": "events.csv.gz", "time": "hours", "horizon": 48.0}
    long |= {"channel": "parameter", "value": "value"}
    static = {"kind": "vector", "columns": list(STATIC), "description": "0 where unknown; *_known says which"}
    return {
        "name": "physionet2012",
        "records": {"file": "stays.csv", "key": "stay", "need_any": list(groups)},
        "split": {"file": str(splits.resolve()), "key": "RecordID", "columns": {name: name for name in header[1:]}},
        "modalities": {**{name: {**long, "channels": own} for name, own in groups.items()}, "static": static},
        "tasks": {
            "in_hospital_death": {"kind": "binary", "column": "in_hospital_death", "classes": ["survived", "died"]},
            "los_gt_7": {"kind": "binary", "column": "los_gt_7", "classes": ["at most 7 days", "more than 7 days"]},
            "length_of_stay": {"kind": "regression", "column": "length_of_stay", "unit": "days"},
        },
    }


def records(manifest: Manifest) -> dict[str, str]:
    """Key -> SHA-256 of the record's bytes, in storage order."""
    found = {}
    for shard in manifest.shards:
        end = shard.chunks[-1].offset + shard.chunks[-1].length
        data = memoryview(manifest.storage.read(shard.name, 0, end))
        for name, start, size in members(data):
            found[name] = hashlib.sha256(data[start : start + size]).hexdigest()
    return found


def compare(folder: Path, scratch: Path, sets: str = "abc") -> dict[str, Any]:
    """Pack both ways and count records that are equal, and what else differs."""
    plain = scratch / "official"
    plain.mkdir()
    for name in sets:
        for file in folder.glob(f"*-{name}*"):
            (plain / file.name).symlink_to(file.resolve())
    (plain / "modalities.json").symlink_to((folder / "modalities.json").resolve())
    own = create_source("physionet2012", {"path": str(plain), "splits": str(folder / "raindrop_splits.csv")})
    tables = create_source("tables", {"path": str(export(folder, scratch, sets)), "scratch": str(scratch)})
    reports = {name: pack(source, str(scratch / name)) for name, source in (("own", own), ("tables", tables))}
    first, second = open_manifest(str(scratch / "own")), open_manifest(str(scratch / "tables"))
    one, two = records(first), records(second)
    return {
        "records": len(one),
        "equal": sum(two.get(key) == digest for key, digest in one.items()),
        "only_in_one": len(one.keys() ^ two.keys()),
        "same_order": list(one) == list(two),
        "same_shards": [shard.sha256 for shard in first.shards] == [shard.sha256 for shard in second.shards],
        "same_statistics": first.statistics == second.statistics,
        "same_splits": first.splits == second.splits,
        "observations": first.observations,
        "seconds": {name: round(report["seconds"], 1) for name, report in reports.items()},
        "notes": reports["tables"]["source"]["notes"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=absolute_path)
    parser.add_argument("--sets", default="abc", help="which of the sets, e.g. a")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        result = compare(chosen.folder, Path(scratch), chosen.sets)
    for name, value in result.items():
        print(f"{name:16s} {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
