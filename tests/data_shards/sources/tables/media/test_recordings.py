"""Recordings of a mapping: sounds, films and signals by path or as bytes, with what was done to them counted."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import yaml

from data_shards import create_source
from data_shards.sources.readers.wfdb import read_wfdb
from tests.data_shards.sources.build import real_data
from tests.data_shards.sources.readers.recordings.build import lay_edf, lay_film, loudest, square, tone
from tests.data_shards.sources.tables.build import read

LEADS = ["I", "II", "III", "AVR", "AVL", "AVF", "V1", "V2", "V3", "V4", "V5", "V6"]


def mapping(**more: Any) -> dict[str, Any]:
    return {"records": {"file": "r.csv", "key": "id"}, "modalities": {"w": {"kind": "waveform", "column": "p", **more}}}


def lay_sounds(folder: Path) -> None:
    soundfile.write(folder / "a.wav", tone(440, 2, 16000), 16000, subtype="FLOAT")
    soundfile.write(folder / "b.flac", tone(440, 2, 44100), 44100, subtype="PCM_24")
    soundfile.write(folder / "c.wav", np.stack([tone(200, 1, 8000), tone(300, 1, 8000)], axis=1), 8000, subtype="FLOAT")
    lay_film(folder / "d.mkv", [square(n) for n in range(20)], sound_L=tone(440, 2, 44100), sound_rate=44100)


def test_files_of_any_rate_become_the_declared_one_and_are_counted(tmp_path: Path) -> None:
    lay_sounds(tmp_path)
    csv = "id,p\na,a.wav\nb,b.flac\nd,d.mkv\ne,\n"
    with pytest.raises(
        ValueError, match=r"r\.csv, record 'b': signal .*b\.flac has 44100 samples per second, and 16000 are declared; "
    ):
        read(tmp_path, mapping(rate=16000), r_csv=csv)
    records, notes = read(tmp_path, mapping(rate=16000, resample=True), r_csv=csv)
    assert notes == {"waveforms_resampled.44100_to_16000": 2}
    for key in "abd":
        values: Any = records[key].values["w"]
        assert values.shape == (32000, 1) and loudest(values[:, 0], 16000) == 440
        np.testing.assert_allclose(values[500:-500, 0], tone(440, 2, 16000)[500:-500], atol=2e-3)
    np.testing.assert_array_equal(records["a"].values["w"][:, 0], tone(440, 2, 16000).astype(np.float32))
    assert records["e"].values == {}
    any_rate, notes = read(tmp_path, mapping(), r_csv=csv)
    assert [len(any_rate[key].values["w"]) for key in "abd"] == [32000, 88200, 88200]
    assert notes == {"waveforms_at_16000_per_second": 1, "waveforms_at_44100_per_second": 2}


def test_stretches_of_one_file_are_records_of_their_own(tmp_path: Path) -> None:
    """Two columns of the same files; an empty cell is the file's own beginning or end."""
    lay_sounds(tmp_path)
    csv = "id,p,from,to\na,c.wav,0.25,0.5\nb,c.wav,,0.125\nc,c.wav,0.9,\n"
    records, _ = read(
        tmp_path, mapping(start="from", end="to", rate=8000, channels=[1, 0], leads=["right", "left"]), r_csv=csv
    )
    whole = np.stack([tone(300, 1, 8000), tone(200, 1, 8000)], axis=1).astype(np.float32)
    for key, stretch in (("a", slice(2000, 4000)), ("b", slice(0, 1000)), ("c", slice(7200, 8000))):
        np.testing.assert_array_equal(records[key].values["w"], whole[stretch])
    mixed, _ = read(tmp_path, mapping(channels="mix"), r_csv=csv)
    np.testing.assert_allclose(mixed["a"].values["w"][:, 0], whole.mean(axis=1), atol=1e-7)
    with pytest.raises(ValueError, match=r"record 'a': .*c\.wav: the stretch from second 0\.25 to 1\.5 is not"):
        read(tmp_path, mapping(start="from", end="to", channels=[0]), r_csv="id,p,from,to\na,c.wav,0.25,1.5\n")
    with pytest.raises(ValueError, match=r"record 'a': .*c\.wav: it has 2 channels, and 1 lead is declared; say which"):
        read(tmp_path, mapping(), r_csv=csv)


