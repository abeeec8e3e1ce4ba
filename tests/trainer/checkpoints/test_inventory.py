"""What a run remembers of its checkpoints: few requests, and nothing torn, foreign or superfluous is missed for it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.checkpoint_scale import CountedFiles
from benchmarks.finished_run import newest_checkpoint
from tests.object_store import local_s3
from tests.trainer.checkpoints.test_writer import FullDisk, StillEngine, meta
from trainer.checkpoints.find import Inventory, committed_paths
from trainer.checkpoints.writer import CheckpointWriter

REQUEST = re.compile(r"(HEAD|GET|PUT|POST|DELETE) /data([^ ]*) HTTP")


def started(folder: str | Path, attempt: str = "attempt", keep_last: int = 1, keep_best: int = 0) -> CheckpointWriter:
    return CheckpointWriter(str(folder), 0, 1, attempt, keep_last, keep_best)


def saved(keeper: CheckpointWriter, step: int) -> bool:
    keeper.save(StillEngine(), meta(step))  # type: ignore[arg-type]
    return keeper.settle()


def steps(folder: Path) -> list[int]:
    """Of all folders, committed or not."""
    return sorted(int(path.name.rsplit("-", 1)[1]) for path in (folder / "checkpoints").iterdir())


def test_requests_to_an_object_store(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Rank 0's, as they arrive there."""

    def requests() -> list[str]:
        found = [REQUEST.search(record.getMessage()) for record in caplog.records if record.name == "werkzeug"]
        caplog.clear()
        kinds = [(match[1], match[2].partition("?")[0].rsplit("/", 1)[-1]) for match in found if match]
        return [f"{method} {name}".strip() for method, name in kinds]

    def save(number: int) -> list[str]:
        part = f"attempt-{number}"
        return [
            "HEAD",  # of the bucket: what `makedirs` comes to
            f"PUT {part}-00000-000.safetensors",
            f"PUT {part}-index.safetensors",
            "PUT checkpoint.json",
            "PUT COMMIT",
        ]

    with local_s3(monkeypatch) as url, caplog.at_level("INFO"):
        caplog.clear()
        keeper = started(f"{url}/runs/one", keep_last=2)
        assert requests() == ["GET", "GET"], "one listing at the start; of nothing, s3fs asks once more"
        for number in (1, 2):
            assert saved(keeper, number)
            assert requests() == save(number)
        assert saved(keeper, 3)
        # Clearing step 1: a listing of folders, the marker, a listing of its files, all of them at once.
        assert requests() == [*save(3), "GET", "DELETE COMMIT", "GET", "POST"]
        assert [path[-1] for path in committed_paths(f"{url}/runs/one")] == ["3", "2"]
        assert keeper._inventory is not None
        assert [keeper.path(step) in keeper._inventory for step in (1, 2, 3)] == [False, True, True]


def test_files_of_an_older_save_of_a_step_go_at_once(tmp_path: Path) -> None:
    keeper = started(tmp_path)
    assert saved(keeper, 1)
    files = keeper._fs = CountedFiles()
    assert saved(keeper, 1)
    # A look, its marker now and before the commit; a part, an index; both old ones away, both new ones; leftovers.
    assert files.requests == 3 + 2 + 2 + 2 + 1
    names = {path.name for path in (tmp_path / "checkpoints" / "step-0000000001").iterdir()}
    assert names == {"COMMIT", "checkpoint.json", "attempt-2-00000-000.safetensors", "attempt-2-index.safetensors"}


def test_a_new_start_keeps_and_clears_what_others_have_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = started(tmp_path, keep_last=9)
    for step in (1, 2, 3, 4, 5, 9):
        assert saved(first, step)
    folders = {step: tmp_path / "checkpoints" / f"step-{step:010d}" for step in (1, 2, 3, 4, 5, 9)}
    (folders[2] / "COMMIT").unlink()
    (folders[9] / "COMMIT").unlink()
    (folders[3] / "checkpoint.json").write_text("{}")
    again = started(tmp_path, "again", keep_last=2)
    with caplog.at_level("WARNING"):
        assert saved(again, 6)
    # 1 and 4 are too many, 2 is torn; 3 is damaged, and 9 might be written again.
    assert steps(tmp_path) == [3, 5, 6, 9]
    assert caplog.text.count("step-0000000003/checkpoint.json does not match the digest") == 1
    assert saved(again, 7)
    assert steps(tmp_path) == [3, 6, 7, 9] and caplog.text.count("does not match the digest") == 1, "said once"
    assert saved(again, 9)
    assert steps(tmp_path) == [3, 7, 9] and newest_checkpoint(str(tmp_path)).step == 9
    assert saved(again, 10)
    assert steps(tmp_path) == [3, 9, 10]


