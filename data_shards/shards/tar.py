"""Tar framing: shards written as webdataset's writer does, read by a strict reader that ends only at a legal place.

``tarfile`` (and thus webdataset) takes a damaged header in the middle of an archive for its end and says nothing. Here
every header is checked, and the caller compares what it finds with the index.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator

from data_shards.errors import RecordError
from data_shards.records.codec import SUFFIX

BLOCK = 512
_ZEROS = bytes(BLOCK)
_OWNER = "bigdata"
_NAME, _SIZE, _SUM = slice(0, 100), slice(124, 135), slice(148, 154)  # of a header


class ShardBuilder:
    """Collects one shard in memory; ``add`` returns where the member's payload lies.

    The bytes are those of webdataset's ``TarWriter`` with ``mtime=0``, whose import takes torch with it. Headers differ
    in name, size and sum only, so `tarfile` makes one, and the others are copies: a tenth of the time a member.
    """

    def __init__(self) -> None:
        self._pieces: list[bytes | bytearray | memoryview] = []
        self._header, self._sum = _header()
        self.size = 0
        """Bytes so far."""

    def add(self, key: str, payload: bytes | memoryview) -> tuple[int, int]:
        """Append ``<key>.st``; returns (start of its header, start of its payload)."""
        start, name, size = self.size, f"{key}{SUFFIX}".encode("ascii"), b"%011o" % len(payload)
        assert len(name) <= 100 and len(size) == 11, "member has one plain header"
        header = self._header.copy()
        header[: len(name)], header[_SIZE] = name, size
        header[_SUM] = b"%06o" % (self._sum + sum(name) + sum(size))
        self._pieces += header, payload, _ZEROS[: -len(payload) % BLOCK]
        self.size = start + BLOCK + -(-len(payload) // BLOCK) * BLOCK
        return start, start + BLOCK

    def finish(self) -> bytes:
        """The whole archive."""
        # Two empty blocks, and more up to a multiple of what a tape takes at a time, as webdataset streams it.
        end = -(-(self.size + 2 * BLOCK) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE
        return b"".join([*self._pieces, bytes(end - self.size)])


def _header() -> tuple[bytearray, int]:
    """A member's header without name and size, and the sum of its bytes."""
    # A float time stamp would cost an extended header of 1 KiB a member and make shards differ by the clock.
    member = tarfile.TarInfo()
    member.mtime, member.mode, member.uname, member.gname = 0, 0o444, _OWNER, _OWNER
    header = bytearray(member.tobuf(tarfile.PAX_FORMAT))
    for field, empty in ((_NAME, 0), (_SIZE, 0), (slice(148, 156), 32)):
        header[field] = bytes([empty]) * (field.stop - field.start)
    total = sum(header)
    header[154:156] = b"\0 "
    return header, total


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
