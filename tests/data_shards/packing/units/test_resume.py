"""A pack that was killed goes on behind what is complete: same bytes as one that was not, and nothing left over."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from data_shards import open_manifest, pack
from data_shards.errors import JobError
from data_shards.packing.units.line import Progress
from data_shards.packing.units.totals import Totals
from data_shards.shards.storage import Storage
from tests.data_shards.build import SCHEMA, ListSource, make_record
from tests.data_shards.packing.units.killed_pack import COUNT, SIZES, Counted, source

ROOT = Path(__file__).resolve().parents[4]
RECORDS = [make_record(i) for i in range(COUNT)]


class Killed(BaseException):
    """Stands for the end of a process in tests that stay in one."""


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("once") / "set"
    pack(source(), str(folder), **SIZES)
    assert len(open_manifest(str(folder)).shards) == 18
    return files(folder)


def stop_at(unit: int) -> Any:
    def told(progress: Progress) -> None:
        if progress.units == unit:
            raise Killed

    return told


def test_every_place_to_stop_at(tmp_path: Path, once: dict[str, bytes]) -> None:
    """Killed at each third unit of one pack: every attempt begins where the one before had noted to be."""
    own, reads, kept = Counted(RECORDS), list[int](), list[int]()
    for unit in range(3, 29, 3):
        with pytest.raises(Killed):
            pack(own, str(tmp_path), told=stop_at(unit), **SIZES)
        assert not (tmp_path / "manifest.json").exists()
        noted = [name for name in files(tmp_path) if name.endswith(".totals")]
        reads, own.read_here = [*reads, own.read_here], 0
        kept.append(int(noted[0].split("-")[1]) if noted else 0)
        assert len(noted) <= 1
    assert kept == sorted(kept) and kept[-1] >= 15
    # The first attempt reads 3 units of 7; later ones the 3 that are new, and what was in no complete shard.
    assert reads[0] == 21 and all(21 <= count <= 42 for count in reads[1:])
    heard = list[Progress]()
    report = pack(own, str(tmp_path), told=heard.append, **SIZES)
    assert report["shards_before"] == kept[-1] and own.read_here < 42
    assert files(tmp_path) == once
    assert heard[-1].records == COUNT and heard[-1].units == heard[-1].all_units == 29
    assert heard[-1].bytes == report["bytes"] and heard[0].before > 20


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_killed_process_leaves_what_the_next_one_goes_on_with(
    tmp_path: Path, once: dict[str, bytes], workers: int
) -> None:
    words = [sys.executable, "-m", "tests.data_shards.packing.units.killed_pack", str(tmp_path), str(workers), "20"]
    assert subprocess.run(words, cwd=ROOT, check=False).returncode == -9
    (tmp_path / ".shard-00009-0123456789ab.tar.77-0a1b2c3d.tmp").write_bytes(b"half of it")
    (tmp_path / "shard-00009-0123456789ab.tar").write_bytes(b"a shard that nothing names")
    assert not (tmp_path / "manifest.json").exists()
    report = pack(source(), str(tmp_path), workers=workers, **SIZES)
    assert report["shards_before"] >= (6 if workers == 1 else 1)
    assert files(tmp_path) == once


@pytest.mark.parametrize(
    ("damage", "said"),
    [("*.tar", "has another length"), ("*.index", "another SHA-256"), ("*.shards", "damaged"), ("*.totals", "damaged")],
)
def test_what_is_damaged_is_made_again(
    tmp_path: Path, once: dict[str, bytes], caplog: pytest.LogCaptureFixture, damage: str, said: str
) -> None:
    with pytest.raises(Killed):
        pack(source(), str(tmp_path), told=stop_at(20), **SIZES)
    path = sorted(tmp_path.glob(damage))[0]
    data = path.read_bytes()
    path.write_bytes(data[:-1] if damage == "*.tar" else bytes([*data[:-1], data[-1] ^ 1]))
    report = pack(source(), str(tmp_path), **SIZES)
    assert report["shards_before"] == 0 and files(tmp_path) == once
    assert said in caplog.text


def test_another_job_is_refused_and_removes_nothing(tmp_path: Path, once: dict[str, bytes]) -> None:
    with pytest.raises(Killed):
        pack(source(), str(tmp_path), told=stop_at(20), **SIZES)
    before = files(tmp_path)
    for own, sizes in ((ListSource(SCHEMA, RECORDS, unit=8), SIZES), (source(), SIZES | {"shard_bytes": 30_000})):
        with pytest.raises(JobError, match=r"holds the beginning of another pack, .* or start anew \(--overwrite\)"):
            pack(own, str(tmp_path), **sizes)
    assert files(tmp_path) == before
    report = pack(source(), str(tmp_path), overwrite=True, **SIZES)
    assert report["shards_before"] == 0 and files(tmp_path) == once


def test_a_storage_that_fails_keeps_what_is_noted(
    tmp_path: Path, once: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Storage.write

    def full(self: Storage, name: str, data: bytes) -> None:
        if name.startswith("shard-00007"):
            raise OSError(28, "No space left on device")
        write(self, name, data)

    with monkeypatch.context() as broken, pytest.raises(OSError, match=r"stopped, 7 shards are kept, and the same"):
        broken.setattr(Storage, "write", full)
        pack(source(), str(tmp_path), **SIZES)
    assert pack(source(), str(tmp_path), **SIZES)["shards_before"] == 7
    assert files(tmp_path) == once


def test_a_bad_record_keeps_nothing_also_of_an_earlier_attempt(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        pack(source(), str(tmp_path), told=stop_at(20), **SIZES)
    worse = Counted([*RECORDS[:-1], RECORDS[3]])
    with pytest.raises(ValueError, match=r"record key 'r00003' occurs twice \(shards 0 and 17\)"):
        pack(worse, str(tmp_path), **SIZES)
    assert list(tmp_path.iterdir()) == []


def test_totals_go_on_bit_by_bit() -> None:
    """Half of the units, stored and read, then the rest: as all of them at once."""
    from data_shards.packing.encode import UnitEncoder

    own = source()
    encode = UnitEncoder(own, SCHEMA, {})
    units = [encode(unit)[0] for unit in own.units()]
    whole, half = Totals(SCHEMA), Totals(SCHEMA)
    for number, unit in enumerate(units):
        whole.add(unit)
        half.add(unit)
        if number == 14:
            half = Totals.of_bytes(SCHEMA, half.to_bytes())
    assert half.to_bytes() == whole.to_bytes()
    assert {name: a.summary() for name, a in half.statistics.items()} == {
        name: a.summary() for name, a in whole.statistics.items()
    }
    assert whole.notes == {"read": COUNT} and next(iter(whole.columns)) == ("default", "train")
