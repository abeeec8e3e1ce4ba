"""Pictures of a film at times: the one that is seen every so many seconds, or the key frames."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from data_shards.sources.readers.picture_files import MAX_PIXELS, Decoded
from data_shards.sources.readers.recordings.container import begins, bounded, decoded, open_film
from data_shards.sources.readers.recordings.recording import SignalError, Source


@dataclass(frozen=True)
class Frame:
    """A picture and its time.

    Attributes:
        time: seconds since the start of the film, or of the stretch of it. picture: as from a picture's file.
    """

    time: Fraction
    picture: Decoded


def film_frames(
    source: Source, frames: Fraction | Literal["key"], start: Fraction = Fraction(0), end: Fraction | None = None
) -> Iterator[Frame]:
    """The wanted pictures of a film in order, decoded one after the other.

    Args:
        frames: seconds from one picture to the next, beginning with the film or the stretch of it, or its key frames
            as the codec has them. start, end: in seconds of the film; what is at ``end`` does not belong to it.

    Raises:
        SignalError: no film, a damaged one, one without pictures, or a stretch that it does not have.
    """
    with open_film(source) as film:
        if not film.streams.video:
            raise SignalError("it has no pictures")
        stream = bounded(film.streams.video[0])
        stream.thread_type = "AUTO"
        shown = _shown(film, stream, keys_only=frames == "key")
        chosen, some = _keys(shown, start, end) if frames == "key" else _every(shown, frames, start, end), False
        for frame in chosen:
            some = True
            yield frame
        if not some:
            raise SignalError(f"no picture of it lies {_stretch(start, end)}")


def _stretch(start: Fraction, end: Fraction | None) -> str:
    return f"from second {float(start):g} {'on' if end is None else f'to {float(end):g}'}"


def _shown(film: Any, stream: Any, keys_only: bool) -> Iterator[tuple[Fraction, Any, Fraction]]:
    """(second of the film that it is seen from, PyAV's frame, how long it is seen) in the order of time."""
    if keys_only:
        stream.codec_context.skip_frame = "NONKEY"
    zero, last = begins(film), Fraction(0)
    for frame in decoded(film, stream):
        if frame.pts is None:
            raise SignalError("its pictures have no times; convert it, e.g. to .mp4")
        if frame.width * frame.height > MAX_PIXELS:
            raise SignalError(f"{frame.width} x {frame.height} pixels, at most {MAX_PIXELS} are read")
        time = frame.pts * frame.time_base - zero
        if frame.is_corrupt or time < last:
            what = "is damaged" if frame.is_corrupt else f"comes after one of second {float(last):g}"
            raise SignalError(f"its picture of second {float(time):g} {what}")
        yield time, frame, _duration(frame, stream)
        last = time


def _duration(frame: Any, stream: Any) -> Fraction:
    """Of a frame in seconds; 0 where the film does not say."""
    if frame.duration:
        return Fraction(frame.duration * frame.time_base)
    return Fraction(1 / stream.average_rate) if stream.average_rate else Fraction(0)


def _keys(shown: Iterator[tuple[Fraction, Any, Fraction]], start: Fraction, end: Fraction | None) -> Iterator[Frame]:
    for time, frame, _ in shown:
        if end is not None and time >= end:
            return
        if time >= start:
            yield Frame(time - start, _upright(frame))


def _every(
    shown: Iterator[tuple[Fraction, Any, Fraction]], step: Fraction, start: Fraction, end: Fraction | None
) -> Iterator[Frame]:
    """The picture that is seen at start, start + step, ...: the last one that began by then."""
    moment, seen, last, until = start, None, Fraction(0), Fraction(0)
    for time, frame, duration in shown:
        while seen is not None and moment < time and (end is None or moment < end):
            yield Frame(moment - start, _upright(seen))
            moment += step
        if end is not None and time >= end:
            return
        if seen is None and time > moment:
            # Sound that begins before the pictures: nothing is seen yet
            moment += step * -((moment - time) // step)
        seen, last, until = frame, time, time + duration
    while seen is not None and (moment < until or moment == last) and (end is None or moment < end):
        yield Frame(moment - start, _upright(seen))
        moment += step
    if end is not None and end > until:
        raise SignalError(f"the stretch to second {float(end):g} goes on after its end, which is {float(until):g}")


def _upright(frame: Any) -> Decoded:
    """Upright, as red, green and blue of 8 bits."""
    picture, turned = frame.to_image(), int(frame.rotation) % 360
    if turned:
        picture = picture.rotate(turned, expand=True)
    return Decoded(picture, turned=bool(turned))
