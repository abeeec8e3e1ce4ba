"""Arrays that processes of a node share: made once, equal, removed when nobody holds them, never half-written."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import stat
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from data_shards import node_arrays as module
from data_shards.node_arrays import KEPT_S, NodeArrays, node_arrays

MADE = {
    "many": np.arange(100_000, dtype=np.int64) ** 2,
    "columns": np.arange(12, dtype=np.int32).reshape(4, 3),
    "none": np.empty((0, 3), np.int32),
    "bytes": np.frombuffer(b"abc", np.uint8),
}


def fails() -> dict[str, np.ndarray]:
    raise ValueError("no such thing")


def test_they_are_equal_read_only_and_by_column(tmp_path: Path) -> None:
    found = node_arrays("a", lambda: MADE, tmp_path)
    assert set(found) == set(MADE)
    for name, array in MADE.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype and not found[name].flags.writeable
    assert found["columns"][:, 1].flags.c_contiguous
    again = node_arrays("a", fails, tmp_path)
    assert again.path == found.path != node_arrays("b", lambda: MADE, tmp_path).path


def test_to_another_process_the_place_travels(tmp_path: Path) -> None:
    found = node_arrays("a", lambda: MADE, tmp_path)
    data = pickle.dumps(found)
    assert len(data) < 500
    np.testing.assert_array_equal(pickle.loads(data)["many"], MADE["many"])  # noqa: S301 - ours


def test_what_fails_leaves_nothing_and_may_be_tried_again(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such thing"):
        node_arrays("a", fails, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["making.lock"]
    np.testing.assert_array_equal(node_arrays("a", lambda: MADE, tmp_path)["many"], MADE["many"])


def test_a_file_of_an_earlier_boot_or_of_a_process_that_died_is_not_believed(tmp_path, monkeypatch) -> None:
    before = node_arrays("a", lambda: MADE, tmp_path)
    monkeypatch.setattr(module, "_boot", lambda: "another")
    after = node_arrays("a", lambda: {"many": np.zeros(3)}, tmp_path)
    assert before.path != after.path and len(after["many"]) == 3
    path = node_arrays("b", lambda: MADE, tmp_path).path
    path.rename(path.with_suffix(".part"))
    path.with_suffix(".part").write_bytes(b"half")
    np.testing.assert_array_equal(node_arrays("b", lambda: MADE, tmp_path)["many"], MADE["many"])


def test_what_nobody_holds_is_removed_when_it_is_old(tmp_path: Path) -> None:
    held, free, young = (node_arrays(key, lambda: MADE, tmp_path) for key in "abc")
    past = time.time() - 2 * KEPT_S
    array = held["many"]
    for path in (held.path, free.path):
        os.utime(path, (past, past))
    gone, kept, used = free.path, young.path, held.path
    del free, young, held  # an array of it is still in use
    node_arrays("d", lambda: MADE, tmp_path)
    assert used.exists() and kept.exists() and not gone.exists()
    np.testing.assert_array_equal(array, MADE["many"])
    del array
    node_arrays("e", lambda: MADE, tmp_path)
    assert not used.exists()


def _ask(folder: Path, log: Path, start: object) -> None:
    start.wait()  # type: ignore[attr-defined]

    def make() -> dict[str, np.ndarray]:
        with log.open("a") as stream:
            stream.write(f"{os.getpid()}\n")
        return MADE

    for key in ("x", "y", "z"):
        assert int(node_arrays(key, make, folder)["many"].sum()) == int(MADE["many"].sum())


def test_of_processes_that_ask_at_once_one_makes_them(tmp_path: Path) -> None:
    folder, log = tmp_path / "arrays", tmp_path / "log"
    folder.mkdir()
    context = multiprocessing.get_context("fork")
    start = context.Event()
    others = [context.Process(target=_ask, args=(folder, log, start)) for _ in range(6)]
    for each in others:
        each.start()
    start.set()
    for each in others:
        each.join(60)
    assert [each.exitcode for each in others] == [0] * 6
    assert len(log.read_text().splitlines()) == 3


def test_the_folder_is_the_users_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    path = node_arrays("a", lambda: MADE).path
    assert path.parent.parent == tmp_path and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    path.parent.chmod(0o770)
    with pytest.raises(OSError, match="others may write there"):
        node_arrays("a", lambda: MADE)


def test_a_full_disk_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(OSError, match="are shared by a node's processes through it: No space left"):
        node_arrays("a", lambda: MADE, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["making.lock"]


def test_arrays_outlive_the_object_that_they_came_in(tmp_path: Path) -> None:
    def only() -> np.ndarray:
        return NodeArrays(node_arrays("a", lambda: MADE, tmp_path).path)["many"]

    np.testing.assert_array_equal(only(), MADE["many"])
