"""What is under way at a time is bounded, however slow shards are written and however many units there are."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from data_shards import pack
from data_shards.crew import Team, Ticket, Works
from data_shards.packing.units.line import WRITE, Progress
from launch.datasets.pack_progress import words
from tests.data_shards.build import SCHEMA, ListSource, make_record
from tests.data_shards.packing.units.killed_pack import SIZES


class Slow:
    """A crew whose workers begin only when they are waited for; counts buffers that are kept, and shards under way."""

    def __init__(self, size: int) -> None:
        self.size, self.kept, self.writing, self.most = size, 0, 0, {"kept": 0, "writing": 0}
        self.apart = False

    @contextlib.contextmanager
    def team(self, works: Works) -> Iterator[Team]:
        self.works = works
        yield self

    def ask(self, work: str, item: Any, kept: Sequence[Any] = (), keep: bool = False) -> Ticket:
        self.kept += keep
        self.writing += work == WRITE
        self.most = {name: max(most, getattr(self, name)) for name, most in self.most.items()}
        return _Waiting(self, work, item, kept, keep)


class _Waiting:
    def __init__(self, crew: Slow, work: str, item: Any, kept: Sequence[_Buffer], keep: bool) -> None:
        self.crew, self.work, self.item, self.kept, self.keep = crew, work, item, kept, keep

    def done(self) -> bool:
        return False

    def get(self) -> Any:
        found = self.crew.works[self.work](self.item, [own.data for own in self.kept])
        self.crew.writing -= self.work == WRITE
        return (found[0], _Buffer(self.crew, found[1])) if self.keep else found


class _Buffer:
    def __init__(self, crew: Slow, data: bytes) -> None:
        self.crew, self.data = crew, data

    def free(self) -> None:
        assert self.data, "freed once"
        self.crew.kept, self.data = self.crew.kept - 1, b""


def packed(folder: Path, records: int, size: int) -> tuple[Slow, list[Progress], dict[str, Any]]:
    crew, heard = Slow(size), list[Progress]()
    source = ListSource(SCHEMA, [make_record(i) for i in range(records)])
    report = pack(source, str(folder), crew=crew, told=heard.append, **SIZES)
    return crew, heard, report


@pytest.mark.parametrize("size", [1, 3])
def test_units_and_shards_under_way(tmp_path: Path, size: int) -> None:
    few, _, _ = packed(tmp_path / "few", 210, size)
    many, heard, report = packed(tmp_path / "many", 840, size)
    # A shard has records of up to three units: those that are encoded ahead, of shards that wait, and of the open one.
    assert few.most["writing"] <= size + 2 and few.most["kept"] <= (2 * size - 1) + 3 * (size + 2)
    assert many.most == few.most or many.most["kept"] <= few.most["kept"] + 2
    pack(ListSource(SCHEMA, [make_record(i) for i in range(840)]), str(tmp_path / "plain"), **SIZES)
    names = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("many", "plain")]
    assert names[0] == names[1] and many.writing == 0
    assert [own.units for own in heard] == [*range(1, 121), 120] and {own.all_units for own in heard} == {120}
    assert all(one.records <= other.records and one.bytes <= other.bytes for one, other in itertools.pairwise(heard))
    assert (heard[-1].records, heard[-1].bytes) == (840, report["bytes"])


def test_progress_says_how_long_it_will_take() -> None:
    now = Progress(records=1200, bytes=31_500_000, units=40, all_units=100, before=10, seconds=15.0)
    assert now.seconds_left == 30.0
    assert words(now) == "1,200 records, 31.5 MB, 40% of the source, about 30 s left"
    begun = Progress(records=900, bytes=20_000_000, units=10, all_units=100, before=10, seconds=0.1)
    assert words(begun) == "900 records, 20.0 MB, 10% of the source"
