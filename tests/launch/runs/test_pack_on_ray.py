"""`pack` on Ray: the bytes of one process, also when workers and the driver die; what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_shards import pack
from data_shards.yaml_file import to_yaml
from tests.data_shards.build import SCHEMA, ListSource, make_record
from tests.data_shards.packing.units.killed_pack import SIZES
from tests.launch.commands import ROOT, environment, last_json, python, wait_until
from tests.launch.heads import ray_head
from tests.launch.runs.packed_by_nodes import COUNT as BY_NODES
from tests.launch.runs.packed_on_ray import COUNT

pytestmark = [pytest.mark.ray, pytest.mark.long]


@pytest.fixture(scope="module")
def head():
    with ray_head() as own:
        yield own


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def test_workers_and_the_driver_die(tmp_path):
    once = tmp_path / "once"
    pack(ListSource(SCHEMA, [make_record(i) for i in range(COUNT)]), str(once), **SIZES)
    out = tmp_path / "out"
    words = [sys.executable, "-m", "tests.launch.runs.packed_on_ray", str(out)]
    assert subprocess.run([*words, "20"], cwd=ROOT, env=environment(), timeout=300, check=False).returncode == -9
    assert {path.name for path in tmp_path.glob("out.killed-*")} == {"out.killed-35", "out.killed-63"}
    assert list(out.glob("done-*.totals")) and not (out / "manifest.json").exists()
    again = last_json(python(*words[1:], "-1", timeout=300))
    assert again["shards_before"] > 0
    assert files(out) == files(once)


def test_the_command_packs_on_a_ray_as_on_one_machine(head, tmp_path):
    options = ["synthetic", "-o", "records=1100", "-o", "modalities=series:2,vector:1", "--shard-mb", "1"]
    alone = last_json(python("-m", "launch", "pack", *options, "--out", str(tmp_path / "alone"), "--workers", "1"))
    words = ["--out", str(tmp_path / "ray"), "--address", head.address]
    many = last_json(python("-m", "launch", "pack", *options, *words, env=head.env))
    assert many["digest"] == alone["digest"] and many["shards"] == alone["shards"] > 1
    assert files(tmp_path / "ray") == files(tmp_path / "alone")


def test_a_node_dies(head, tmp_path):
    once, out = tmp_path / "once", tmp_path / "out"
    pack(ListSource(SCHEMA, [make_record(i) for i in range(BY_NODES)]), str(once), **SIZES)
    with head.joined(GUEST="1"):
        words = [sys.executable, "-m", "tests.launch.runs.packed_by_nodes", str(out), head.address]
        packing = subprocess.Popen(words, cwd=ROOT, env=head.env, stdout=subprocess.PIPE, text=True)
        wait_until(lambda: Path(f"{out}.hung").exists(), "the second node is in the middle of a unit", 240)
    # That unit, and the records that it had encoded and nobody had written, are gone with it.
    said, _ = packing.communicate(timeout=300)
    assert packing.returncode == 0
    units = [path.name.split("-")[1:] for path in tmp_path.glob("out.unit-*")]
    assert len({node for _, node in units}) == 2
    assert len(units) > len({unit for unit, _ in units}) == BY_NODES // 7, "some are read again elsewhere"
    assert json.loads(said.splitlines()[-1])["shards_before"] == 0
    assert files(out) == files(once)


def test_inside_a_submitted_job_the_command_packs_on_its_ray(head, tmp_path):
    options = ["synthetic", "-o", "records=1100", "-o", "modalities=vector:1", "--shard-mb", "1"]
    alone = last_json(python("-m", "launch", "pack", *options, "--out", str(tmp_path / "alone"), "--workers", "1"))
    words = [sys.executable, "-m", "launch", "pack", *options, "--out", str(tmp_path / "job")]
    done = head.ray("job", "submit", "--working-dir", ".", "--", *words)
    assert done.returncode == 0 and "connected to Ray at" in done.stdout + done.stderr
    assert alone["digest"] in done.stdout + done.stderr
    assert files(tmp_path / "job") == files(tmp_path / "alone")


def test_rows_of_tables_are_sorted_out_by_workers_of_ray_as_by_one_process(head, tmp_path):
    records, rng = 600, np.random.default_rng(0)
    pq.write_table(pa.table({"id": np.arange(records), "y": np.arange(records) % 2}), tmp_path / "stays.parquet")
    for number in range(4):  # pieces in random order of records: each worker has rows of all of them
        own = rng.integers(0, records, 5_000)
        columns = {
            "id": own,
            "t": rng.random(5_000) * 10,
            "what": rng.choice(["a", "b"], 5_000),
            "v": rng.random(5_000),
        }
        pq.write_table(pa.table(columns), tmp_path / f"events{number}.parquet")
    series = {
        "kind": "series",
        "file": "events*.parquet",
        "time": "t",
        "channel": "what",
        "value": "v",
        "channels": ["a", "b"],
    }
    series["horizon"] = 10
    mapping = {
        "name": "ward",
        "records": {"file": "stays.parquet", "key": "id"},
        "modalities": {"events": series},
        "tasks": {"y": {"kind": "binary", "column": "y"}},
    }
    (tmp_path / "mapping.yaml").write_text(to_yaml(mapping))
    words = ["-m", "launch", "pack", "tables", "--source", str(tmp_path / "mapping.yaml"), "--shard-mb", "1"]
    alone = last_json(python(*words, "--out", str(tmp_path / "alone"), "--workers", "1"))
    many = last_json(python(*words, "--out", str(tmp_path / "ray"), "--address", head.address, env=head.env))
    assert alone["observations"] == 20_000 and many["digest"] == alone["digest"]
    assert files(tmp_path / "ray") == files(tmp_path / "alone")
