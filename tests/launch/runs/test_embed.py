"""`embed` as a user runs it: in one process, over Ray, killed; the same bytes. What is refused."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

from data_shards import open_manifest, pack
from launch.errors import UsageError
from launch.runs.embed import Progress, asked_for, embed_data
from tests.data_shards.build import ListSource
from tests.data_shards.packing.remade import SCHEMA, records
from tests.launch.commands import ROOT, environment
from tests.trainer.pretrained import save_encoder

T = TypeVar("T")
NAMES = ("notes", "title", "scan", "face")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with data of many shards, and an encoder of texts and of pictures."""
    folder = tmp_path_factory.mktemp("embed")
    pack(ListSource(SCHEMA, records(200)), str(folder / "data"), chunk_records=4, shard_bytes=12_000)
    save_encoder(folder / "bert", "bert")
    save_encoder(folder / "vit", "vit")
    return folder


def encode(place: Path) -> list[str]:
    return [f"{name}={place / ('bert' if name in ('notes', 'title') else 'vit')}" for name in NAMES]


def embed(place: Path, out: str, *options: str, encoders: list[str] | None = None, overwrite: bool = False) -> None:
    own = encode(place) if encoders is None else encoders
    embed_data(str(place / "data"), own, options, str(place / out), 1, None, overwrite, 60, False)


@pytest.fixture(scope="module")
def once(place):
    """The data set as one process makes it."""
    embed(place, "once", "scan.tokens=4")
    return place / "once"


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_what_one_process_makes(place, once, capsys):
    old, new = open_manifest(str(place / "data")), open_manifest(str(once))
    assert new.records == 200 and new.splits == old.splits and len(new.shards) == len(old.shards) > 10
    specs = dict(zip(new.schema.modality_names, new.schema.modalities, strict=True))
    assert {name: (specs[name].kind, specs[name].shape, specs[name].tokens, specs[name].timed) for name in NAMES} == {
        "notes": ("vector", (32,), 0, True),
        "title": ("vector", (32,), 0, False),
        "scan": ("vector", (128,), 4, True),
        "face": ("vector", (32,), 0, False),
    }
    assert specs["notes"].encoder == specs["title"].encoder != specs["scan"].encoder == specs["face"].encoder
    said = new.lineage.embedded  # type: ignore[union-attr]
    assert set(said) == set(NAMES)
    assert said["scan"].source == str(place / "vit") and said["scan"].tokens == 4 and said["scan"].of == old.digest
    present = new.statistics["default"].modalities["notes"]
    assert present.present == old.statistics["default"].modalities["notes"].present
    assert present.objects == old.statistics["default"].modalities["notes"].objects
    # A second encoding adds to the first.
    embed(place, "one", encoders=encode(place)[:1])
    embed_data(str(place / "one"), encode(place)[1:2], [], str(place / "two"), 1, None, False, 60, False)
    line = json.loads(capsys.readouterr().out.strip().split("\n")[-1])
    two = open_manifest(str(place / "two"))
    assert set(two.lineage.embedded) == {"notes", "title"}  # type: ignore[union-attr]
    assert line["objects"] == {"title": two.source["notes"]["embedded.title"]} and line["digest"] == two.digest
    assert line["encoders"]["title"]["digest"] == specs["title"].encoder and line["cut"] == {"title": 0}


def test_what_is_refused(place, once):
    with pytest.raises(ValueError, match="once already holds a packed data set"):
        embed(place, "once")
    for own, problem in (
        ([f"labels={place / 'bert'}"], "has no modality 'labels'; it has labs, notes"),
        ([f"labs={place / 'bert'}"], "pretrained encoders read texts, pictures and waveforms, and modality labs is of"),
        ([f"notes={place / 'vit'}"], "is a model of type vit; those known here are bert"),
        ([f"notes={place / 'nowhere' / 'at' / 'all'}"], "nowhere/at/all"),
    ):
        with pytest.raises(ValueError, match=problem):
            embed(place, "refused", encoders=own)
    assert not (place / "refused").exists()
    with pytest.raises(UsageError, match=r"modality notes of .*once is embedded already, by encoder [0-9a-f]{12}"):
        embed_data(str(once), encode(place)[:1], [], str(place / "refused"), 1, None, False, 60, False)


@pytest.mark.parametrize(
    ("encode", "options", "problem"),
    [
        (["notes"], [], "--encode 'notes': write MODALITY=FOLDER"),
        (["=x"], [], "--encode '=x': write MODALITY=FOLDER"),
        (["a=x", "a=y"], [], "--encode a is given twice"),
        (["a=x"], ["b.tokens=2"], "-o 'b.tokens=2': write MODALITY.KEY=VALUE, for a modality that is embedded (a) and"),
        (["a=x"], ["a.train=all"], "one of tokens, dtype, max_tokens, max_seconds"),
        (["a=x"], ["a.tokens=many"], "-o tokens: "),
        (["a=x"], ["a.tokens=0"], "tokens must be pooled, or a number from 1"),
    ],
)
def test_arguments(encode, options, problem):
    with pytest.raises(UsageError) as error:
        asked_for(encode, options)
    assert problem in str(error.value)


