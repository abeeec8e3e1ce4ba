"""Files of signals and films with known content, written by the libraries of their formats."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np


def tone(hertz: float, seconds: float, rate: float, height: float = 0.5) -> np.ndarray:
    """float64 [L]."""
    return height * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def loudest(values_L: np.ndarray, rate: float) -> float:
    """The frequency with the largest part, in hertz."""
    spectrum = np.abs(np.fft.rfft(values_L * np.hanning(len(values_L))))
    return float(np.argmax(spectrum) * rate / len(values_L))


def lay_edf(path: Path, signals: Sequence[tuple[str, str, int, np.ndarray]]) -> None:
    """Signals of (name, unit, rate, values in tenths from -3200 to 3200), each of whole seconds."""
    import pyedflib

    with pyedflib.EdfWriter(str(path), len(signals), file_type=pyedflib.FILETYPE_EDFPLUS) as out:
        about = [
            {"label": name, "dimension": unit, "sample_frequency": rate, "physical_max": 3276.7,
             "physical_min": -3276.8, "digital_max": 32767, "digital_min": -32768}
            for name, unit, rate, _ in signals
        ]  # fmt: skip
        out.setSignalHeaders(about)
        tenths = [np.rint(np.asarray(values) * 10).astype(np.int32) for *_, values in signals]
        out.writeSamples(tenths, digital=True)


def square(number: int, size: tuple[int, int] = (64, 48), colour: tuple[int, int, int] = (255, 255, 255)) -> np.ndarray:
    """uint8 [H, W, 3]: black, with a square of 8 pixels whose left edge is at 2 x number."""
    picture = np.zeros((size[1], size[0], 3), np.uint8)
    picture[16:24, 2 * number : 2 * number + 8] = colour
    return picture


def lay_film(
    path: Path,
    pictures: Sequence[np.ndarray],
    fps: int = 10,
    codec: str = "ffv1",
    form: str = "bgr0",
    sound_L: np.ndarray | None = None,
    sound_rate: int = 8000,
    sound_codec: str = "pcm_s16le",
    sound_from: int = 0,
    pictures_from: int = 0,
    channels: int = 1,
    options: dict[str, str] | None = None,
) -> Path:
    """A film; ``sound_from`` and ``pictures_from`` are the first sample and picture that there are."""
    import av

    with av.open(str(path), "w", options=options or {}) as out:
        video: Any = out.add_stream(codec, rate=fps)
        video.height, video.width, video.pix_fmt = (*pictures[0].shape[:2], form)
        video.gop_size = 10
        audio: Any = None
        if sound_L is not None:
            layout = {1: "mono", 2: "stereo"}[channels]
            audio = out.add_stream(sound_codec, rate=sound_rate, layout=layout)
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number + pictures_from, Fraction(1, fps)
            out.mux(video.encode(frame))
        out.mux(video.encode())
        if sound_L is not None:
            whole = "pcm" in sound_codec
            block = (sound_L * 32768).astype(np.int16) if whole else sound_L.astype(np.float32)
            heard = av.AudioFrame.from_ndarray(block.reshape(1, -1), format="s16" if whole else "flt", layout=layout)
            heard.sample_rate, heard.pts, heard.time_base = sound_rate, sound_from, Fraction(1, sound_rate)
            if not whole:
                resampler = av.AudioResampler(format="fltp", layout=layout, rate=sound_rate)
                for piece in [*resampler.resample(heard), *resampler.resample(None)]:
                    out.mux(audio.encode(piece))
            else:
                out.mux(audio.encode(heard))
            out.mux(audio.encode())
    return path
