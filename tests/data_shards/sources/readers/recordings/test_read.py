"""Signal files of every kind: the values that were written come back; a stretch, some channels, another rate."""

from __future__ import annotations

import io
import tempfile
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_shards.sources.readers.recordings.read import Part, read_signal
from data_shards.sources.readers.recordings.resample import ratio, resampled
from data_shards.sources.readers.signals import fit_signal
from tests.data_shards.sources.readers.recordings.build import lay_edf, lay_film, loudest, square, tone

# Two channels that 16 bits hold exactly
WAVE = np.array([[0.5, -0.25], [0.0, 0.125], [-1.0, 32767 / 32768], [0.75, 1 / 32768]], np.float32)


def taken(source: Path | bytes, leads: int | tuple[str, ...] = 2, **part: Any) -> np.ndarray:
    return read_signal(source, "x", Part(leads, **part)).values_LC


def lay(folder: Path, kind: str) -> Path:
    path = folder / f"x.{kind}"
    if kind in ("wav", "flac"):
        soundfile.write(path, WAVE, 4, subtype="PCM_16")
    elif kind == "npy":
        np.save(path, WAVE)
    elif kind == "fortran.npy":
        np.save(path, np.asfortranarray(WAVE))
    elif kind == "npz":
        np.savez_compressed(path, other=np.zeros(3), wave=WAVE)
    elif kind == "h5":
        with h5py.File(path, "w") as file:
            file.create_dataset("a/wave", data=WAVE, compression="gzip")
            file["a/other"] = np.zeros(3)
    elif kind == "mkv":
        lay_film(path, [square(0)], fps=1, sound_L=WAVE.reshape(-1), channels=2, sound_rate=8000)
    return path


@pytest.mark.parametrize("as_bytes", [False, True])
@pytest.mark.parametrize("kind", ["wav", "flac", "npy", "fortran.npy", "npz", "h5", "mkv"])
def test_values_are_those_that_were_written(tmp_path: Path, kind: str, as_bytes: bool) -> None:
    path = lay(tmp_path, kind)
    source = path.read_bytes() if as_bytes else path
    array = {"npz": "wave", "h5": "a/wave"}.get(kind)
    np.testing.assert_array_equal(taken(source, array=array), WAVE)
    np.testing.assert_array_equal(taken(source, 1, channels=(1,), array=array), WAVE[:, 1:])
    np.testing.assert_array_equal(taken(source, 2, channels=(1, 0), array=array), WAVE[:, ::-1])
    np.testing.assert_array_equal(taken(source, 1, channels="mix", array=array), (WAVE[:, :1] + WAVE[:, 1:]) / 2)
    clock = 8000 if kind == "mkv" else 4
    stretch = {"start": 1 / clock, "end": 3 / clock, "array": array, "rate": clock}
    np.testing.assert_array_equal(taken(source, **stretch), WAVE[1:3])
    np.testing.assert_array_equal(taken(source, 1, channels=(0,), **stretch), WAVE[1:3, :1])


@pytest.mark.parametrize(
    ("subtype", "bits"), [("PCM_U8", 8), ("PCM_16", 16), ("PCM_24", 24), ("PCM_32", 24), ("FLOAT", 24), ("DOUBLE", 24)]
)
def test_every_depth_of_wav(tmp_path: Path, subtype: str, bits: int) -> None:
    exact = np.array([0.5, -0.25, 1 - 2.0 ** (1 - bits), -1, 0])
    soundfile.write(tmp_path / "x.wav", exact, 8000, subtype=subtype)
    notes = Counter[str]()
    signal = read_signal(tmp_path / "x.wav", "x", Part(1))
    assert fit_signal(signal, "x", 1, 8000, "", notes)[:, 0].tolist() == exact.tolist()


@pytest.mark.parametrize(("kind", "form"), [("ogg", "OGG"), ("mp3", "MP3"), ("opus", "OGG"), ("aiff", "AIFF")])
def test_a_tone_of_each_kind_of_sound(tmp_path: Path, kind: str, form: str) -> None:
    subtype = {"opus": "OPUS", "ogg": "VORBIS", "mp3": "MPEG_LAYER_III"}.get(kind)
    soundfile.write(tmp_path / f"x.{kind}", tone(440, 1, 48000), 48000, subtype=subtype, format=form)
    signal = read_signal(tmp_path / f"x.{kind}", "x", Part(1))
    assert signal.rate == 48000 and abs(len(signal.values_LC) - 48000) < 2500
    assert abs(loudest(signal.values_LC[:, 0], 48000) - 440) < 2