def test_arguments_become_settings():
    found = asked_for(["a.b=x", "c=y/z"], ["a.b.tokens=3", "c.dtype=bfloat16", "c.max_seconds=2.5"])
    assert (found["a.b"].source, found["a.b"].tokens, found["c"].tokens) == ("x", 3, "pooled")
    assert (found["c"].source, found["c"].dtype, found["c"].max_seconds) == ("y/z", "bfloat16", 2.5)


def test_progress_counts_what_is_encoded_now():
    from types import SimpleNamespace

    def shard(records: int, objects: int, fresh: bool = True) -> SimpleNamespace:
        notes = {"embedded.a": objects, "embedded_cut.a": 1}
        return SimpleNamespace(sealed=SimpleNamespace(records=records), notes=notes, fresh=fresh)

    progress = Progress(100)
    progress.hear(shard(30, 1000, fresh=False))  # type: ignore[arg-type]
    assert progress.rate is None and progress._words(0.0) == "30 of 100 records, complete before"
    # The first one tells when work has begun, and not how fast it goes.
    progress.hear(shard(10, 5000))  # type: ignore[arg-type]
    assert progress.rate is None and progress._words(0.0) == "40 of 100 records"
    assert progress._since is not None
    progress._since -= 10
    progress.hear(shard(20, 300))  # type: ignore[arg-type]
    assert progress.rate == pytest.approx(30, rel=0.01)
    # Ten seconds for twenty records: as many again for each twenty of the forty that are left.
    assert progress._words(progress._since + 10) == "60 of 100 records, 30 objects a second, about 20 s left"


@pytest.mark.ray
@pytest.mark.long
def test_workers_over_ray_make_the_same_bytes_also_when_the_driver_dies_and_then_a_worker(place, once):
    options = ["--out", str(place / "two_workers"), "-o", "scan.tokens=4", "--workers", "2"]
    arguments = ["embed", str(place / "data"), *(word for own in encode(place) for word in ("--encode", own)), *options]
    out = place / "two_workers"
    with begun(arguments, place / "first.log") as first:
        awaited(first, place / "first.log", lambda: list(out.glob("done-*.json")), "a complete shard")
    complete = len(list(out.glob("done-*.json")))
    assert complete > 0 and not (out / "manifest.json").exists()
    log = place / "second.log"
    with begun(arguments, log) as second:
        # In the middle of a shard: somebody has to make it again, and the one that died is started again.
        workers = awaited(second, log, lambda: workers_below(second.pid, 2), "workers")
        busy = awaited(second, log, lambda: next(filter(at_work, workers), None), "a worker that makes a shard", 0.001)
        os.kill(busy, signal.SIGKILL)
        assert second.wait(timeout=300) == 0, log.read_text()
    line = json.loads(next(text for text in reversed(log.read_text().splitlines()) if text.startswith("{")))
    assert line["workers"] == 2 and line["made"] + complete == line["shards"] and line["made_again"] == 0
    there = {name: data for name, data in files(out).items() if not name.startswith(".")}
    assert there == files(once)


@contextlib.contextmanager
def begun(arguments: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The command, until the context ends; then it is killed. What it says is in the log, the result last."""
    with log.open("w") as file:
        command = [sys.executable, "-m", "launch", *arguments]
        process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=file, stderr=file)
        try:
            yield process
        finally:
            process.kill()
            process.wait(timeout=60)


def awaited(process: subprocess.Popen[bytes], log: Path, look: Callable[[], T], what: str, every_s: float = 0.05) -> T:
    """What `look` finds while the process lives. A process that has ended is not waited for: its log is shown."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if found := look():
            return found
        assert process.poll() is None, f"ended with {process.returncode} before {what} was there: {log.read_text()}"
        time.sleep(every_s)
    raise AssertionError(f"no {what}: {log.read_text()}")


def workers_below(pid: int, count: int) -> list[int]:
    """Process ids of the Ray actors that embed, once there are so many."""
    below = psutil.Process(pid).children(recursive=True) if psutil.pid_exists(pid) else []
    found = [process.pid for process in below if title(process.pid).startswith("ray::EmbedWorker")]
    return found if len(found) == count else []


def at_work(pid: int) -> bool:
    """Whether the actor makes a shard: Ray shows the method that runs."""
    return title(pid).startswith("ray::EmbedWorker.make")


def title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""  # it has ended