def test_timed_recordings_and_bytes_in_parquet(tmp_path: Path) -> None:
    """Several a record, each at its time, their files inside the table."""
    contents = []
    for hertz in (100, 200, 300):
        buffer = io.BytesIO()
        soundfile.write(buffer, tone(hertz, 0.5, 8000), 8000, format="FLAC", subtype="PCM_16")
        contents.append({"bytes": buffer.getvalue(), "path": "x.flac"})
    table = pa.table({"id": ["a", "a", "b"], "t": [1.5, 0.5, 2.0], "p": contents})
    pq.write_table(table, tmp_path / "w.parquet")
    more = {"file": "w.parquet", "time": "t", "horizon": 10, "rate": 8000, "unit": ""}
    records, _ = read(tmp_path, mapping(**more), r_csv="id\na\nb\n")
    found: Any = records["a"].values["w"]
    assert found.times_N.tolist() == [1.5, 0.5]
    assert [loudest(value[:, 0], 8000) for value in found.values] == [100, 200]
    pq.write_table(table.set_column(2, "p", pa.array([b"0       " + bytes(250)] * 3)), tmp_path / "w.parquet")
    with pytest.raises(ValueError, match=r"w\.parquet, record 'a': signal in 'p': an EDF file is read from a path"):
        read(tmp_path, mapping(**more), r_csv="id\na\nb\n")