@pytest.mark.parametrize(("own", "wanted"), [(48000, 16000), (44100, 16000), (8000, 16000), (22050, 8000), (7, 100)])
def test_a_tone_keeps_its_frequency_and_height_at_another_rate(own: int, wanted: int) -> None:
    hertz, seconds = min(own, wanted) / 16, 64 if own < 100 else 1
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(hertz, seconds, own), own, format="WAV", subtype="FLOAT")
    notes = Counter[str]()
    signal = read_signal(buffer.getvalue(), "x", Part(1, rate=wanted))
    values_L = fit_signal(signal, "x", 1, wanted, "", notes, resample=True)[:, 0]
    assert len(values_L) == seconds * wanted and notes[f"waveforms_resampled.{own}_to_{wanted}"] == 1
    assert abs(loudest(values_L, wanted) - hertz) <= 1 / seconds
    middle = slice(len(values_L) // 4, -len(values_L) // 4)
    expected = tone(hertz, seconds, wanted)
    np.testing.assert_allclose(values_L[middle], expected[middle], atol=2e-3)


def test_what_the_lower_rate_cannot_hold_is_gone() -> None:
    """A tone above half of the wanted rate does not come back as another one."""
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(7000, 1, 48000) + tone(1000, 1, 48000, 0.25), 48000, format="WAV", subtype="FLOAT")
    signal = read_signal(buffer.getvalue(), "x", Part(1, rate=8000))
    values_L = fit_signal(signal, "x", 1, 8000, "", Counter(), resample=True)[:, 0]
    np.testing.assert_allclose(values_L[100:-100], tone(1000, 1, 8000, 0.25)[100:-100], atol=1e-3)


def test_a_constant_stays_one_up_to_its_ends_and_gaps_stay_gaps() -> None:
    signal = read_signal(npy(np.full((40, 1), 98.5)), "x", Part(1))
    assert ratio(128.5, 64.25) == Fraction(1, 2) and ratio(0.1, 0.3) == 3
    np.testing.assert_allclose(resampled(signal.values_LC, ratio(4, 3)), np.full((30, 1), 98.5), rtol=1e-12)
    holed = np.full((40, 2), 98.5)
    holed[10:20, 1], holed[0, 1] = np.nan, np.nan
    halved = resampled(holed, ratio(4, 2))
    assert np.isnan(halved[:, 1]).nonzero()[0].tolist() == [0, 5, 6, 7, 8, 9] and not np.isnan(halved[:, 0]).any()
    np.testing.assert_allclose(halved[~np.isnan(halved)], 98.5, rtol=1e-12)


def npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def test_edf_in_physical_units_by_name(tmp_path: Path) -> None:
    eeg = np.arange(20) / 10 - 1
    lay_edf(
        tmp_path / "x.edf", [("EEG Fpz", "uV", 10, eeg), ("EEG Pz", "uV", 10, -2 * eeg), ("Temp", "C", 1, [36, 37])]
    )
    signal = read_signal(tmp_path / "x.edf", "x", Part(("eeg pz", "EEG Fpz")))
    assert (signal.rate, signal.names, signal.units) == (10, ("EEG Pz", "EEG Fpz"), ("uV", "uV"))
    np.testing.assert_allclose(signal.values_LC, np.stack([-2 * eeg, eeg], axis=1), atol=1e-9)
    np.testing.assert_allclose(taken(tmp_path / "x.edf", 1, channels=("Temp",)), [[36], [37]], atol=1e-9)
    part = taken(tmp_path / "x.edf", ("a",), channels=(0,), start=0.5, end=1.25)
    np.testing.assert_allclose(part[:, 0], eeg[5:13], atol=1e-9)
    named = read_signal(tmp_path / "x.edf", "x", Part(("a",), channels=(0,)))
    assert named.names == ("a",)
    in_volt = fit_signal(named, "x", ("a",), 10, "mV", Counter())
    np.testing.assert_allclose(in_volt[:, 0], eeg / 1000, atol=1e-9)
    with pytest.raises(ValueError, match=r"^x: its channels have several rates or lengths \(EEG Pz 10, Temp 1\); make"):
        taken(tmp_path / "x.edf", 3)


def test_a_films_sound_begins_where_the_film_begins(tmp_path: Path) -> None:
    click = np.zeros(8000)
    click[2000] = 0.5
    late = lay_film(tmp_path / "late.mkv", [square(n) for n in range(20)], sound_L=click, sound_from=4000)
    signal = read_signal(late, "x", Part(1))
    assert len(signal.values_LC) == 12000 and signal.values_LC[:, 0].nonzero()[0].tolist() == [6000]
    assert signal.odd == {"samples_of_silence_filled_in": 4000}
    np.testing.assert_array_equal(taken(late, 1, start=0.25, end=1), signal.values_LC[2000:8000])
    np.testing.assert_array_equal(taken(late, 1, start=0.625), signal.values_LC[5000:])
    packed = lay_film(
        tmp_path / "x.mp4", [square(n) for n in range(10)], codec="mpeg4", form="yuv420p",
        sound_L=tone(440, 1, 8000) * (np.arange(8000) > 4000), sound_codec="aac",
    )  # fmt: skip
    heard = np.abs(taken(packed, 1)[:, 0])
    assert heard[:3800].max() < 0.02 and heard[4100:7900].max() > 0.45, "what the encoder adds in front is taken off"


