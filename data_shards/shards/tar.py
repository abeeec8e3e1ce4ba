"""Tar framing: shards written with webdataset's writer, read by a strict reader that ends only at a legal place.

``tarfile`` (and thus webdataset) takes a damaged header in the middle of an archive for its end and says nothing. Here
every header is checked, and the caller compares what it finds with the index.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

from data_shards.errors import RecordError
from data_shards.records.codec import SUFFIX

BLOCK = 512
_ZEROS = bytes(BLOCK)


class ShardBuilder:
    """Collects one shard in memory; ``add`` returns where the member's payload lies."""

    def __init__(self) -> None:
        from webdataset import TarWriter

        self._buffer = io.BytesIO()
        # mtime=0: a float time stamp would cost a 1 KiB extended header per member and make shards differ by the clock.
        self._writer = TarWriter(self._buffer, encoder=False, mtime=0)

    @property
    def size(self) -> int:
        """Bytes so far."""
        return int(self._writer.tarstream.offset)

    def add(self, key: str, payload: bytes) -> tuple[int, int]:
        """Append ``<key>.st``; returns (start of its header, start of its payload)."""
        start = self.size
        self._writer.write({"__key__": key, SUFFIX[1:]: payload})
        payload_start = start + BLOCK
        assert self.size == payload_start + -(-len(payload) // BLOCK) * BLOCK, "member has one plain header"
        return start, payload_start

    def finish(self) -> bytes:
        """The whole archive."""
        self._writer.close()
        return self._buffer.getvalue()


def members(chunk: memoryview) -> Iterator[tuple[str, int, int]]:
    """Yield (name, payload start, payload size) of the regular members that fill ``chunk`` exactly.

    Raises:
        RecordError: a damaged header, a member that is not a plain file in the archive's root, or a cut member.
    """
    position = 0
    while position < len(chunk):
        if position + BLOCK > len(chunk):
            raise RecordError(f"cut inside the tar header at {position}", "tar")
        name, size = parse_header(bytes(chunk[position : position + BLOCK]), position)
        start = position + BLOCK
        position = start + -(-size // BLOCK) * BLOCK
        if position > len(chunk):
            raise RecordError(f"member {name} claims {size} bytes, {len(chunk) - start} are left", "tar")
        yield name, start, size


def parse_header(header: bytes, position: int) -> tuple[str, int]:
    """(name, size) of a plain ustar member; RecordError for everything else."""
    if header == _ZEROS:
        raise RecordError(f"an empty tar header at {position}, before the end", "tar")
    try:
        checksum = int(header[148:156].rstrip(b"\0 ") or b"0", 8)
        size = int(header[124:136].rstrip(b"\0 ") or b"0", 8)
        name = header[:100].split(b"\0", 1)[0].decode("ascii")
    except ValueError as error:
        raise RecordError(f"a damaged tar header at {position}: {error}", "tar") from error
    if sum(header) - sum(header[148:156]) + 8 * 32 != checksum:
        raise RecordError(f"a tar header with a wrong checksum at {position}", "tar")
    if header[156:157] not in (b"0", b"\0") or header[345:346] != b"\0":
        raise RecordError(f"member {name!r} of type {header[156:157]!r} at {position} is not a plain file", "tar")
    if "/" in name or "\\" in name or not name.endswith(SUFFIX) or name.count(".") != 1 or size < 0:
        raise RecordError(f"member name {name!r} at {position} is not <key>{SUFFIX}", "tar")
    return name, size