def test_edf_and_arrays_by_name(tmp_path: Path) -> None:
    lay_edf(tmp_path / "a.edf", [("EEG", "uV", 100, np.arange(200)), ("EOG", "uV", 100, -np.arange(200))])
    np.savez(tmp_path / "b.npz", night=np.arange(400).reshape(200, 2), other=np.zeros(3))
    more = {"leads": ["EOG", "EEG"], "rate": 100, "unit": "mV"}
    records, notes = read(tmp_path, mapping(**more), r_csv="id,p\na,a.edf\n")
    expected = np.stack([-np.arange(200), np.arange(200)], axis=1) / 1000
    np.testing.assert_allclose(records["a"].values["w"], expected, atol=1e-6)
    assert notes == {"waveforms_converted_to_another_unit": 1}
    records, _ = read(tmp_path, mapping(leads=2, array="night", rate=100), r_csv="id,p\na,b.npz\n")
    np.testing.assert_array_equal(records["a"].values["w"], np.arange(400).reshape(200, 2))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"resample": True}, "modalities.w: resample needs the rate that files are resampled to: give rate"),
        ({"channels": [0, 0]}, "modalities.w: channels names 0 twice"),
        ({"channels": [-1]}, r"modalities.w: channels \[-1\] must count from 0"),
        ({"channels": "mix", "leads": 2}, "modalities.w: there are 2 leads, and mix makes 1"),
        ({"channels": [0, 1], "leads": ["a"]}, "modalities.w: there are 1 leads, and channels lists 2"),
    ],
)
def test_a_mapping_that_contradicts_itself(tmp_path: Path, more: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read(tmp_path, mapping(**more), r_csv="id,p\na,a.wav\n")


def test_the_schema_says_how_many_leads_there_are(tmp_path: Path) -> None:
    lay_sounds(tmp_path)
    (tmp_path / "r.csv").write_text("id,p\na,c.wav\n")
    for more, shape, names in (
        ({"channels": [1, 0]}, (2,), ()),
        ({"channels": [1], "leads": ["left"]}, (1,), ("left",)),
        ({"channels": "mix", "leads": ["both"]}, (1,), ("both",)),
        ({"leads": 2}, (2,), ()),
    ):
        (tmp_path / "m.yaml").write_text(yaml.safe_dump({"name": "x", **mapping(**more)}))
        source = create_source("tables", {"path": str(tmp_path / "m.yaml")})
        spec = source.schema.modalities[0]
        assert (spec.shape, spec.channels) == (shape, names)
        (record,) = source.records()
        assert record.values["w"].shape == (8000, *shape)  # type: ignore[union-attr]


@pytest.mark.slow
def test_ptbxl_is_what_the_package_reads(tmp_path: Path) -> None:
    """Straight from WFDB: all values of each of the 300 records, and a stretch at half the rate."""
    import wfdb

    folder = real_data("data/ptbxl_300")
    paths = sorted(folder.glob("records100/*/*.hea"))
    rows = [f"e{n},{path.relative_to(folder).with_suffix('')},2,7" for n, path in enumerate(paths)]
    same: dict[str, Any] = {"kind": "waveform", "column": "p", "folder": str(folder), "leads": LEADS, "unit": "mV"}
    own = {"ecg": {**same, "rate": 100}, "part": {**same, "rate": 50, "resample": True, "start": "from", "end": "to"}}
    asked = {"records": {"file": "r.csv", "key": "id"}, "modalities": own}
    records, notes = read(tmp_path, asked, r_csv="id,p,from,to\n" + "\n".join(rows) + "\n")
    assert len(records) == len(paths) == 300 and notes == {"waveforms_resampled.100_to_50": 300}
    for n, path in enumerate(paths):
        theirs = wfdb.rdrecord(str(path.with_suffix("")))
        values: Any = records[f"e{n}"].values
        assert [name.upper() for name in theirs.sig_name] == LEADS and theirs.units == ["mV"] * 12
        np.testing.assert_array_equal(values["ecg"], theirs.p_signal.astype(np.float32))
        # Format 16 is little-endian whole numbers of all leads of a sample, a thousand to the millivolt
        counts = np.fromfile(path.with_suffix(".dat"), "<i2").reshape(-1, 12)
        np.testing.assert_array_equal(values["ecg"], (counts / 1000).astype(np.float32))
        assert values["part"].shape == (250, 12)


def test_records_of_other_kinds_are_read_by_the_package(tmp_path: Path) -> None:
    """Segments and several samples a frame, with the values that the package gives; stretches too."""
    import wfdb

    rng = np.random.default_rng(0)
    for n in range(2):
        rng.integers(-900, 900, (50, 2)).astype("<i2").tofile(tmp_path / f"s{n}.dat")
        lines = "".join(f"s{n}.dat 16 200/mV 12 0 0 0 0 {name}\n" for name in ("I", "II"))
        (tmp_path / f"s{n}.hea").write_text(f"s{n} 2 100 50\n{lines}")
    (tmp_path / "m.hea").write_text("m/2 2 100 100\ns0 50\ns1 50\n")
    rng.integers(-900, 900, 40 * 3).astype("<i2").tofile(tmp_path / "f.dat")
    (tmp_path / "f.hea").write_text("f 2 100 40\nf.dat 16x2 200/mV 12 0 0 0 0 I\nf.dat 16 200/mV 12 0 0 0 0 II\n")
    for name, length in (("m", 100), ("f", 40)):
        theirs = wfdb.rdrecord(str(tmp_path / name)).p_signal
        assert theirs.shape == (length, 2)
        np.testing.assert_array_equal(read_wfdb(tmp_path / name).values_LC, theirs)
        (tmp_path / "r.csv").write_text(f"id,p,from,to\na,{name},0.1,0.3\n")
        more = {"leads": ["II", "I"], "rate": 100, "unit": "mV", "start": "from", "end": "to"}
        records, _ = read(tmp_path, mapping(**more))
        np.testing.assert_array_equal(records["a"].values["w"], theirs[10:30, ::-1].astype(np.float32))


def test_a_film_gives_pictures_and_sound_to_one_record(tmp_path: Path) -> None:
    lay_film(tmp_path / "d.mkv", [square(n) for n in range(20)], sound_L=tone(440, 2, 8000))
    own = mapping(rate=8000)
    own["modalities"]["v"] = {
        "kind": "image", "column": "p", "frames": 0.5, "height": 48, "width": 64, "channels": 1, "horizon": 10,
        "time_unit": "seconds",
    }  # fmt: skip
    records, notes = read(tmp_path, own, r_csv="id,p\na,d.mkv\n")
    found: Any = records["a"].values["v"]
    assert found.times_N.tolist() == [0, 0.5, 1.0, 1.5] and notes == {"film_pictures": 4}
    for time, picture in zip(found.times_N, found.values, strict=True):
        assert picture.shape == (1, 48, 64) and np.nonzero(picture[0] > 128)[1].min() == 20 * time
    np.testing.assert_allclose(records["a"].values["w"][:, 0], tone(440, 2, 8000), atol=1e-4)