RATES = st.sampled_from([1.0, 2.0, 3.0, 4.0, 10.0, 12.5, 100.0, 128.0, 44.1])


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    own=RATES, wanted=RATES, length=st.integers(1, 60), channels=st.integers(1, 4), seed=st.integers(0, 99),
    kind=st.sampled_from(["wav", "npy", "npz", "h5", "edf", "wfdb"]), data=st.data(),
)  # fmt: skip
def test_any_rates_channels_and_stretches_against_a_slow_loop(
    own: float, wanted: float, length: int, channels: int, seed: int, kind: str, data: st.DataObject
) -> None:
    if kind == "wav":
        own = max(1.0, own // 1)
    values = np.random.default_rng(seed).integers(-3000, 3000, (length, channels)) / 10
    chosen = data.draw(st.sampled_from(["mix", *[tuple(np.random.default_rng(seed).permutation(channels)[:n].tolist())
                                                 for n in range(1, channels + 1)]]))  # fmt: skip
    second = st.none() | st.integers(0, 100).map(lambda n: n / 4) | st.sampled_from([0.1, 0.3, 2.7])
    start, end = data.draw(second), data.draw(second)
    with tempfile.TemporaryDirectory() as name:
        source, clock, values = written(Path(name), kind, values, own)
        rate = clock if kind in ("npy", "npz", "h5") else wanted
        part = Part(1 if chosen == "mix" else len(chosen), chosen, start, end, rate)
        expected = by_a_loop(values, clock, chosen, start, end, rate)
        try:
            signal = read_signal(source, "x", part)
            found = fit_signal(signal, "x", part.leads, rate, "", Counter(), resample=True)
        except ValueError as error:
            assert expected is None and "stretch from second" in str(error), error
            return
        assert expected is not None
        np.testing.assert_allclose(found, expected, atol=2e-4, rtol=1e-5)


def written(folder: Path, kind: str, values: np.ndarray, rate: float) -> tuple[Path, float, np.ndarray]:
    """(file, its rate, what it holds): some kinds hold whole seconds or whole rates only."""
    path = folder / f"x.{kind}"
    if kind == "wav":
        soundfile.write(path, values / 400, int(rate), subtype="DOUBLE")
        return path, rate, values / 400
    if kind == "edf":
        rate = max(1, int(rate))
        whole = np.resize(values, (-(-len(values) // rate) * rate, values.shape[1]))
        lay_edf(path, [(f"c{n}", "uV", rate, own) for n, own in enumerate(whole.T)])
        return path, rate, whole
    if kind == "wfdb":
        lines = "".join(f"x.dat 16 10/mV 0 0 0 0 0 c{n}\n" for n in range(values.shape[1]))
        (folder / "x.hea").write_text(f"x {values.shape[1]} {rate:g} {len(values)}\n{lines}")
        np.rint(values * 10).astype("<i2").tofile(folder / "x.dat")
        return folder / "x.hea", rate, values
    if kind == "npy":
        np.save(path, values)
    elif kind == "npz":
        np.savez(path, values)
    else:
        with h5py.File(path, "w") as file:
            file["x"] = values
    return path, rate, values


def by_a_loop(
    values: np.ndarray, rate: float, chosen: Any, start: float | None, end: float | None, wanted: float
) -> np.ndarray | None:
    """The same, sample by sample; None where the stretch is not within the file."""
    begin = Fraction(str(start)) if start is not None else Fraction(0)
    stop = Fraction(str(end)) if end is not None else None
    time = [Fraction(n) / Fraction(str(rate)) for n in range(len(values) + 1)]
    # The sample before the end is the last one of the stretch, so what ends between two samples ends with the first
    ends = [n for n in range(len(time)) if stop is not None and time[n] >= stop]
    last = len(values) if stop is None else min(ends, default=None)
    if last is None or (stop is not None and stop <= begin) or begin > time[len(values) - 1]:
        return None
    rows = [n for n in range(last) if time[n] >= begin]
    if not rows:
        return None  # the stretch lies between two samples
    picked = [[values[n][c] for c in (range(values.shape[1]) if chosen == "mix" else chosen)] for n in rows]
    cut = np.array([[sum(row) / len(row)] if chosen == "mix" else row for row in picked]).reshape(len(rows), -1)
    return np.stack([slowly_resampled(channel, rate, wanted) for channel in cut.T], axis=1)


def slowly_resampled(values: np.ndarray, rate: float, wanted: float) -> np.ndarray:
    """A windowed sinc at every output sample, by its definition."""
    share = Fraction(str(wanted)) / Fraction(str(rate))
    up, down = share.numerator, share.denominator
    if up == down:
        return values
    longer = max(up, down)
    half = 10 * longer
    taps = np.sinc(np.arange(-half, half + 1) / longer) * np.kaiser(2 * half + 1, 5.0)
    taps *= up / taps.sum()
    line = np.linspace(values[0], values[-1], len(values))
    out = []
    for m in range(-(-len(values) * up // down)):
        total = 0.0
        for n, value in enumerate(values - line):
            place = m * down - n * up + half
            if 0 <= place <= 2 * half:
                total += value * taps[place]
        out.append(total + (values[0] + (values[-1] - values[0]) * m * down / up / max(1, len(values) - 1)))
    return np.array(out)
