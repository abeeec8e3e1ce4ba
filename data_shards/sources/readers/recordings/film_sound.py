"""The sound of a film, or of a sound file that only FFmpeg knows, as a recording that begins where the film begins.

Shape legend: L samples, C channels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import numpy as np

from data_shards.sources.readers.recordings.container import begins, decoded, open_film
from data_shards.sources.readers.recordings.recording import Recording, SignalError, Source, check_channels

_LOOSE = Fraction(1, 20)  # seconds that the times of containers may be off without meaning anything


@contextmanager
def open_film_sound(source: Source) -> Iterator[Recording]:
    """The first audio stream; numbers from -1 to 1."""
    with open_film(source) as film:
        if not film.streams.audio:
            raise SignalError("it has no sound")
        stream, odd = film.streams.audio[0], Counter[str]()
        channels, rate = stream.codec_context.channels, stream.codec_context.sample_rate
        check_channels(channels)
        if not rate:
            raise SignalError("its sound has no rate")
        zero = begins(film)

        def read(first: int, end: int, columns: Sequence[int]) -> np.ndarray:
            return _samples(film, stream, zero, first, end, odd)[:, list(columns)]

        yield Recording(channels, read, rates=(float(rate),) * channels, odd=odd)


def _samples(film: Any, stream: Any, zero: Fraction, first: int, end: int, odd: Counter[str]) -> np.ndarray:
    """float32 [L, C] of samples first to end; silence where the stream has nothing, and counted."""
    channels, rate = stream.codec_context.channels, stream.codec_context.sample_rate
    blocks, place = [np.empty((0, channels), np.float32)], 0
    for frame in decoded(film, stream):
        block = _plain(frame, channels)
        if frame.sample_rate != rate or block.shape[1] != channels:
            raise SignalError("its sound changes its rate or its number of channels on the way")
        if frame.pts is not None:
            silent = round((frame.pts * frame.time_base - zero) * rate) - place
            if silent > (_LOOSE * rate if place else 0):
                odd["samples_of_silence_filled_in"] += max(0, min(place + silent, end) - max(place, first))
                silence = np.zeros((min(place + silent, end) - min(place, end), channels), np.float32)
                blocks.append(silence[max(0, first - place) :])
                place += silent
            elif silent < -_LOOSE * rate:
                raise SignalError("the times of its sound go back")
        blocks.append(block[max(0, first - place) : max(0, end - place)])
        place += len(block)
        if place >= end:
            break
    return np.concatenate(blocks)


def _plain(frame: Any, channels: int) -> np.ndarray:
    """float32 [L, C], from -1 to 1."""
    array = frame.to_ndarray()
    block = array.T if frame.format.is_planar else array.reshape(-1, channels)
    if block.dtype.kind == "f":
        return np.asarray(block, np.float32)
    bits = 8 * block.dtype.itemsize
    middle = 1 << (bits - 1)
    return ((block.astype(np.float64) - (middle if block.dtype.kind == "u" else 0)) / middle).astype(np.float32)
