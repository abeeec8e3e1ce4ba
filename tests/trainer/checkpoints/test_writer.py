"""Storage that fails: training goes on, nothing half-written counts, and the next checkpoint succeeds."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fsspec.implementations.local import LocalFileSystem

from benchmarks.finished_run import newest_checkpoint
from data_shards.errors import LeaseLostError
from parallel import Fragment
from tests.object_store import local_s3
from trainer.checkpoints.find import committed_paths, open_checkpoint
from trainer.checkpoints.writer import CheckpointWriter
from trainer.worker.mailbox import Mailbox


class StillEngine:
    """An engine whose state is two small tensors, split into uneven fragments."""

    averages = False

    def __init__(self) -> None:
        self.flat = torch.arange(10.0)

    def logical_parameters(self) -> dict[str, tuple[int, ...]]:
        return {"w": (2, 5)}

    def buffers(self) -> dict[str, torch.Tensor]:
        return {"nudges": torch.tensor([3, -1])}

    def fragments(self) -> list[Fragment]:
        cuts = [(0, 3), (3, 10)]
        return [
            Fragment("w", (2, 5), a, b - a, self.flat[a:b], self.flat[a:b] + 0.5, self.flat[a:b] * 2) for a, b in cuts
        ]


class FullDisk(LocalFileSystem):
    """Takes `room` bytes, then no more."""

    cachable = False
    room = 0

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if "w" in mode:
            raise OSError(errno.ENOSPC, "No space left on device", path)
        return super().open(path, mode, **options)


def meta(step: int) -> dict[str, Any]:
    return {"step": step, "score": None, "progress": {"epoch": 0}}


def writer(folder: Path, **options: Any) -> CheckpointWriter:
    return CheckpointWriter(str(folder), 0, 1, "attempt", keep_last=2, keep_best=0, **options)


def test_a_full_disk_does_not_end_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keeper, engine = writer(tmp_path), StillEngine()
    keeper.save(engine, meta(1))  # type: ignore[arg-type]
    assert keeper.settle()
    healthy, keeper._fs = keeper._fs, FullDisk()
    with caplog.at_level("WARNING"):
        keeper.save(engine, meta(2))  # type: ignore[arg-type]
        assert not keeper.settle()
    assert "step 2 could not be written ([Errno 28] No space left" in caplog.text
    assert "training goes on" in caplog.text
    assert [path[-1] for path in committed_paths(str(tmp_path))] == ["1"]
    keeper._fs = healthy
    keeper.save(engine, meta(3))  # type: ignore[arg-type]
    assert keeper.settle() and keeper.failed is None
    assert newest_checkpoint(str(tmp_path)).step == 3
    assert not (tmp_path / "checkpoints" / "step-0000000002").exists(), "the leftover is removed"


class Fence:
    """A guard whose name is lost after so many looks."""

    def __init__(self, looks: int) -> None:
        self.left = looks

    def check(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise LeaseLostError("the run belongs to another process by now")

    confirm = check


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_whoever_has_lost_the_run_commits_and_removes_nothing(tmp_path: Path) -> None:
    """Whenever it finds out: before its folder, its files, the index, the marker, or clearing up."""
    engine = StillEngine()
    keeper = CheckpointWriter(str(tmp_path), 0, 1, "attempt", keep_last=1, keep_best=0)
    keeper.save(engine, meta(1))  # type: ignore[arg-type]
    assert keeper.settle()
    before = tree(tmp_path)
    for looks in range(4):
        late = CheckpointWriter(str(tmp_path), 0, 1, f"late {looks}", keep_last=1, keep_best=0, guard=Fence(looks))
        late.save(engine, meta(2))  # type: ignore[arg-type]
        with pytest.raises(LeaseLostError, match="another process"):
            late.settle()
        assert [path[-1] for path in committed_paths(str(tmp_path))] == ["1"]
        assert looks or tree(tmp_path) == before
    late = CheckpointWriter(str(tmp_path), 0, 1, "late 4", keep_last=1, keep_best=0, guard=Fence(4))
    late.save(engine, meta(2))  # type: ignore[arg-type]
    with pytest.raises(LeaseLostError):
        late.settle()
    assert [path[-1] for path in committed_paths(str(tmp_path))] == ["2", "1"], "step 1 was not its to remove"


@pytest.mark.parametrize("storage", ["files", "s3"])
def test_two_that_write_the_same_step_never_mix(storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One is frozen in the middle of a file, and goes on when the other has committed that step."""
    with local_s3(monkeypatch) as url:
        place = f"{url}/runs/two" if storage == "s3" else str(tmp_path)
        early, late = StillEngine(), StillEngine()
        late.flat += 100
        one, two = (CheckpointWriter(place, 0, 1, name, keep_last=2, keep_best=0) for name in ("one", "two"))
        opened = one._fs.open

        def frozen(path: str, mode: str, **options: Any) -> Any:
            stream = opened(path, mode, **options)
            monkeypatch.setattr(one._fs, "open", opened)
            two.save(late, meta(1))  # type: ignore[arg-type]
            assert two.settle()
            return stream

        monkeypatch.setattr(one._fs, "open", frozen)
        one.save(early, meta(1))  # type: ignore[arg-type]
        assert not one.settle()
        assert isinstance(one.failed, FileExistsError)
        checkpoint = newest_checkpoint(place)
        assert torch.equal(checkpoint.reader().read("w", "master", 0, 10), late.flat)


