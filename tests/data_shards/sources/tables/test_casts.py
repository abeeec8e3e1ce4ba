"""Casts that would succeed and change the meaning: times, dates, durations, large numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from data_shards import (
    DatasetSchema,
    ModalitySpec,
    Record,
    Series,
    TaskSpec,
    create_source,
    open_manifest,
    pack,
)
from data_shards.records.check import validate
from data_shards.records.precision import lost
from data_shards.sources.base import Source, SourceOptions
from tests.data_shards.sources.tables.build import AGE, events, read, rows, series

START = 1_577_836_800
UNIX = "id,t,v\n" + "".join(f"a,{START + 60 * n},{n}\n" for n in range(6))


def test_unix_seconds_are_refused_without_an_origin_and_right_with_one(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"times up to 1577837100 would move by up to 60 in float32.*steps of 1; give origin"
    ):
        read(tmp_path, series(time_unit="seconds", horizon=2.0e9), r_csv="id\na\n", e_csv=UNIX)
    dated = series(time_unit="seconds", horizon=3600, origin="start", date_unit="seconds")
    records, _ = read(tmp_path, dated, r_csv=f"id,start\na,{START - 10}\n")
    assert events(records["a"]) == [(10.0 + 60 * n, 0, float(n)) for n in range(6)]


@pytest.mark.parametrize(("unit", "scale"), [("milliseconds", 10**3), ("microseconds", 10**6), ("nanoseconds", 10**9)])
def test_finer_unix_times(tmp_path: Path, unit: str, scale: int) -> None:
    table = "id,t,v\n" + "".join(f"a,{START * scale + n * scale // 4},{n}\n" for n in range(4))
    with pytest.raises(ValueError, match=r"would move by up to"):
        read(tmp_path, series(horizon=1e19), r_csv="id\na\n", e_csv=table)
    dated = series(time_unit="seconds", origin="start", date_unit=unit)
    records, _ = read(tmp_path, dated, r_csv=f"id,start\na,{START * scale}\n", e_csv=table)
    assert events(records["a"]) == [(n / 4, 0, float(n)) for n in range(4)]


def test_times_that_are_written_finely_and_lie_far_apart_are_kept(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    times = np.sort(rng.uniform(0, 1e5, 50))
    table = "id,t,v\n" + "".join(f"a,{time!r},1\n" for time in times.tolist())
    records, notes = read(tmp_path, series(horizon=1e5), r_csv="id\na\n", e_csv=table)
    assert [time for time, _, _ in events(records["a"])] == times.astype(np.float32).tolist()
    assert notes == {"observations": 50}
    near = "id,t,v\n" + "".join(f"a,{1e7 + time / 1e6!r},1\n" for time in times.tolist())
    with pytest.raises(ValueError, match=r"times up to 1000000\d.* would move by up to .*, and lie 0\.00"):
        read(tmp_path, series(horizon=1e8), e_csv=near)
    records, notes = read(tmp_path, series(horizon=1e8, rounding="allow"))
    assert len({time for time, _, _ in events(records["a"])}) == 1 and notes["times_rounded"] == 50


@pytest.mark.parametrize(
    ("column", "right"),
    [
        ([0, 1, 2**24], [0, 1, 2**24]),
        ([2**24 + 1], None),
        ([1e9 + 1, 1e9 + 2], None),
        ([123.456789, 0.1 + 0.2], [123.456789, 0.3]),
        ([1234567.89], None),
        ([1e9 + 0.123456789 * n for n in range(20)], None),
        ([36.6 + 1e-15 * n for n in range(20)], [36.6] * 20),
        ([1e39], None),
        ([1600000031.7654321], None),
        ([1600000000.123456] * 18 + [1600000031.7654321], None),
        ([1600000000.0] * 18 + [1600000000.0], [1600000000.0] * 19),
    ],
)  # fmt: skip
def test_numbers_that_float32_cannot_tell_apart_are_refused(tmp_path: Path, column: list, right: list | None) -> None:
    table = "id,age\n" + "".join(f"k{n},{value!r}\n" for n, value in enumerate(column))
    target = {"y": {"kind": "regression", "column": "age"}}
    for mapping in (rows(), rows(modalities={"n": {"kind": "text", "column": "id"}}, tasks=target)):
        if right is None:
            with pytest.raises(ValueError, match=r"column 'age'.*(would move by up to|more than float32 can hold)"):
                read(tmp_path, mapping, r_csv=table)
            continue
        records, notes = read(tmp_path, mapping, r_csv=table)
        got = [r.targets.get("y", r.values.get("age")) for r in records.values()]
        assert [float(np.asarray(v).reshape(())) for v in got] == np.array(right, np.float32).tolist() and notes == {}


def test_rounding_can_be_accepted_and_is_counted(tmp_path: Path) -> None:
    mapping = rows(
        modalities={"age": {**AGE["age"], "rounding": "allow"}},
        tasks={"y": {"kind": "regression", "column": "age", "rounding": "allow"}},
    )
    records, notes = read(tmp_path, mapping, r_csv="id,age\na,1000000001\nb,1000000064\nc,\n")
    assert records["a"].targets["y"] == 1e9 and np.asarray(records["b"].values["age"]).tolist() == [1000000064.0]
    assert notes == {"numbers_rounded": 2}


def test_a_source_in_python_loses_no_time_either() -> None:
    spec = ModalitySpec("s", "series", channels=("v",), horizon=2e9)
    schema = DatasetSchema("d", (spec,), (TaskSpec("y", "regression"),))
    times, one = START + 60.0 * np.arange(6), np.zeros(6)
    for array, fine in ((times, False), (times - START, True), (times.astype(np.int64), False)):
        record = Record("a", {"s": Series(array, one.astype(np.int16), one)})
        if fine:
            validate(schema, record)
        else:
            with pytest.raises(ValueError, match=r"would move by up to 60 in float32.*subtract the record's time 0"):
                validate(schema, record)
    with pytest.raises(ValueError, match=r"task y: whole numbers up to 1000000001"):
        validate(schema, Record("a", {}, {"y": 1_000_000_001}))
    assert lost(np.array([np.nan, np.inf, 0.1])) is None and lost(np.array([])) is None


def write(folder: Path, name: str, **columns) -> None:
    pa.parquet.write_table(pa.table(columns), folder / name)


def dated(**more) -> dict:
    mapping = series(origin="adm", horizon=48, file="e.parquet", **more)
    mapping["records"]["file"] = "r.parquet"
    return mapping


def test_integers_are_no_dates_until_their_unit_is_said(tmp_path: Path) -> None:
    write(tmp_path, "r.parquet", id=["a"], adm=pa.array([START]))
    write(tmp_path, "e.parquet", id=["a"], t=pa.array([START + 5 * 3600]), v=[1.0])
    with pytest.raises(ValueError, match=r"column '(adm|t)' holds int64, which is no date.*date_unit: .*seconds"):
        read(tmp_path, dated())
    records, _ = read(tmp_path, dated(date_unit="seconds"))
    assert events(records["a"]) == [(5.0, 0, 1.0)]
    write(tmp_path, "r.parquet", id=["a"], adm=pa.array([float(START) + 0.5]))
    write(tmp_path, "e.parquet", id=["a"], t=pa.array([float(START) + 1800.5]), v=[1.0])
    records, _ = read(tmp_path, dated(date_unit="seconds"))
    assert events(records["a"]) == [(0.5, 0, 1.0)]
    write(tmp_path, "r.parquet", id=["a"], adm=pa.array([18262], pa.int32()))
    write(tmp_path, "e.parquet", id=["a"], t=pa.array([18263], pa.int32()), v=[1.0])
    records, _ = read(tmp_path, dated(date_unit="days"))
    assert events(records["a"]) == [(24.0, 0, 1.0)]
    write(tmp_path, "e.parquet", id=["a"], t=pa.array([datetime(2020, 1, 1)]), v=[1.0])
    with pytest.raises(ValueError, match=r"column 't' holds dates .*date_unit is for numbers"):
        read(tmp_path, dated(date_unit="days"))


def test_a_zone_and_no_zone_never_meet(tmp_path: Path) -> None:
    """Berlin, an hour before and after the clocks change: with a zone two hours apart, without one three."""
    summer, winter = timezone(timedelta(hours=2)), timezone(timedelta(hours=1))
    before, after = datetime(2020, 3, 29, 1, tzinfo=winter), datetime(2020, 3, 29, 4, tzinfo=summer)
    write(tmp_path, "r.parquet", id=["a"], adm=pa.array([before], pa.timestamp("us", "Europe/Berlin")))
    write(tmp_path, "e.parquet", id=["a"], t=pa.array([after], pa.timestamp("ns", "UTC")), v=[1.0])
    records, _ = read(tmp_path, dated())
    assert events(records["a"]) == [(2.0, 0, 1.0)]
    write(tmp_path, "e.parquet", id=["a"], t=pa.array([after.replace(tzinfo=None)]), v=[1.0])
    with pytest.raises(ValueError, match=r"dates of column 'adm' have a zone .* those of 't' have none"):
        read(tmp_path, dated())
    write(tmp_path, "r.parquet", id=["a"], adm=pa.array([before.replace(tzinfo=None)]))
    records, _ = read(tmp_path, dated())
    assert events(records["a"]) == [(3.0, 0, 1.0)]


def test_dates_in_csv_with_a_zone_are_dates_and_all_of_a_column_have_one(tmp_path: Path) -> None:
    mapping = series(origin="adm", horizon=48)
    with_zone = (
        "id,t,v\na,2150-01-01T05:00:00Z,1\na,2150-01-01T08:30:00+02:00,2\na,2150-01-01 00:30:00.500000000-0100,3\n"
    )
    stays = "id,adm\na,2150-01-01T00:00:00Z\n"
    records, _ = read(tmp_path, mapping, r_csv=stays, e_csv=with_zone)
    assert events(records["a"]) == [(pytest.approx(1.5 + 0.5 / 3600), 0, 3.0), (5.0, 0, 1.0), (6.5, 0, 2.0)]
    with pytest.raises(ValueError, match=r"e\.csv: column 't' holds dates with a zone .* and dates without one"):
        read(tmp_path, mapping, e_csv=with_zone.replace("05:00:00Z", "05:00:00"))
    with pytest.raises(ValueError, match=r"dates of column 't' have a zone .* those of 'adm' have none"):
        read(tmp_path, mapping, r_csv=stays.replace("Z", ""), e_csv=with_zone)
    # In two files of a pattern
    (tmp_path / "e1.csv").write_text("id,t,v\na,2150-01-01T05:00:00Z,1\n")
    (tmp_path / "e2.csv").write_text("id,t,v\na,2150-01-01T05:00:00,1\n")
    with pytest.raises(ValueError, match=r"e2\.csv: column 't' holds dates with a zone .* and dates without one"):
        read(tmp_path, series(origin="adm", horizon=48, file="e?.csv".replace("?", "*")), r_csv=stays, e_csv="id,t,v\n")


def test_forms_of_dates(tmp_path: Path) -> None:
    mapping = series(origin="adm", horizon=48)
    table = "id,t,v\na,2150-01-01,1\na,2150-01-01T05:00:00,2\na,2150-01-01 06:00,3\na,2150-01-01 07:00:00.5,4\na,,5\n"
    stays = "id,adm\na,2149-12-31 23:00:00\n"
    with pytest.raises(ValueError, match=r"1 rows have no 't'"):
        read(tmp_path, mapping, r_csv=stays, e_csv=table)
    records, _ = read(tmp_path, mapping, e_csv=table.replace("a,,5\n", ""))
    assert [time for time, _, _ in events(records["a"])] == [1.0, 6.0, 7.0, pytest.approx(8 + 0.5 / 3600)]
    german = {**mapping, "csv": {"date": "%d.%m.%Y %H:%M"}}
    records, _ = read(tmp_path, german, r_csv="id,adm\na,03.04.2150 00:00\n", e_csv="id,t,v\na,03.04.2150 05:30,1\n")
    assert events(records["a"]) == [(5.5, 0, 1.0)]
    with pytest.raises(ValueError, match=r"e\.csv, row 2: column 't': '04/03/2150' is not of the form %d"):
        read(tmp_path, german, e_csv="id,t,v\na,03.04.2150 05:30,1\na,04/03/2150,2\n")
    with pytest.raises(ValueError, match=r"e\.csv, row 1: column 't': '03\.04\.2150' is not an ISO 8601 date .*date:"):
        read(tmp_path, mapping, r_csv=stays, e_csv="id,t,v\na,03.04.2150,1\n")


@pytest.mark.parametrize("cell", ["31.02.2021 00:00", "28.02.2021 24:00", "28.02.2021 00:60"])
def test_dates_that_do_not_exist_are_refused(tmp_path: Path, cell: str) -> None:
    mapping = {**series(origin="adm", horizon=480), "csv": {"date": "%d.%m.%Y %H:%M"}}
    with pytest.raises(ValueError, match=rf"e\.csv, row 1: column 't': '{cell}' is not of the form %d"):
        read(tmp_path, mapping, r_csv="id,adm\na,28.02.2021 00:00\n", e_csv=f"id,t,v\na,{cell},1\n")


def test_zones_and_fractions_of_dates_that_are_said(tmp_path: Path) -> None:
    mapping = series(origin="adm", horizon=48)
    stays, table = "id,adm\na,2021-01-01 00:00:00.0 +0000\n", "id,t,v\na,2021-01-01 01:30:00.25 -0500\n"
    said = {**mapping, "csv": {"date": "%Y-%m-%d %H:%M:%S.%f %z"}}
    records, _ = read(tmp_path, said, r_csv=stays, e_csv=table.replace("-0500\n", "-0500,1\n"))
    assert events(records["a"]) == [(pytest.approx(6.5 + 0.25 / 3600, abs=1e-6), 0, 1.0)]
    with pytest.raises(ValueError, match=r"csv.date: names of zones"):
        read(tmp_path, {**mapping, "csv": {"date": "%Y-%m-%d %H:%M:%S %Z"}})
    table = "id,t,v\na,2021-01-01 05:00:00 UTC,1\na,2021-01-01 07:00:00 +01:00,2\na,2021-01-01T07:00:00 GMT,3\n"
    records, _ = read(tmp_path, mapping, r_csv="id,adm\na,2021-01-01T00:00:00Z\n", e_csv=table)
    assert events(records["a"]) == [(5.0, 0, 1.0), (6.0, 0, 2.0), (7.0, 0, 3.0)]


def test_times_of_a_long_follow_up_are_kept(tmp_path: Path) -> None:
    """Visits weeks apart, written to the second: float32 moves them by a second, which is below any use."""
    table = "id,t,v\n" + "".join(f"a,{datetime(2021, 1, 1, 8, 30, 17) + timedelta(days=37 * n)},1\n" for n in range(12))
    mapping = series(origin="adm", horizon=500, time_unit="days")
    records, _ = read(tmp_path, mapping, r_csv="id,adm\na,2021-01-01 00:00:00\n", e_csv=table)
    assert [time for time, _, _ in events(records["a"])] == [
        float(np.float32(37 * n + (8 * 3600 + 30 * 60 + 17) / 86400)) for n in range(12)
    ]


def test_moments_beyond_any_calendar_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "r.parquet", id=["a"], adm=pa.array([0], pa.timestamp("s")))
    write(tmp_path, "e.parquet", id=["a"], t=pa.array([18446744073709 + 18000], pa.timestamp("s")), v=[1.0])
    with pytest.raises(ValueError, match=r"column 't' .*cannot be read as date"):
        read(tmp_path, dated())
    write(tmp_path, "r.parquet", id=["a"], adm=pa.array([0]))
    write(tmp_path, "e.parquet", id=["a"], t=pa.array([18446744073709 + 18000]), v=[1.0])
    with pytest.raises(ValueError, match=r"column 't' .*cannot be read as date:seconds"):
        read(tmp_path, dated(date_unit="seconds"))


def test_durations_are_times(tmp_path: Path) -> None:
    mapping = series(file="e.parquet", time_unit="hours")
    spans = [timedelta(hours=1), timedelta(minutes=90), timedelta(0)]
    for kind in ("s", "ms", "us", "ns"):
        write(tmp_path, "e.parquet", id=["a"] * 3, t=pa.array(spans, pa.duration(kind)), v=[1.0, 2.0, 3.0])
        records, _ = read(tmp_path, mapping, r_csv="id\na\n")
        assert events(records["a"]) == [(0.0, 0, 3.0), (1.0, 0, 1.0), (1.5, 0, 2.0)]
    written = "id,t,v\na,0 days 01:00:00,1\na,0 days 01:30:00.000,2\na,00:00:00,3\n"
    records, _ = read(tmp_path, series(), e_csv=written)
    assert events(records["a"]) == [(0.0, 0, 3.0), (1.0, 0, 1.0), (1.5, 0, 2.0)]
    with pytest.raises(ValueError, match=r"2 observations of a unit are outside 0 to 10 hours, the first at -1"):
        read(tmp_path, series(), e_csv="id,t,v\na,-1 days +23:00:00,1\na,-00:30:00,2\n")
    records, _ = read(tmp_path, series(horizon=48), e_csv=f'id,t,v\na,"{timedelta(days=1, hours=5)}",1\n')
    assert events(records["a"]) == [(29.0, 0, 1.0)]
    with pytest.raises(ValueError, match=r"holds durations; their time_unit 'visits' must be one of seconds"):
        read(tmp_path, series(time_unit="visits"), e_csv=written)
    with pytest.raises(ValueError, match=r"column 't' holds dates .*origin"):
        write(tmp_path, "e.parquet", id=["a"], t=[datetime(2020, 1, 1, tzinfo=UTC)], v=[1.0])
        read(tmp_path, mapping)


@pytest.mark.parametrize("longest", ["0.1", "19.9"])
def test_the_window_of_a_series_without_one_is_its_longest_time(
    longest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where units are small; 0.1 is more in float32 than in float64, and 19.9 is less."""
    monkeypatch.setattr("data_shards.sources.tables.source.UNIT_RECORDS", 1)
    mapping = series(channel="c", value="v", channels=["K"], other_channels="skip")
    mapping["modalities"]["w"] = {**mapping["modalities"]["s"], "channels": ["Na"], "horizon": 5}
    del mapping["modalities"]["s"]["horizon"]
    table = f"id,t,c,v\nb,{longest},K,1\na,0.05,K,1\na,70,X,1\na,3,Na,1\n"
    read(tmp_path, mapping, r_csv="id\na\nb\n", e_csv=table)
    source = create_source("tables", {"path": str(tmp_path / "mapping.yaml")})
    report = pack(source, str(tmp_path / "out"))
    horizons = {m.name: m.horizon for m in open_manifest(str(tmp_path / "out")).schema.modalities}
    window = float(np.float32(longest))
    assert horizons == {"s": window, "w": 5.0}
    assert report["source"]["horizons_from_longest_times"] == {"s": window}
    with pytest.raises(ValueError, match=r"1 observations of a unit are outside 0 to inf hours, the first at -1"):
        read(tmp_path, mapping, e_csv="id,t,c,v\na,-1,K,1\n")
    with pytest.raises(ValueError, match=r"series s: no time above 0 was seen.*give horizon"):
        read(tmp_path, mapping, e_csv="id,t,c,v\na,0,K,1\n")


def test_a_source_without_a_window_is_refused_when_packing(tmp_path: Path) -> None:
    class Windowless(Source):
        schema = DatasetSchema("d", (ModalitySpec("s", "series", channels=("v",)),))

        def units(self) -> list[int]:
            return [0]

        def read(self, unit: int, notes: Counter[str]) -> Iterator[Record]:
            yield Record("a", {})

    with pytest.raises(ValueError, match="series s has no horizon"):
        pack(Windowless(SourceOptions()), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