def test_what_a_late_process_leaves_is_found_when_something_is_cleared(tmp_path: Path) -> None:
    keeper = started(tmp_path, keep_last=2)
    assert saved(keeper, 2)
    late = tmp_path / "checkpoints" / "step-0000000003"
    late.mkdir()
    (late / "late-1-00000-000.safetensors").write_bytes(b"half")
    other = started(tmp_path, "other", keep_last=9)
    assert saved(other, 1)
    assert saved(keeper, 4)
    assert steps(tmp_path) == [1, 2, 3, 4], "nothing is to be cleared, as far as it knows"
    assert saved(keeper, 5)
    assert steps(tmp_path) == [4, 5]


def test_a_folder_that_was_cleared_by_hand_counts_no_more(tmp_path: Path) -> None:
    keeper = started(tmp_path, keep_last=2)
    for step in (1, 2):
        assert saved(keeper, step)
    shutil.rmtree(tmp_path / "checkpoints" / "step-0000000002")
    assert saved(keeper, 3)
    assert steps(tmp_path) == [1, 3]


def test_a_step_that_failed_is_looked_at_when_it_is_tried_again(tmp_path: Path) -> None:
    keeper = started(tmp_path)
    healthy, folder = keeper._fs, tmp_path / "checkpoints" / "step-0000000001"
    keeper._fs = FullDisk()
    assert not saved(keeper, 1)
    # Torn between its description and its marker, as far as the storage had taken it.
    (folder / "checkpoint.json").write_text("{}")
    (folder / "attempt-1-00000-000.safetensors").write_bytes(b"half")
    keeper._fs = healthy
    assert saved(keeper, 1)
    names = {path.name for path in folder.iterdir()}
    assert names == {"COMMIT", "checkpoint.json", "attempt-2-00000-000.safetensors", "attempt-2-index.safetensors"}


@pytest.mark.parametrize("damaged", [False, True])
def test_a_step_that_was_torn_when_it_was_saved_again_counts_no_more(damaged: bool, tmp_path: Path) -> None:
    """Killed, as it were, between the old marker and the new one; the run goes on."""
    keeper, folder = started(tmp_path, keep_last=2), tmp_path / "checkpoints" / "step-0000000001"
    assert saved(keeper, 1)
    if damaged:
        (folder / "checkpoint.json").write_text("{}")
        keeper = started(tmp_path, "again", keep_last=2)
        assert saved(keeper, 0) and steps(tmp_path) == [0, 1]
    healthy = keeper._fs
    keeper._fs = NoMoreMarkers()
    assert not saved(keeper, 1) and str(keeper.failed) == "no more markers" and not (folder / "COMMIT").exists()
    keeper._fs = healthy
    assert saved(keeper, 2)
    assert steps(tmp_path) == ([0, 2] if damaged else [2])


class NoMoreMarkers(CountedFiles):
    def pipe_file(self, path: str, *args: Any, **options: Any) -> Any:
        if path.endswith("COMMIT"):
            raise OSError("no more markers")
        return super().pipe_file(path, *args, **options)


def test_a_folder_that_is_not_known_cannot_be_replaced(tmp_path: Path) -> None:
    """Another process commits the step that this one takes for new; then this one has seen it."""
    one, two = started(tmp_path, "one"), started(tmp_path, "two")
    other = StillEngine()
    other.flat += 100
    two.save(other, meta(1))  # type: ignore[arg-type]
    assert two.settle()
    assert not saved(one, 1) and isinstance(one.failed, FileExistsError)
    assert torch.equal(newest_checkpoint(str(tmp_path)).reader().read("w", "master", 0, 10), other.flat)


def test_the_storage_is_not_asked_while_nothing_is_to_be_removed(tmp_path: Path) -> None:
    keeper = started(tmp_path, keep_last=3)
    for step in (1, 2, 3):
        assert saved(keeper, step)
    assert keeper._inventory is not None
    files = keeper._inventory._fs = CountedFiles()
    assert keeper._inventory.superfluous(3, keep_last=3, keep_best=0) == [] and files.requests == 0
    assert [path[-1] for path in keeper._inventory.superfluous(3, keep_last=1, keep_best=0)] == ["1", "2"]
    assert files.requests == 1
    fresh = CountedFiles()
    inventory = Inventory(fresh, f"{tmp_path}/checkpoints")
    assert inventory.superfluous(3, keep_last=3, keep_best=0) == []
    # Two listings, and marker and description of each of three.
    assert fresh.requests == 2 + 3 * 2
    assert inventory.superfluous(3, keep_last=3, keep_best=0) == [] and fresh.requests == 8
