"""Sound files that libsndfile knows (.wav, .flac, .ogg, .mp3, .aiff, ...): numbers from -1 to 1. Needs soundfile."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from data_shards.sources.readers.recordings.recording import (
    Recording,
    SignalError,
    Source,
    check_channels,
    in_words,
    needs,
)

_BLOCK = 1 << 16  # samples that are decoded at a time: what a header claims is not allocated
_WIDE = ("PCM_32", "DOUBLE")  # more bits than float32 has


@contextmanager
def open_sound(source: Source) -> Iterator[Recording]:
    """All channels of a file."""
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: it is there, and libsndfile is not
        raise needs("soundfile", "sound files", "sounds") from error
    try:
        with soundfile.SoundFile(str(source) if isinstance(source, Path) else io.BytesIO(source)) as sound:
            check_channels(sound.channels)
            dtype = "float64" if sound.subtype in _WIDE else "float32"

            def read(first: int, end: int, columns: Sequence[int]) -> np.ndarray:
                sound.seek(first)
                blocks, left = [np.empty((0, len(columns)), dtype)], end - first
                while left > 0 and len(block := sound.read(min(left, _BLOCK), dtype, always_2d=True)):
                    blocks.append(block[:, list(columns)])
                    left -= len(block)
                return np.concatenate(blocks)

            yield Recording(
                sound.channels,
                read,
                rates=(float(sound.samplerate),) * sound.channels,
                lengths=(sound.frames,) * sound.channels,
            )
    except soundfile.SoundFileRuntimeError as error:
        raise SignalError(f"it is no sound file that can be decoded ({in_words(error)})") from error
