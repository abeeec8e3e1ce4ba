"""URLs that are allowed, ranged reads through faulty servers, object stores, and the local copy of remote shards."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import boto3
import numpy as np
import pytest
from moto.server import ThreadedMotoServer
from pydantic import ValidationError

from data_shards import DataConfig, Manifest, ManifestError, ShardError, StepLoader, open_manifest, pack
from data_shards.shards.cache import ShardCache
from data_shards.shards.contents.shards import Shard
from data_shards.shards.reader import Reader
from data_shards.shards.storage import Storage, check_url
from tests.data_shards.build import SCHEMA, ListSource, make_record, make_set


@pytest.mark.parametrize(
    "url",
    [
        "pipe:cat x", "pipe://cat", "simplecache::file:///etc", "zip://a.tar::s3://b/c", "ftp://h/x", "ssh://h/x",
        "github://a:b@c/", "reference://x", "hf://x/y", "http://169.254.169.254/latest", "http://[fe80::1]/x",
        "https://user:secret@host/x", "s3://key:secret@bucket/x", "gopher://x",
    ],
)  # fmt: skip
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ValueError) as caught:
        Storage(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["s3://b/x", "gs://b/x", "http://h/x", "https://h/x", "memory://x", "file:///x", "local:///x", "/x", "x"]
)
def test_allowed_urls(url: str) -> None:
    assert check_url(url)[0] in ("s3", "gs", "http", "https", "memory", "file")


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "", ".", "..", "x\0y", "s3://b/x", "-rf"])
def test_file_names_stay_in_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="leaves the folder"):
        Storage(str(tmp_path)).read(name)


@pytest.mark.parametrize(
    "options", [{"secret": "x"}, {"client_kwargs": {"aws_secret_access_key": "x"}}, {"token": "x"}]
)
def test_credentials_do_not_belong_in_recipes(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="looks like a credential"):
        DataConfig(url="s3://b/x", storage_options=options)


def test_anonymous_access_is_no_credential() -> None:
    assert DataConfig(url="gs://b/x", storage_options={"token": "anon", "client_kwargs": {"region_name": "x"}})


def test_local_writes_leave_no_temporary_file(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "deep" / "folder"))
    storage.write("a.bin", b"12345")
    assert storage.read("a.bin", 1, 3) == b"23" and storage.names() == ["a.bin"] and storage.size("a.bin") == 5
    with pytest.raises(EOFError, match="got 1 bytes of the 6 asked for"):
        storage.read("a.bin", 4, 10)
    storage.delete("a.bin")
    assert storage.names() == [] and not storage.exists("a.bin")


class Faulty(http.server.BaseHTTPRequestHandler):
    """Serves a folder with ranges, and fails as ``faults`` says: one entry is used up by each GET of a shard."""

    protocol_version = "HTTP/1.1"
    folder = Path()
    faults: ClassVar[list[str]] = []
    gets = 0
    together = threading.Barrier(1)

    def log_message(self, *args: object) -> None:
        """Silent."""

    def do_HEAD(self) -> None:
        self.answer(False)

    def do_GET(self) -> None:
        self.answer(True)

    def answer(self, body: bool) -> None:
        path = self.folder / self.path.rsplit("/", 1)[-1] if self.path.startswith("/set/") else Path("nowhere")
        fault = ""
        if body and path.suffix == ".tar":
            type(self).gets += 1
            fault = self.faults.pop(0) if self.faults else ""
        if fault == "meet":
            self.together.wait(60)
        if not path.is_file() or fault.isdigit():
            self.send_response(int(fault or 404))
            if fault == "302":
                self.send_header("Location", f"http://127.0.0.1:{self.server.server_port}/set/{path.name}")  # type: ignore[attr-defined]
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data, wanted = path.read_bytes(), self.headers.get("Range")
        total = len(data)
        if wanted:
            start, end = wanted.removeprefix("bytes=").split("-")
            data = data[int(start) : int(end) + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{int(start) + len(data) - 1}/{total}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if body and fault == "flip":
            data = data[:-700] + bytes([data[-700] ^ 1]) + data[-699:]
        self.wfile.write((data[: len(data) // 2] if fault == "cut" else data) if body else b"")
        if fault == "cut":
            self.close_connection = True


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """URL of a served data set of 60 records."""
    make_set(tmp_path / "set")
    Faulty.folder, Faulty.faults, Faulty.gets = tmp_path / "set", [], 0
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Faulty) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}/set"
        httpd.shutdown()
        thread.join()


def run(url: str, **fields: object) -> tuple[list[str], int]:
    """(keys of an epoch, retries)."""
    config = DataConfig(url=url, retry_delay_s=0.001, **fields)  # type: ignore[arg-type]
    steps = list(StepLoader(open_manifest(url, config.storage_options), config, "train", 8).steps(0))
    return [k for s in steps for k in s.micro_batches[0].keys], sum(s.io.get("retries", 0) for s in steps)


STEP_CHUNKS = 7
TRAIN = [f"r{i:05d}" for i in range(60) if i % 5 < 3]


@pytest.mark.parametrize("fault", ["503", "500", "404", "cut"])
def test_transient_faults_are_retried_and_counted(server: str, fault: str) -> None:
    Faulty.faults = [fault, fault, "", fault]
    keys, retries = run(server)
    assert sorted(keys) == TRAIN and retries == 3


def test_a_steps_chunks_are_asked_for_at_once_and_each_once(server: str) -> None:
    """The answers to the first requests wait for each other."""
    expected, Faulty.gets = run(server)[0], 0
    Faulty.faults, Faulty.together = ["meet"] * STEP_CHUNKS, threading.Barrier(STEP_CHUNKS)
    assert run(server) == (expected, 0)
    manifest = open_manifest(server)
    assert Faulty.gets == np.count_nonzero(manifest.counts("default", "train"))
    # No more at a time than memory holds: the least that can be kept is one chunk
    reader = Reader(manifest, DataConfig(url=server), "train")
    reader.config = reader.config.model_copy(update={"memory_bytes": int(manifest.chunks.length_K[:3].sum())})
    reader.read(np.arange(8), np.zeros(8, np.int64))
    shards = {manifest.chunks.place(chunk)[0] for chunk in range(8)}
    assert reader.held_bytes <= reader.config.memory_bytes and reader.io["reads"] == 8 + len(shards)


def test_a_flipped_bit_on_the_way_is_read_again(server: str) -> None:
    Faulty.faults = ["flip"]
    keys, retries = run(server)
    assert sorted(keys) == TRAIN and retries == 0  # not a failed read, but a checksum that did not agree


def test_permanent_faults_end_with_the_place(server: str) -> None:
    Faulty.faults = ["503"] * 1000
    with pytest.raises(ShardError, match=r"chunk \d+, bytes \d+\.\.\d+: cannot be read: .*attempt 3"):
        run(server, retries=2)
    assert Faulty.gets == 3 * STEP_CHUNKS, "the chunks of the first step, three times each"


def test_redirects_are_not_followed_unless_asked(server: str) -> None:
    Faulty.faults = ["302"] * 1000
    with pytest.raises(ShardError):
        run(server, retries=0)
    Faulty.faults = ["302"]
    assert sorted(run(server, retries=0, storage_options={"allow_redirects": True})[0]) == TRAIN


def test_a_server_without_a_manifest(server: str) -> None:
    with pytest.raises(ManifestError, match="is not a packed data set"):
        open_manifest(server.replace("/set", "/x"), retries=0)


def test_http_cannot_be_packed_into(server: str) -> None:
    with pytest.raises(ValueError, match="can only be read"):
        make_set(server + "-new", overwrite=True)


def test_the_cache_fetches_each_shard_once(server: str, tmp_path: Path) -> None:
    shards = len(open_manifest(server).shards)
    for expected in (shards, shards):  # the second epoch finds everything
        assert sorted(run(server, cache_dir=str(tmp_path / "cache"))[0]) == TRAIN
        assert Faulty.gets == expected
    names = {path.name for path in (tmp_path / "cache").glob("*.tar")}
    assert names == {f"{shard.sha256}.tar" for shard in open_manifest(server).shards}


def test_a_damaged_copy_is_fetched_again(server: str, tmp_path: Path) -> None:
    run(server, cache_dir=str(tmp_path / "cache"))
    for path in (tmp_path / "cache").glob("*.tar"):
        path.write_bytes(path.read_bytes()[:-40_000] + bytes(40_000))
    assert sorted(run(server, cache_dir=str(tmp_path / "cache"))[0]) == TRAIN


def test_a_wrong_download_is_never_kept(server: str, tmp_path: Path) -> None:
    Faulty.faults = ["flip"]
    assert sorted(run(server, cache_dir=str(tmp_path / "cache"))[0]) == TRAIN
    for path in (tmp_path / "cache").glob("*.tar"):
        assert path.stem in {shard.sha256 for shard in open_manifest(server).shards}


def test_the_cache_stays_below_its_limit(server: str, tmp_path: Path) -> None:
    manifest = open_manifest(server)
    largest = max(shard.bytes for shard in manifest.shards)
    cache = ShardCache(str(tmp_path / "cache"), 2 * largest)
    for shard in manifest.shards:
        assert cache.read(manifest.storage, shard, 0, 512) == manifest.storage.read(shard.name, 0, 512)
        held = [path.stat().st_size for path in (tmp_path / "cache").glob("*.tar")]
        assert sum(held) <= 2 * largest and f"{shard.sha256}.tar" in {p.name for p in (tmp_path / "cache").iterdir()}
    assert ShardCache(str(tmp_path / "tiny"), 100).read(manifest.storage, manifest.shards[0], 0, 512) is None


def test_equal_names_of_two_data_sets_do_not_meet_in_the_cache(server: str, tmp_path: Path) -> None:
    manifest = open_manifest(server)
    shard = manifest.shards[0]
    other = Shard(shard.name, shard.bytes, "0" * 64, shard.records, shard.index, shard.chunks)
    cache = ShardCache(str(tmp_path / "cache"), 1 << 30)
    assert cache.read(manifest.storage, shard, 0, 512) is not None
    assert cache.read(manifest.storage, other, 0, 512) is None  # the bytes there are not what that manifest names


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Storage options of a bucket ``data`` in a local S3."""
    for name, value in {"ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "y", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    _, port = server.get_host_and_port()
    url = f"http://127.0.0.1:{port}"
    boto3.client("s3", endpoint_url=url).create_bucket(Bucket="data")
    yield {"endpoint_url": url}
    server.stop()


def test_an_object_store_end_to_end(bucket: dict[str, Any], tmp_path: Path) -> None:
    remote = pack_remote(bucket)
    local = make_set(tmp_path, 40)
    assert remote.digest == local.digest
    keys, _ = run("s3://data/sets/one", storage_options=bucket, cache_dir=str(tmp_path / "cache"))
    assert sorted(keys) == [f"r{i:05d}" for i in range(40) if i % 5 < 3]
    with pytest.raises(ManifestError, match="is not a packed data set"):
        open_manifest("s3://data/sets/two", bucket, retries=0)
    with pytest.raises(ValueError, match="already holds a packed data set"):
        pack_remote(bucket)


def pack_remote(options: dict[str, Any]) -> Manifest:
    source = ListSource(SCHEMA, [make_record(i) for i in range(40)])
    pack(source, "s3://data/sets/one", chunk_records=5, shard_bytes=20_000, storage_options=options)
    return open_manifest("s3://data/sets/one", options)
