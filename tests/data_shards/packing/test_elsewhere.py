"""A data set that grows on an object store, and is looked at and copied through a web server: the same as in files."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from data_shards import DataConfig, Manifest, StepLoader, open_manifest, pack
from data_shards.crew import Here
from data_shards.errors import ShardError
from data_shards.inspection.verify import VERIFY, Damage, Verifier, damaged_tables, verify
from data_shards.packing.upkeep.copy import copy
from data_shards.packing.upkeep.drop import drop_version
from data_shards.shards.storage import Storage
from data_shards.shards.versions import files_of, versions_of
from tests.data_shards.build import SCHEMA, ListSource, make_record
from tests.object_store import local_s3

SIZES = {"chunk_records": 5, "shard_bytes": 20_000}
STEPS = (0, 20, 25, 40)


class _Server(http.server.SimpleHTTPRequestHandler):
    """Answers ranges and lists folders, unless it does not."""

    protocol_version = "HTTP/1.1"
    ranges = listed = True

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        path, wanted = Path(self.translate_path(self.path)), self.headers.get("Range")
        if not (wanted and self.ranges and path.is_file()):
            super().do_GET()
            return
        data, (first, last) = path.read_bytes(), wanted.removeprefix("bytes=").split("-")
        start, end = int(first), int(last) if last else len(data) - 1
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{end}/{len(data)}")
        self.send_header("Content-Length", str(len(data[start : end + 1])))
        self.end_headers()
        self.wfile.write(data[start : end + 1])

    def list_directory(self, path):  # type: ignore[no-untyped-def]
        return super().list_directory(path) if self.listed else self.send_error(403)


class _Plain(_Server):
    ranges = listed = False


@contextmanager
def web_server(folder: Path, kind: type[_Server] = _Server) -> Iterator[str]:
    """URL of a folder, to be read."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(kind, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def grown(url: str) -> list[Manifest]:
    records, found = [make_record(i) for i in range(STEPS[-1])], list[Manifest]()
    for number, (start, stop) in enumerate(pairwise(STEPS)):
        pack(ListSource(SCHEMA, records[start:stop]), url, append=number > 0, **SIZES)  # type: ignore[arg-type]
        found.append(open_manifest(url))
    return found


def contents(url: str) -> dict[str, bytes]:
    storage = Storage(url)
    return {name: storage.read(name) for name in storage.names()}


def everything(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def looked_at(url: str, deep: bool = True) -> list[Damage]:
    manifest = open_manifest(url)
    with Here().team({VERIFY: Verifier(url, manifest.digest, deep)}) as team:
        findings = verify(manifest, team, {})
    assert len(findings) == len(manifest.shards)
    return [*damaged_tables(manifest), *(damage for finding in findings for damage in finding.damages)]


def keys(manifest: Manifest) -> list[str]:
    loader = StepLoader(manifest, DataConfig(url=manifest.url), "train", batch_size=8)
    return [key for step in loader.steps(0) for batch in step.micro_batches for key in batch.keys]


@pytest.mark.long
def test_on_an_object_store_as_in_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = grown(str(tmp_path / "set"))
    files = contents(str(tmp_path / "set"))
    with local_s3(monkeypatch) as bucket:
        url, copied = f"{bucket}/set", f"{bucket}/copy"
        there = grown(url)
        assert [m.digest for m in there] == [m.digest for m in local] and contents(url) == files
        assert keys(there[-1]) == keys(local[-1]) and len(keys(there[-1])) > 10
        found = versions_of(url)
        assert [(v.number, v.digest, v.parent, v.records) for v in found] == [
            (v.number, v.digest, v.parent, v.records) for v in versions_of(str(tmp_path / "set"))
        ]
        assert [open_manifest(v.url).digest for v in found] == [m.digest for m in local]
        assert looked_at(url) == []
        report = copy(str(tmp_path / "set"), copied, Here())
        wanted = {name: files[name] for name in {*files_of(local[-1]), "manifest.json"}}
        assert contents(copied) == wanted and report["copied"] == report["bytes"] - len(files["manifest.json"])
        copy(found[0].url, str(tmp_path / "first"), Here())
        assert open_manifest(str(tmp_path / "first")).digest == local[0].digest
        assert drop_version(url, "2") == drop_version(str(tmp_path / "set"), "2")
        assert contents(url) == contents(str(tmp_path / "set"))
        # Damage: the same words and records, and a copy that goes on when it is mended
        name = local[-1].shards[2].name
        hurt = bytearray(files[name])
        hurt[700] ^= 1
        Storage(url).write(name, bytes(hurt))
        (tmp_path / "set" / name).write_bytes(hurt)
        assert looked_at(url) == looked_at(str(tmp_path / "set")) != []
        with pytest.raises(ShardError, match=f"{name}.*another SHA-256 than the manifest says: it is not copied"):
            copy(url, str(tmp_path / "back"), Here())
        before = {path.name for path in (tmp_path / "back").iterdir()}
        Storage(url).write(name, files[name])
        assert copy(url, str(tmp_path / "back"), Here())["copied"] == sum(
            len(data) for other, data in wanted.items() if other not in before and other != "manifest.json"
        )
        assert contents(str(tmp_path / "back")) == wanted


@pytest.mark.long
def test_through_a_web_server(tmp_path: Path) -> None:
    local = grown(str(tmp_path / "set"))
    files = contents(str(tmp_path / "set"))
    with web_server(tmp_path) as root:
        url = f"{root}/set"
        assert open_manifest(url).digest == local[-1].digest and keys(open_manifest(url)) == keys(local[-1])
        assert [(v.number, v.digest) for v in versions_of(url)] == [(n + 1, m.digest) for n, m in enumerate(local)]
        assert looked_at(url) == [] and looked_at(url, deep=False) == []
        report = copy(versions_of(url)[1].url, str(tmp_path / "copy"), Here())
        assert report["digest"] == local[1].digest and contents(str(tmp_path / "copy")).keys() == {
            *files_of(local[1]), "manifest.json",
        }  # fmt: skip
        hurt = bytearray(files[local[-1].shards[2].name])
        hurt[700] ^= 1
        (tmp_path / "set" / local[-1].shards[2].name).write_bytes(hurt)
        assert looked_at(url) == looked_at(str(tmp_path / "set")) != []
        before = everything(tmp_path)
        for refused in (
            lambda: copy(str(tmp_path / "copy"), f"{root}/new", Here()),
            lambda: drop_version(url, "1"),
            lambda: pack(ListSource(SCHEMA, [make_record(50)]), url, append=True),
        ):
            with pytest.raises(ValueError, match=r"http://127.0.0.1:\d+/\w+ can only be read"):
                refused()
        assert everything(tmp_path) == before
    with web_server(tmp_path, _Plain) as root:
        plain = open_manifest(f"{root}/set")
        assert plain.digest == local[-1].digest and looked_at(f"{root}/set", deep=False) == []
        with pytest.raises(ValueError, match="does not say which files it has"):
            versions_of(f"{root}/set")
        with pytest.raises(ShardError, match=r"gave \d+ bytes where \d+ were asked for: it knows no ranges.*attempt 1"):
            keys(plain)
        (tmp_path / "set" / local[-1].shards[2].name).write_bytes(files[local[-1].shards[2].name])
        assert copy(f"{root}/set", str(tmp_path / "whole"), Here())["digest"] == local[-1].digest
        assert keys(open_manifest(str(tmp_path / "whole"))) == keys(local[-1])
