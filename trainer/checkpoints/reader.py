"""Intervals of logical tensors, in few requests: the blocks that cover them, each checked, none read twice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise

import fsspec
import numpy as np
import torch
from torch import Tensor

from trainer.checkpoints.index import Index, Place
from trainer.checkpoints.pieces import CheckpointError, Reader, Wanted
from trainer.checkpoints.stream import data_digest

REQUEST = 1 << 26
"""Bytes of a request, at most."""
READERS = 16
MOST = 1.5
"""Bytes that may be read, to save requests, for each byte that is needed; edges of blocks count as read."""
GAP = 1 << 21
"""Bytes that take about as long as a request: 25 ms at 80 MB/s. To read over more does not pay."""


@dataclass
class _Span:
    """Bytes [begin, end) of a rank's stream, whole blocks, and where what is needed of them goes."""

    rank: int
    begin: int
    end: int
    needs: list[tuple[Place, np.ndarray]] = field(default_factory=list)


class StreamReader(Reader):
    """Reads what ranks wrote as streams."""

    def __init__(self, fs: fsspec.AbstractFileSystem, folder: str, index: Index) -> None:
        self._fs, self._folder, self._index = fs, folder, index

    def read_all(self, wanted: Sequence[Wanted]) -> list[Tensor]:
        values = [torch.empty(each.numel) for each in wanted]
        needs: dict[int, list[tuple[Place, np.ndarray]]] = defaultdict(list)
        needed = 4 * sum(each.numel for each in wanted)
        for each, value in zip(wanted, values, strict=True):
            target, filled = value.numpy().view(np.uint8), 0
            for place in self._index.find(each.name, each.role, each.start, each.numel):
                needs[place.rank].append((place, target))
                filled += (place.end - place.begin) // 4
            if filled != each.numel:
                raise CheckpointError(
                    f"{self._folder} is incomplete: it holds {filled} of the {each.numel} elements of {each.name}, "
                    f"{each.role}"
                )
        spans = [span for rank in needs for span in self._spans(rank, needs[rank])]
        bridged = _bridged(spans, MOST * needed, self._index.part)
        self._fetch(request for span in bridged for request in _requests(span, self._index.part))
        return values

    def verify(self, sizes: dict[str, int]) -> None:
        part = self._index.part
        whole = [_Span(rank, 0, length) for rank, length in enumerate(self._index.stream_bytes.tolist())]
        _side_by_side(self._check_header, (request for span in whole for request in _requests(span, part, part)))
        self._fetch(request for span in whole for request in _requests(span, part))

    def _check_header(self, span: _Span) -> None:
        file, length, digest = self._index.file(span.rank, span.begin // self._index.part)
        if data_digest(self._bytes(file, 0, length)) != digest:
            raise self._damaged(file, 0, length, "its header")

    def _spans(self, rank: int, needs: list[tuple[Place, np.ndarray]]) -> Iterator[_Span]:
        """Whole blocks that cover these places, neighbours as one."""
        block, length = self._index.block, int(self._index.stream_bytes[rank])
        span: _Span | None = None
        for need in sorted(needs, key=lambda need: need[0].begin):
            begin, end = need[0].begin // block * block, min(length, -(-need[0].end // block) * block)
            if span is None or begin > span.end:
                if span is not None:
                    yield span
                span = _Span(rank, begin, end)
            span.end = max(span.end, end)
            span.needs.append(need)
        if span is not None:
            yield span

    def _fetch(self, requests: Iterable[_Span]) -> None:
        _side_by_side(self._load, requests)

    def _load(self, span: _Span) -> None:
        part = self._index.part
        file, header, _ = self._index.file(span.rank, span.begin // part)
        shift = header - span.begin // part * part
        data = self._bytes(file, shift + span.begin, shift + span.end)
        length = self._index.block
        blocks = range(0, span.end - span.begin, length)
        for at, digest in zip(blocks, self._index.digests(span.rank, span.begin, span.end), strict=True):
            if data_digest(data[at : at + length]) != digest:
                begin = shift + span.begin + at
                raise self._damaged(file, begin, begin + length, self._index.content(span.rank, span.begin + at))
        for place, target in span.needs:
            low, high = max(place.begin, span.begin), min(place.end, span.end)
            out = place.offset + low - place.begin
            target[out : out + high - low] = np.frombuffer(data, np.uint8)[low - span.begin : high - span.begin]

    def _damaged(self, file: str, begin: int, end: int, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self._folder}/{file}, bytes {begin} to {end} ({what}) do not match their digest: the file was changed "
            "or cut short"
        )

    def _bytes(self, file: str, begin: int, end: int) -> memoryview:
        path = f"{self._folder}/{file}"
        try:
            return memoryview(self._fs.cat_file(path, start=begin, end=end))
        except FileNotFoundError:
            raise CheckpointError(f"{path} is missing: the checkpoint is incomplete") from None


def _bridged(spans: list[_Span], most: float, part: int) -> list[_Span]:
    """The same with gaps within a file read as well, the smallest first, up to `most` bytes in all.

    Each gap that is read over saves one request, so the smallest save the most. Ordered by rank, then by place.
    """
    gaps = [
        (after.begin - before.end, at)
        for at, (before, after) in enumerate(pairwise(spans), start=1)
        if before.rank == after.rank and (before.end - 1) // part == after.begin // part
    ]
    left, bridged = most - sum(span.end - span.begin for span in spans), set()
    for gap, at in sorted(gaps):
        left -= gap
        if left < 0 or gap > GAP:
            break
        bridged.add(at)
    merged: list[_Span] = []
    for at, span in enumerate(spans):
        if at in bridged:
            merged[-1].end = span.end
            merged[-1].needs += span.needs
        else:
            merged.append(span)
    return merged


def _side_by_side(work: Callable[[_Span], None], spans: Iterable[_Span]) -> None:
    """Several requests at a time. What is needed is copied out at once, so that little is held."""
    pool = ThreadPoolExecutor(READERS)
    try:
        for _ in pool.map(work, spans):
            pass
    finally:
        pool.shutdown(cancel_futures=True)


def _requests(span: _Span, part: int, most: int = REQUEST) -> Iterator[_Span]:
    """A span cut where files end, and where a request would be too large; each with its share of the needs."""
    begin = span.begin
    while begin < span.end:
        end = min(span.end, begin + most, (begin // part + 1) * part)
        needs = [need for need in span.needs if need[0].begin < end and need[0].end > begin]
        yield _Span(span.rank, begin, end, needs)
        begin = end
