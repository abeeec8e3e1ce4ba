"""Tar framing: shards written as webdataset's writer does, read by a strict reader that ends only at a legal place.

``tarfile`` (and thus webdataset) takes a damaged header in the middle of an archive for its end and says nothing. Here
every header is checked, and the caller compares what it finds with the index.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator

from data_shards.errors import RecordError
from data_shards.records.codec import SUFFIX

BLOCK = 512
_ZEROS = bytes(BLOCK)
_OWNER = "bigdata"


class ShardBuilder:
    """Collects one shard in memory; ``add`` returns where the member's payload lies.

    The bytes are those of webdataset's ``TarWriter`` with ``mtime=0``, whose import takes torch with it.
    """

    def __init__(self) -> None:
        self._buffer = io.BytesIO()
        # Streamed, as webdataset does: it ends at a multiple of 10,240 bytes
        self._writer = tarfile.open(fileobj=self._buffer, mode="w|")  # noqa: SIM115 - `finish` closes it

    @property
    def size(self) -> int:
        """Bytes so far."""
        return int(self._writer.offset)

    def add(self, key: str, payload: bytes | memoryview) -> tuple[int, int]:
        """Append ``<key>.st``; returns (start of its header, start of its payload)."""
        start = self.size
        member = tarfile.TarInfo(f"{key}{SUFFIX}")
        # A float time stamp would cost an extended header of 1 KiB a member and make shards differ by the clock.
        member.size, member.mtime, member.mode, member.uname, member.gname = len(payload), 0, 0o444, _OWNER, _OWNER
        self._writer.addfile(member, io.BytesIO(payload))
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
