"""Files that are broken, empty, of another kind, or that claim more than they hold: a sentence each, and no memory."""

from __future__ import annotations

import builtins
import io
import struct
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import soundfile

from data_shards.sources.readers.recordings.film_pictures import film_frames
from data_shards.sources.readers.recordings.read import Part, read_signal
from tests.data_shards.sources.readers.recordings.build import lay_edf, lay_film, square, tone


def refused(source: Path | bytes, words: str, leads: Any = 1, **part: Any) -> None:
    with pytest.raises(ValueError) as caught:
        read_signal(source, "signal x", Part(leads, **part))
    said = str(caught.value)
    assert said.startswith("signal x: ") and words in said and "\n" not in said and len(said) < 400, said


def wav(values: Any = None, rate: int = 8000, subtype: str = "PCM_16") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(440, 1, rate) if values is None else values, rate, format="WAV", subtype=subtype)
    return buffer.getvalue()


def npy(values: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=True)
    return buffer.getvalue()


def claiming(shape: str) -> bytes:
    """A .npy file of two numbers whose header says another shape."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
    text += " " * (117 - len(text)) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + b"\0" * 8


def npz(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as out:
        for name, content in members.items():
            out.writestr(f"{name}.npy", content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty (0 bytes)"),
        (b"a,b\n1,2\n", "it is neither a sound (.wav, .flac, .ogg, .mp3, ...) nor a film nor a WFDB record (.hea)"),
        (b"#EXTM3U\n/etc/passwd\n", "it is neither a sound"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "it is neither a sound"),
        (b"RIFF\x08\0\0\0WAVEjunk", "it is no sound file that can be decoded ("),
        (wav(np.zeros(0)), "it holds no samples"),
        (wav()[:-100], "it is cut short: it says that it has 16,044 bytes, and 15,944 are there"),
        (b"fLaC" + bytes(40), "it is no sound file that can be decoded ("),
        (b"OggS" + bytes(40), "it is no sound file that can be decoded ("),
        (b"\0\0\0\x18ftypmp42" + bytes(40), "it is a damaged film ("),
        (b"\x1aE\xdf\xa3" + bytes(40), "it is a damaged film ("),
        (b"\x89HDF\r\n\x1a\n" + bytes(40), "it is a damaged HDF5 file ("),
        (b"PK\x03\x04" + bytes(40), "it is a damaged .npz file ("),
        (b"0       " + bytes(300), "an EDF file is read from a path, not from bytes in a table"),
        (npy({"a": 1}), "it holds objects, not numbers; save one array of numbers with numpy.save"),
        (npy(np.array(["a"])), "it holds <U1 of shape (1,), not numbers of shape (samples, channels)"),
        (npy(np.zeros((2, 2, 2))), "it holds float64 of shape (2, 2, 2), not numbers"),
        (npy(np.zeros(3, complex)), "it holds complex128 of shape (3,)"),
        (npy(np.zeros(0)), "it holds no samples"),
        (npy(np.zeros((3, 0))), "it has 0 channels, and 1 to 4,096 are read"),
        (npy(np.arange(100.0))[:-8], "it holds no whole array: its header says float64 of shape (100,), and 792 bytes"),
        (npy(np.arange(9.0))[:9], "it holds no whole array ("),
        (claiming("(2500000000,)"), "it holds no whole array: its header says float32 of shape (2500000000,)"),
        (claiming("(-1,)"), "it says that its shape is (-1,)"),
        (npz(a=npy(np.zeros(3)), b=npy(np.zeros(3))), "this .npz file holds a, b, and array does not say which is"),
        (npz(a=npy({"a": 1})), "it holds objects, not numbers"),
    ],
)  # fmt: skip
def test_what_is_no_signal(tmp_path: Path, content: bytes, words: str) -> None:
    refused(content, words)
    (tmp_path / "x.wav").write_bytes(content)  # whatever its name
    refused(tmp_path / "x.wav", words if "EDF" not in words else "it is no EDF file that is read (")


def test_what_is_not_there(tmp_path: Path) -> None:
    refused(tmp_path / "none.wav", "it cannot be read: No such file")
    refused(tmp_path, "it is a folder")


@pytest.mark.parametrize(
    ("values", "part", "words"),
    [
        ([[0.0, 0.1]] * 3, {}, "it has 2 channels, and 1 lead is declared; say which of them with channels: [0, ...]"),
        ([[0.0] * 3] * 3, {"leads": 2}, "it has 3 channels, and 2 leads are declared; say which of them with channels"),
        ([[0.0] * 5] * 3, {"leads": ("a", "b")}, "it has 5 channels, and 2 leads are declared"),
        ([0.0] * 3, {"leads": 2}, "it has 1 channel, and 2 leads are declared"),
        ([[0.0, 0.1]] * 3, {"channels": (2,)}, "it has no channel 2; it has 2, from 0 to 1"),
        ([[0.0, 0.1]] * 3, {"channels": ("left",)}, "its channels have no names, and channels asks for 'left'"),
        ([0.0, np.nan, np.inf], {}, "sample 1 of channel 0 is nan, no number, as are 1 others; mend them"),
        ([0.0] * 8000, {"start": 0.5, "end": 1.5}, "the stretch from second 0.5 to 1.5 is not within its 1 seconds"),
        ([0.0] * 8000, {"start": 1.0}, "the stretch from second 1 on is not within its 1 seconds"),
        ([0.0] * 8000, {"start": 0.50003, "end": 0.5001}, "no sample lies in the stretch from second 0.50003 to"),
        ([0.0] * 8000, {"start": 0.5, "end": 0.25}, "the stretch from second 0.5 to 0.25 is none"),
        ([0.0] * 8000, {"start": -1.0}, "the stretch from second -1 on is none"),
        ([0.0] * 8000, {"max_length": 7999}, "it holds 8,000 samples (1 seconds), and max_length 7,999 allows 7,999"),
        ([0.0] * 8000, {"rate": 4000.0, "max_length": 3999}, "and max_length 3,999 allows 7,998; take a stretch"),
    ],
)  # fmt: skip
def test_channels_stretches_and_samples_that_do_not_fit(values: Any, part: dict[str, Any], words: str) -> None:
    refused(wav(np.array(values), subtype="FLOAT"), words, **part)


def test_numpy_files_have_their_own_sentences(tmp_path: Path) -> None:
    refused(npy(np.zeros(9)), "neither the file nor the mapping says its rate; declare rate", start=1.0)
    refused(npy(np.zeros(9)), "it is a .npy file, which holds one array without a name; array: a is for", array="a")
    refused(npz(a=npy(np.zeros(3))), "this .npz file holds a, and no array 'b'", array="b")
    with pytest.raises(ValueError, match="sample 1 of channel 0 is nan, no number, as are 0 others"):
        read_signal(npy(np.array([1, np.nan])), "x", Part(1))


def test_a_header_that_claims_more_than_there_is_allocates_nothing(tmp_path: Path) -> None:
    real = wav(np.zeros(100))
    sound = real[:4] + struct.pack("<I", 0xFFFFFFF0) + real[8:40] + struct.pack("<I", 0xFFFFFFC0) + real[44:]
    bomb = npz(a=claiming("(40000000,)")[:-8] + bytes(160_000_000))
    assert len(bomb) < 200_000
    tracemalloc.start()
    found = read_signal(sound, "x", Part(1))
    refused(bomb, "it holds 40,000,000 samples, and max_length 1,000 allows 1,000", max_length=1000)
    refused(npz(a=claiming("(2500000000,)")), "it holds no whole array")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found.values_LC) == 100 and peak < 8_000_000


def test_a_sound_that_was_cut_off(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.flac", np.random.default_rng(0).uniform(-1, 1, 50_000), 8000)
    whole = (tmp_path / "x.flac").read_bytes()
    with pytest.raises(ValueError, match=r"^x: it is (cut short: [\d,]+ samples are there, and 50,000|no sound file)"):
        read_signal(whole[: len(whole) // 2], "x", Part(1))


def test_edf_files_that_are_broken(tmp_path: Path) -> None:
    lay_edf(tmp_path / "x.edf", [("a", "uV", 10, np.zeros(50))])
    whole = (tmp_path / "x.edf").read_bytes()
    for damaged in (whole[:-5], whole[:100], whole[:8] + b"x" * (len(whole) - 8)):
        (tmp_path / "y.edf").write_bytes(damaged)
        refused(tmp_path / "y.edf", "it is no EDF file that is read (")
    with pytest.raises(ValueError, match=r"^x lacks lead b \(or has it twice\); it has a$"):
        read_signal(tmp_path / "x.edf", "x", Part(("b",)))


def test_hdf5_files_that_lead_elsewhere_or_nowhere(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["x"] = np.zeros(3)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["out"] = h5py.ExternalLink("secret.h5", "/x")
        file["soft"], file["soft_out"] = h5py.SoftLink("/nothing"), h5py.SoftLink("/out")
        file.create_dataset("group/a", data=np.zeros(3))
        file.create_dataset("text", data="hello")
        file.create_dataset("raw", (3,), "f4", external=[(str(tmp_path / "secret.h5"), 0, 12)])
        layout = h5py.VirtualLayout((3,), "f8")
        layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "x", (3,))
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("huge", (1 << 33,), "f4", chunks=(1 << 20,), compression="gzip")
        file.create_dataset("piece", (4,), "f4", maxshape=(None,), chunks=(1 << 27,))
    for array, words in {
        "out": "its 'out' leads to another file, which is not read",
        "out/x": "its 'out/x' leads to another file",
        "raw": "its 'raw' leads to another file",
        "virtual": "its 'virtual' leads to another file",
        "soft": "its 'soft' is a link that leads nowhere",
        "soft_out": "its 'soft_out' leads to another file",
        "group": "its 'group' is a group; array names a dataset, e.g. group/a",
        "none": "this HDF5 file holds group/a, huge, piece, raw, text, virtual, and no array 'none'",
        "text": "not numbers of shape (samples, channels)",
        "huge": "it holds 8,589,934,592 samples, and max_length 1,000 allows 1,000",
        "piece": "are larger than 268,435,456 bytes",
    }.items():
        refused(tmp_path / "x.h5", words, array=array, max_length=1000)
    refused(tmp_path / "x.h5", "and array does not say which is wanted")


def test_films_that_are_broken_or_have_no_sound(tmp_path: Path) -> None:
    pictures = [square(n % 20) for n in range(50)]
    refused(lay_film(tmp_path / "x.mkv", pictures[:5]), "it has no sound")
    soundfile.write(tmp_path / "x.wav", np.zeros(9), 8000)
    with pytest.raises(ValueError, match=r"^it is no film that is read \(\.mp4, "):
        list(film_frames(tmp_path / "x.wav", "key"))
    for name, codec, form in (("y.mkv", "ffv1", "bgr0"), ("y.avi", "mjpeg", "yuvj420p"), ("y.mp4", "mpeg4", "yuv420p")):
        sound = None if name == "y.mp4" else tone(440, 5, 8000)
        whole = lay_film(tmp_path / name, pictures, codec=codec, form=form, sound_L=sound).read_bytes()
        assert len(list(film_frames(whole, "key"))) > 4
        for cut in (20, 60, 200, len(whole) // 2):
            with pytest.raises(
                ValueError, match=r"^it is a damaged film \(|^it has no |^no picture of it|^it is cut short: it says "
            ):
                list(film_frames(whole[:cut], "key"))
            refused(whole[:cut], "it ")


@pytest.mark.parametrize(
    ("module", "content", "words"),
    [
        ("soundfile", "wav", "sound files need soundfile: pip install 'fleximoe[sounds]', or pip install soundfile"),
        ("h5py", "h5", "HDF5 files need h5py: pip install 'fleximoe[signals]', or pip install h5py"),
        ("pyedflib", "edf", "EDF files need pyedflib: pip install 'fleximoe[signals]', or pip install pyedflib"),
        ("av", "mp4", "films and their sound need av: pip install 'fleximoe[films]', or pip install av"),
        ("wfdb", "hea", "in format 508, and such records need wfdb: pip install 'fleximoe[signals]', or pip"),
    ],
)  # fmt: skip
def test_a_library_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, content: str, words: str
) -> None:
    begin = {"wav": wav(), "h5": b"\x89HDF\r\n\x1a\n", "edf": b"0       ", "mp4": b"\0\0\0\x18ftypmp42"}
    (tmp_path / f"x.{content}").write_bytes(begin.get(content, b"x 1 100 4\nx.dat 508 1\n"))
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.split(".")[0] == module:
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    refused(tmp_path / f"x.{content}", words)
