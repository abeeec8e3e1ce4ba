"""Signal files: WFDB records of each format against bytes written by its rules, NumPy files, and what is neither."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_shards.sources.readers.signals import Signal, fit_signal
from data_shards.sources.readers.wfdb import open_wfdb, read_wfdb

# Samples of two signals, interleaved: extremes, zero, small ones, and the number that means no value
GAPS = {"16": -32768, "61": -32768, "160": -32768, "32": -(2**31), "24": -(2**23), "80": -128, "212": -2048}
EXTREMES = {"16": 32767, "61": 32767, "160": 32767, "32": 2**31 - 1, "24": 2**23 - 1, "80": 127, "212": 2047}


def encoded(kind: str, numbers: Sequence[int]) -> bytes:
    """Samples as the format stores them, number by number."""
    if kind == "212":
        padded = [n & 0xFFF for n in numbers] + [0] * (len(numbers) % 2)
        triples = [(a & 255, a >> 8 | b >> 8 << 4, b & 255) for a, b in zip(padded[::2], padded[1::2], strict=True)]
        return bytes(byte for triple in triples for byte in triple)
    size, order, zero = {
        "16": (2, "little", None), "61": (2, "big", None), "32": (4, "little", None), "24": (3, "little", None),
        "80": (1, "little", 128), "160": (2, "little", 32768),
    }[kind]  # fmt: skip
    if zero is not None:
        return b"".join((n + zero).to_bytes(size, order) for n in numbers)
    return b"".join(n.to_bytes(size, order, signed=True) for n in numbers)


def lay(folder: Path, header: str, **files: bytes) -> Path:
    for name, data in files.items():
        (folder / f"{name}.dat").write_bytes(data)
    (folder / "r.hea").write_text(header)
    return folder / "r"


@pytest.mark.parametrize("kind", list(GAPS))
@pytest.mark.parametrize("declared", ["3", "", "0"])
def test_every_format(tmp_path: Path, kind: str, declared: str) -> None:
    gap, top = GAPS[kind], EXTREMES[kind]
    numbers = [[1, -1], [top, gap], [gap + 1, 100]]
    count = f" 250 {declared}" if declared else " 250"
    header = f"r 2{count}\nr.dat {kind} 10(5)/mV 0 0 0 0 0 first\nr.dat {kind} 4/uV 0 -2 0 0 0 second one\n"
    found = read_wfdb(lay(tmp_path, header, r=encoded(kind, [n for row in numbers for n in row])))
    expected = [[(1 - 5) / 10, (-1 + 2) / 4], [(top - 5) / 10, np.nan], [(gap + 1 - 5) / 10, (100 + 2) / 4]]
    np.testing.assert_array_equal(found.values_LC, expected)
    assert (found.rate, found.names, found.units) == (250, ("first", "second one"), ("mV", "uV"))


def test_an_odd_number_of_twelve_bit_samples(tmp_path: Path) -> None:
    for data in (encoded("212", [5, -7, 9]), encoded("212", [5, -7, 9])[:-1]):
        found = read_wfdb(lay(tmp_path, "r 1 250 3\nr.dat 212 1\n", r=data))
        assert found.values_LC[:, 0].tolist() == [5, -7, 9]


def test_several_files_offsets_defaults_and_sums(tmp_path: Path) -> None:
    header = "# a comment\nr 3\n\na.dat 16+4 0 16 3 1 7\na.dat 16+4\nb.dat 80 2/mmHg 8 0 0 99 0 ABP\n"
    lay(tmp_path, header, a=b"xxxx" + encoded("16", [4, 200, 6, 400]), b=encoded("80", [1, 3]))
    found = read_wfdb(tmp_path / "r.dat")
    assert found.values_LC.tolist() == [[(4 - 3) / 200, 1, 0.5], [(6 - 3) / 200, 2, 1.5]]
    assert (found.rate, found.units, found.names) == (250, ("mV", "mV", "mmHg"), ("", "", "ABP"))
    assert found.odd == {"signals_without_gain": 2, "checksums_differ": 2}  # 4 + 6 is not 7, 1 + 3 not 99
    lay(tmp_path, header.replace(" 1 7", " 1 10").replace(" 99 ", f" {4 - 65536} "))
    assert read_wfdb(tmp_path / "r").odd == {"signals_without_gain": 2, "checksums_differ": 0}


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("r/2 2 100 10\ns1 5\ns2 5\n", "it consists of segments, and the package wfdb says: .*s1"),
        ("r/2 2 100 10\n../s1 5\ns2 5\n", "it consists of segments, and the package wfdb says: invalid syntax"),
        ("r 1 100 4\nr.dat 16x2 1\n", "has several samples a frame or a skew .16x2., and the package wfdb says"),
        ("r 1 100 4\n../r.dat 16:3 1\n", "a skew .16:3., and the package wfdb says: invalid syntax"),
        ("r 1 100 4\nr.dat 508 1\n", "its samples are in format 508, and the package wfdb says: .*is not a FLAC file"),
        ("r 1 100 4\nr.dat 77 1\n", "its samples are in format 77, and the package wfdb says"),
        ("r 1 100 4\n../r.dat 16 1\n", "is no name of a file beside it"),
        ("r 1 100 4\n~ 16 1\n", "is no name of a file beside it"),
        ("r 1 100 5\nr.dat 16 1\n", "r.dat holds 4 samples of 1 signals in this format, the header says 5"),
        ("r 1 100 3\nr.dat 16 1\n", "r.dat holds 4 samples of 1 signals in this format, the header says 3"),
        ("r 3 100\n" + "r.dat 16 1\n" * 3, "the header says nothing, and that is no whole number"),
        ("r 2 100 4\nr.dat 16 1\n", "announces 2 signals and describes 1"),
        ("r 1 100 4\nr.dat sixteen 1\n", "does not describe a signal"),
        ("r 1 100 4\nr.dat 16 high\n", "does not describe a signal"),
        ("r one\n", "does not give a name and a number of signals"),
        ("", "does not give a name and a number of signals"),
        ("r 1 fast 4\nr.dat 16 1\n", "does not give a rate and a number of samples"),
        ("r 1 0 4\nr.dat 16 1\n", "a rate of 0 and 4 samples are impossible"),
        ("r 1 100 4\nnone.dat 16 1\n", "its samples cannot be read"),
    ],
)
def test_records_that_are_not_read_or_do_not_fit_say_so(tmp_path: Path, header: str, words: str) -> None:
    path = lay(tmp_path, header, r=encoded("16", [1, 2, 3, 4]))
    with pytest.raises(ValueError, match=rf"WFDB record {path}\.hea: .*{words}"):
        read_wfdb(path)


def fitted(
    values: Any, leads: Any = 2, rate: Any = None, unit: str = "", own_rate: float | None = 100, **about: Any
) -> tuple[Any, Counter[str]]:
    notes = Counter[str]()
    about = {"names": ("I", "II"), "units": ("mV", "mV"), "odd": Counter(), **about}
    return fit_signal(
        Signal(np.asarray(values), rate=own_rate, **about), "signal x", leads, rate, unit, notes
    ).tolist(), notes


def test_leads_units_and_gaps_of_a_record() -> None:
    values = [[1.0, 2.0], [np.nan, 4.0]]
    assert fitted(values) == ([[1, 2], [0, 4]], Counter(
        {"waveforms_at_100_per_second": 1, "waveforms_in_mV": 1, "waveform_samples_without_value": 1}
    ))  # fmt: skip
    assert fitted(values, ["ii", "I"], 100, "mV")[0] == [[2, 1], [4, 0]]
    assert fitted(values, ["II"], 100, "uV")[0] == [[2000], [4000]]
    assert fitted(values, 2, 100, "µV", units=("V", "mV"))[0] == [[1e6, 2000], [0, 4000]]
    with pytest.raises(ValueError, match=r"signal x has 100 samples per second, and 500 are declared; have such files"):
        fitted(values, 2, 500)
    with pytest.raises(ValueError, match="signal x is in mmHg, and mV is declared"):
        fitted(values, 2, 100, "mV", units=("mV", "mmHg"))
    with pytest.raises(ValueError, match=r"signal x lacks lead V1 \(or has it twice\); it has I, II"):
        fitted(values, ["I", "V1"])


def test_whole_numbers_are_stored_as_they_are_or_refused() -> None:
    nothing: dict[str, Any] = {"names": (), "units": ()}
    for numbers in (np.array([[-32768], [32767]], np.int16), np.array([[2**24]]), np.array([[65535]], np.uint16)):
        assert fitted(numbers, 1, own_rate=None, unit="mV", **nothing)[0] == numbers.tolist()
    with pytest.raises(ValueError, match=r"signal x: whole numbers up to 16777217 would move by up to 1"):
        fitted(np.array([[16_777_217]]), 1, own_rate=None, **nothing)
    with pytest.raises(ValueError, match="is more than float32 can hold; scale the samples"):
        fitted(np.array([[1e300]]), 1, own_rate=None, **nothing)


@pytest.mark.parametrize("kind", list(GAPS))
def test_a_stretch_of_every_format(tmp_path: Path, kind: str) -> None:
    """Of three signals, so that formats that pair samples begin in the middle of a pair."""
    counts = np.arange(33).reshape(11, 3) - 16
    lines = "".join(f"r.dat {kind} 1 0 0 0 0 0 {name}\n" for name in "abc")
    path = lay(tmp_path, f"r 3 100 11\n{lines}", r=encoded(kind, counts.reshape(-1).tolist()))
    for first, end in ((0, 11), (1, 4), (4, 7), (10, 11)):
        with open_wfdb(path) as record:
            np.testing.assert_array_equal(record.read(first, end, [2, 0]), counts[first:end, [2, 0]])
