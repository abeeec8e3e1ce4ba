"""Two packs into one place, in processes of their own: refused, followed when dead, and nothing from a late one."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_shards import pack
from data_shards.errors import LeaseHeldError
from data_shards.shards.opening import open_manifest
from launch.errors import exit_code
from tests.data_shards.build import SCHEMA, ListSource, make_record, make_set
from tests.frozen import freeze, snapshot, wake
from tests.object_store import storage

ROOT = Path(__file__).resolve().parents[3]
MINE = [make_record(i) for i in range(40)]


@pytest.fixture(params=["files", pytest.param("s3", marks=pytest.mark.long)])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with storage(request.param, tmp_path, monkeypatch) as url:
        yield f"{url}/set"


def other_pack(place: str, lease_s: float, seed: int = 9) -> subprocess.Popen[str]:
    """Another process that has written shards, and waits; with seed 0 of the same records as here."""
    words = [sys.executable, "-m", "tests.data_shards.packing.slow_pack", place, str(lease_s), str(seed)]
    process = subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "packing\n"
    return process


def my_pack(place: str, overwrite: bool = False) -> str:
    source = ListSource(SCHEMA, MINE)
    return str(pack(source, place, chunk_records=5, shard_bytes=20_000, overwrite=overwrite)["digest"])


def test_two_packs_into_one_place(place: str, tmp_path: Path) -> None:
    mine = make_set(tmp_path / "alone", 40).digest
    first = other_pack(place, lease_s=1000)
    freeze(first)
    before = snapshot(place)
    assert any(name.endswith(".tar") for name in before)
    for overwrite in (False, True):
        with pytest.raises(LeaseHeldError, match=rf"\(pid {first.pid}\).*: pack into another place") as refusal:
            my_pack(place, overwrite)
    assert exit_code(refusal.value) == 2
    assert snapshot(place) == before
    wake(first)
    out, _ = first.communicate("go on\n")
    theirs = out.split()[-1]
    assert open_manifest(place).digest == theirs != mine
    assert sum(name.endswith(".tar") for name in snapshot(place)) == len(open_manifest(place).shards)

    killed = other_pack(f"{place}2", lease_s=1000)
    killed.kill()
    killed.communicate()
    assert my_pack(f"{place}2") == open_manifest(f"{place}2").digest == mine, "at once: its lease had 1000 s to go"
    assert not any("/lease/" in name for name in snapshot(f"{place}2"))


def test_a_frozen_pack_is_followed_and_commits_nothing_when_it_wakes(place: str, tmp_path: Path) -> None:
    mine = make_set(tmp_path / "alone", 40).digest
    first = other_pack(place, lease_s=1.5, seed=0)  # its shards have the names of the other's
    freeze(first)
    deadline = time.monotonic() + 60
    while True:  # until its lease has run out
        assert time.monotonic() < deadline
        try:
            assert my_pack(place) == mine
            break
        except LeaseHeldError:
            pass
    after = snapshot(place)
    wake(first)
    out, _ = first.communicate("go on\n")
    assert out.startswith("lost: ") and "it writes nothing more there" in out
    assert snapshot(place) == after and open_manifest(place).digest == mine
