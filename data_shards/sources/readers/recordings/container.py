"""A film's or sound's container, opened by FFmpeg through PyAV so that it can lead nowhere else.

Some of FFmpeg's formats are lists of other files and addresses. So the format is found here, by the first bytes, among
those that hold their own streams, and its bytes are given to FFmpeg, not its name.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

from data_shards.sources.readers.picture_files import MAX_PIXELS
from data_shards.sources.readers.recordings.recording import SignalError, Source, check_riff, in_words, needs

_EBML, _ASF = b"\x1aE\xdf\xa3", bytes.fromhex("3026b2758e66cf11")


_SAYS_ITS_LENGTH = ("matroska", "mov")  # in the header; of other formats FFmpeg guesses it
_LOOSE = Fraction(1)  # second that a header's length may be off


def film_format(begin: bytes) -> str | None:
    """FFmpeg's name of the container that begins like this (12 bytes); None if it is none that is read."""
    if begin[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return "mov"  # .mp4, .m4a, .mov, .3gp
    if begin[:4] == b"RIFF" and begin[8:12] == b"AVI ":
        return "avi"
    if begin[:3] == b"FLV":
        return "flv"
    if begin[:2] in (b"\xff\xf1", b"\xff\xf9"):
        return "aac"
    if begin[:4] == b"\0\0\x01\xba":
        return "mpeg"
    return {_EBML: "matroska", _ASF[:4]: "asf"}.get(begin[:4])  # matroska: .mkv, .webm


@contextmanager
def open_film(source: Source) -> Iterator[Any]:
    """PyAV's container.

    Raises:
        SignalError: no container that is read, or a damaged one, also while it is read.
    """
    try:
        import av
    except ImportError as error:
        raise needs("av", "films and their sound", "films") from error
    try:
        with source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as stream:
            begin = stream.read(12)
            check_riff(begin, stream.seek(0, io.SEEK_END))
            stream.seek(0)
            form = film_format(begin)
            if form is None:
                raise SignalError(
                    "it is no film that is read (.mp4, .mov, .m4a, .mkv, .webm, .avi, .flv, .mpg, .wmv, .wma, .aac)"
                )
            with av.open(stream, "r", format=form, options={"protocol_whitelist": "", "enable_drefs": "0"}) as film:
                yield film
    except (av.error.FFmpegError, EOFError, MemoryError) as error:
        raise SignalError(f"it is a damaged film ({in_words(error)})") from error
    except OSError as error:
        raise SignalError(f"it cannot be read: {error.strerror or in_words(error)}") from error


def decoded(film: Any, stream: Any) -> Iterator[Any]:
    """PyAV's frames of one stream; SignalError if the file ends before its header says that it does."""
    zero, reached = begins(film), Fraction(0)
    for packet in film.demux():
        if packet.pts is not None:
            reached = max(reached, (packet.pts + (packet.duration or 0)) * packet.time_base - zero)
        if packet.stream is stream:
            yield from packet.decode()
    said = Fraction(film.duration or 0, 1_000_000)
    if film.format.name.startswith(_SAYS_ITS_LENGTH) and reached + _LOOSE < said:
        raise SignalError(f"it is cut short: it says {float(said):g} seconds, and ends at second {float(reached):g}")


def bounded(stream: Any) -> Any:
    """The stream, with a decoder that refuses pictures of more pixels than are plausible."""
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
    return stream


def begins(film: Any) -> Fraction:
    """The second that the film starts at, on the clock of its streams: that of the one that begins first."""
    known = [
        s.start_time * s.time_base for s in film.streams if s.type in ("video", "audio") and s.start_time is not None
    ]
    return min(known, default=Fraction(0))