@pytest.mark.parametrize("storage", ["files", "s3"])
def test_a_marker_is_never_replaced(storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One is frozen when only its commit is left, and goes on when the other has committed that step."""
    with local_s3(monkeypatch) as url:
        place = f"{url}/runs/two" if storage == "s3" else str(tmp_path)
        late = StillEngine()
        late.flat += 100
        two = CheckpointWriter(place, 0, 1, "two", keep_last=2, keep_best=0)

        def frozen() -> None:
            two.save(late, meta(1))  # type: ignore[arg-type]
            assert two.settle()

        one = CheckpointWriter(place, 0, 1, "one", keep_last=2, keep_best=0, before_commit=frozen)
        one.save(StillEngine(), meta(1))  # type: ignore[arg-type]
        assert not one.settle()
        assert isinstance(one.failed, FileExistsError)
        assert torch.equal(newest_checkpoint(place).reader().read("w", "master", 0, 10), late.flat)


def test_any_interval_can_be_read(tmp_path: Path) -> None:
    keeper, engine = writer(tmp_path), StillEngine()
    keeper.save(engine, meta(1))  # type: ignore[arg-type]
    assert keeper.settle()
    checkpoint = newest_checkpoint(str(tmp_path))
    for start in range(10):
        for stop in range(start, 11):
            got = checkpoint.reader().read("w", "exp_avg", start, stop - start)
            assert torch.equal(got, engine.flat[start:stop] + 0.5)


def test_nothing_is_committed_before_the_record_is_safe(tmp_path: Path) -> None:
    """`before_commit` runs when all pieces are there and the marker is not; if it fails, so does the checkpoint."""
    seen: list[bool] = []

    def check() -> None:
        folder = tmp_path / "checkpoints" / "step-0000000001"
        seen.append((folder / "attempt-1-index.safetensors").exists() and not (folder / "COMMIT").exists())
        raise OSError("the tracker's disk is full")

    keeper = writer(tmp_path, before_commit=check)
    keeper.save(StillEngine(), meta(1))  # type: ignore[arg-type]
    assert not keeper.settle()
    assert seen == [True] and committed_paths(str(tmp_path)) == []


def test_rank_0_does_not_wait_for_a_rank_that_failed(tmp_path: Path) -> None:
    """Two ranks; the other one says that it could not write."""
    mailbox = Mailbox(torch.distributed.HashStore(), 0, 2)
    keeper = CheckpointWriter(str(tmp_path), 0, 2, "attempt", 2, 0, agree=lambda ok: False, mailbox=mailbox)
    keeper.save(StillEngine(), meta(1))  # type: ignore[arg-type]
    assert not keeper.settle()
    assert "another rank could not write" in str(keeper.failed)


def two_ranks(folder: Path, attempt: str = "attempt", **options: Any) -> tuple[CheckpointWriter, CheckpointWriter]:
    store = torch.distributed.HashStore()
    made = [
        CheckpointWriter(str(folder), rank, 2, attempt, 2, 0, mailbox=Mailbox(store, rank, 2), **options)
        for rank in range(2)
    ]
    return made[0], made[1]


class HalfEngine(StillEngine):
    """One of two ranks: it holds one of the fragments."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank

    def fragments(self) -> list[Fragment]:
        return [super().fragments()[self.rank]]


def test_rank_0_learns_of_a_failure_from_the_rank_itself(tmp_path: Path) -> None:
    first, second = two_ranks(tmp_path)
    second._fs = FullDisk()
    for keeper, rank in ((first, 0), (second, 1)):
        keeper.save(HalfEngine(rank), meta(1))  # type: ignore[arg-type]
    assert not second.settle() and not first.settle()
    assert "rank 1 could not write its part" in str(first.failed)
    assert committed_paths(str(tmp_path)) == []
    second._fs = first._fs
    for keeper, rank in ((first, 0), (second, 1)):
        keeper.save(HalfEngine(rank), meta(2))  # type: ignore[arg-type]
    assert second.settle() and first.settle()
    assert torch.equal(newest_checkpoint(str(tmp_path)).reader().read("w", "master", 0, 10), torch.arange(10.0))


def test_a_rank_that_is_late_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.checkpoints.writer.RANKS_TIMEOUT_S", 0.2)
    first, _ = two_ranks(tmp_path)
    first.save(HalfEngine(0), meta(1))  # type: ignore[arg-type]
    assert not first.settle()
    assert str(first.failed) == "rank 1 has not written its part within 0 s"


def test_what_is_not_whole_is_not_committed(tmp_path: Path) -> None:
    first, second = two_ranks(tmp_path)
    first.save(HalfEngine(0), meta(1))  # type: ignore[arg-type]
    second.save(HalfEngine(0), meta(1))  # type: ignore[arg-type]
    assert second.settle() and not first.settle()
    assert "it holds 6 of the 10 elements of w" in str(first.failed) and committed_paths(str(tmp_path)) == []


def test_a_step_that_is_saved_again_stays_whole_until_the_new_one_is(tmp_path: Path) -> None:
    """Killed at any moment before the last, there is the older one; afterwards nothing of it is left."""
    older = writer(tmp_path)
    older.save(StillEngine(), meta(1))  # type: ignore[arg-type]
    assert older.settle()
    before, newer = tree(tmp_path), StillEngine()
    newer.flat += 100
    seen = []

    def look() -> None:
        seen.append(newest_checkpoint(str(tmp_path)).reader().read("w", "master", 0, 10))
        raise OSError("killed here")

    again = CheckpointWriter(str(tmp_path), 0, 1, "again", 2, 0, before_commit=look)
    again.save(newer, {**meta(1), "score": 0.5})  # type: ignore[arg-type]
    assert not again.settle()
    assert torch.equal(seen[0], torch.arange(10.0)) and before.items() <= tree(tmp_path).items()
    last = CheckpointWriter(str(tmp_path), 0, 1, "last", 2, 0)
    last.save(newer, {**meta(1), "score": 0.5})  # type: ignore[arg-type]
    assert last.settle()
    found = newest_checkpoint(str(tmp_path))
    assert found.score == 0.5 and torch.equal(found.reader().read("w", "master", 0, 10), newer.flat)
    names = {path.name for path in (tmp_path / "checkpoints" / "step-0000000001").iterdir()}
    assert names == {"COMMIT", "checkpoint.json", "last-1-00000-000.safetensors", "last-1-index.safetensors"}


def test_a_marker_that_is_not_the_one_from_before_is_not_replaced(tmp_path: Path) -> None:
    """Two save a committed step again; one is frozen when only its commit is left."""
    older, late = writer(tmp_path), StillEngine()
    late.flat += 100
    older.save(StillEngine(), meta(1))  # type: ignore[arg-type]
    assert older.settle()
    two = CheckpointWriter(str(tmp_path), 0, 1, "two", 2, 0)

    def frozen() -> None:
        two.save(late, meta(1))  # type: ignore[arg-type]
        assert two.settle()

    one = CheckpointWriter(str(tmp_path), 0, 1, "one", 2, 0, before_commit=frozen)
    one.save(StillEngine(), meta(1))  # type: ignore[arg-type]
    assert not one.settle() and "was committed by another process" in str(one.failed)
    assert torch.equal(newest_checkpoint(str(tmp_path)).reader().read("w", "master", 0, 10), late.flat)


def test_a_description_without_a_marker_is_no_obstacle(tmp_path: Path) -> None:
    """Killed between the two."""
    first = writer(tmp_path)
    first.save(StillEngine(), meta(1))  # type: ignore[arg-type]
    assert first.settle()
    (tmp_path / "checkpoints" / "step-0000000001" / "COMMIT").unlink()
    again = CheckpointWriter(str(tmp_path), 0, 1, "again", 2, 0)
    again.save(StillEngine(), meta(1))  # type: ignore[arg-type]
    assert again.settle() and newest_checkpoint(str(tmp_path)).step == 1


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of a run in a local S3."""
    with local_s3(monkeypatch) as url:
        yield f"{url}/runs/one"


def test_checkpoints_in_an_object_store(bucket: str, caplog: pytest.LogCaptureFixture) -> None:
    """Written, pruned, read by interval, and refused when changed: the same as on a disk."""
    keeper = CheckpointWriter(bucket, 0, 1, "attempt", keep_last=2, keep_best=0)
    engine = StillEngine()
    for step in (1, 2, 3):
        keeper.save(engine, meta(step))  # type: ignore[arg-type]
        assert keeper.settle()
    assert [path[-1] for path in committed_paths(bucket)] == ["3", "2"]
    checkpoint = newest_checkpoint(bucket)
    assert checkpoint.step == 3
    assert torch.equal(checkpoint.reader().read("w", "master", 2, 5), engine.flat[2:7])
    checkpoint.fs.pipe_file(f"{checkpoint.path}/checkpoint.json", b"{}")
    assert open_checkpoint(bucket).step == 2 and "does not match the digest" in caplog.text


LOSS, AUROC = {"metric": "val/loss", "mode": "min"}, {"metric": "val/auroc", "mode": "max"}


@pytest.mark.parametrize("earlier", [False, True], ids=["named", "by its recipe"])
def test_scores_of_different_metrics_are_not_ranked_together(tmp_path: Path, earlier: bool) -> None:
    """A run that changed its metric after step 2, as an earlier version let it; made-up scores, all better before."""
    keeper, engine = CheckpointWriter(str(tmp_path), 0, 1, "attempt", keep_last=1, keep_best=1), StillEngine()
    scores = [(-0.2, LOSS), (-0.3, LOSS), (-0.9, AUROC), (-0.7, AUROC), (-0.8, AUROC), (None, AUROC)]
    kept = []
    for step, (score, ranked) in enumerate(scores, start=1):
        about: dict[str, Any] = {"step": step, "score": score, "progress": {"epoch": 0, "best_score": -0.1}}
        about |= {"config": {"training": {"early_stopping": ranked}}} if earlier else {"ranked_by": ranked}
        keeper.save(engine, about)  # type: ignore[arg-type]
        assert keeper.settle()
        kept.append([int(path[-1]) for path in committed_paths(str(tmp_path))])
    assert kept == [[1], [2, 1], [3], [4], [5, 4], [6, 4]]
    assert open_checkpoint(str(tmp_path)).step == 4 and open_checkpoint(str(tmp_path)).ranked_by == AUROC


def test_a_run_means_its_best_checkpoint_by_the_metric_of_its_newest(tmp_path: Path) -> None:
    keeper, engine = CheckpointWriter(str(tmp_path), 0, 1, "attempt", keep_last=9, keep_best=1), StillEngine()
    for step, (score, ranked) in enumerate([(0.9, AUROC), (-0.2, LOSS), (-0.1, LOSS), (-0.1, LOSS)], start=1):
        keeper.save(engine, {**meta(step), "score": score, "ranked_by": ranked})  # type: ignore[arg-type]
        assert keeper.settle()
    assert len(committed_paths(str(tmp_path))) == 4 and open_checkpoint(str(tmp_path)).step == 3
