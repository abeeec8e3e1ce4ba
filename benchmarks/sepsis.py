"""Mapping files of one sepsis data set in three forms: as it is, with categories as codes, and cut into moments.

    python -m benchmarks.sepsis DIR OUT

DIR holds records.parquet, events.parquet and mapping.yaml: the first twelve hours of intensive-care stays, hourly, from
the PhysioNet / Computing in Cardiology Challenge 2019, with one label a stay (sepsis in a later window). Writes

- codes.yaml: gender and unit as codes instead of features of the vector;
- moments.yaml and moments.parquet: the same, and each stay seen up to hours 3, 6, 9 and 12. All that the labels allow:
  what is asked at each moment is the same, so it shows how early it can be told. Only moments up to which the stay has
  a row are made.

Nothing of the data is copied but keys, hours and labels.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet
import yaml

HOURS = (3.0, 6.0, 9.0, 12.0)
CATEGORIES, NUMBERS = ["Gender", "Unit1"], ["Age", "HospAdmTime"]


def with_codes(mapping: dict[str, Any], data: Path) -> dict[str, Any]:
    """The mapping with gender and unit as codes; its files stay where they are. Unit2 is the opposite of Unit1."""
    modalities = {name: {**own, "file": str(data / own.get("file", mapping["records"]["file"]))}
                  for name, own in mapping["modalities"].items()}  # fmt: skip
    modalities["static"]["columns"] = NUMBERS
    modalities["who"] = {"kind": "codes", "columns": CATEGORIES}
    records = {**mapping["records"], "file": str(data / mapping["records"]["file"])}
    return {**mapping, "records": records, "modalities": modalities}


def with_moments(mapping: dict[str, Any]) -> dict[str, Any]:
    """The mapping of `with_codes` with the labels of moments.parquet."""
    (name, task), *rest = mapping["tasks"].items()
    assert not rest, "the data have one task"
    timed = {**task, "file": "moments.parquet", "time": "hour"}
    return {**mapping, "name": f"{mapping['name']}_moments", "tasks": {name: timed}}


def moments(data: Path, key: str, label: str) -> pa.Table:
    """One row a stay and hour of `HOURS` up to its last row, with the stay's label."""
    records = pa.parquet.read_table(data / "records.parquet", columns=[key, label])
    events = pa.parquet.read_table(data / "events.parquet", columns=[key, "t"])
    last = events.group_by(key).aggregate([("t", "max")])
    place = pc.index_in(records[key], value_set=last[key].combine_chunks()).to_numpy()
    last_N = np.where(np.isnan(place), -np.inf, last["t_max"].to_numpy()[np.nan_to_num(place).astype(int)])
    row_K, hour_K = np.nonzero(last_N[:, None] >= np.array(HOURS)[None])
    rows = records.take(pa.array(row_K))
    return pa.table({key: rows[key], "hour": np.array(HOURS)[hour_K], label: rows[label]})


def write(data: Path, out: Path) -> dict[str, int]:
    """Write the files; returns how many moments there are, and of how many stays."""
    mapping = yaml.safe_load((data / "mapping.yaml").read_text("utf-8"))
    codes = with_codes(mapping, data)
    out.mkdir(parents=True, exist_ok=True)
    for name, tree in (("codes", codes), ("moments", with_moments(codes))):
        (out / f"{name}.yaml").write_text(yaml.safe_dump(tree, sort_keys=False), "utf-8")
    (task,) = mapping["tasks"].values()
    table = moments(data, mapping["records"]["key"], task["column"])
    pa.parquet.write_table(table, out / "moments.parquet")
    return {"moments": len(table), "stays": len(table[mapping["records"]["key"]].unique())}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with the data")
    parser.add_argument("out", type=Path, help="folder for the mapping files")
    arguments = parser.parse_args()
    print(json.dumps(write(arguments.data.resolve(), arguments.out)))


if __name__ == "__main__":
    main()
