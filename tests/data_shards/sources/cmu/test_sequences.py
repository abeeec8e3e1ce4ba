"""Computational sequences (.csd) as the authors' kit writes them, written here: rows of a stretch at their times."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_shards import Objects, create_source, open_manifest, pack
from tests.data_shards.sources.build import packed_records, read

h5py = pytest.importorskip("h5py")
STRETCHES = np.array([[0.0, 1.5], [2.0, 4.0], [50.0, 51.0]])  # of video a_b; the last one has no row of anything


def lay_csd(file: Path, name: str, videos: Mapping[str, tuple[Any, Any]]) -> None:
    """NAME/data/VIDEO/{features,intervals} and metadata."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(file, "w") as stream:
        for video, (features, intervals) in videos.items():
            stream[f"{name}/data/{video}/features"], stream[f"{name}/data/{video}/intervals"] = features, intervals
        stream[f"{name}/metadata/root name"] = json.dumps(name)


def lay_mosei(folder: Path, columns: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Voice of video a_b: 10 rows a second until 5 s, row n is (n, -n); video c-d has words only. Returns its rows."""
    starts = np.arange(50) / 10
    voice, times = np.stack([np.arange(50.0), -np.arange(50.0)], 1), np.stack([starts, starts + 0.1], 1)
    voice[21, 0] = -np.inf
    lay_csd(folder / "CMU_MOSEI_COVAREP.csd", "COVAREP", {"a_b": (voice, times)})
    said = np.array([[b"hello"], [b"sp"], [b"there"], [b"so"]])
    when = np.array([[0.1, 0.5], [0.5, 0.9], [1.0, 1.9], [2.2, 2.4]])  # "there" has its middle at 1.45
    words = {"a_b": (said, when), "c-d": (said[:1], when[:1])}
    lay_csd(folder / "CMU_MOSEI_TimestampedWords.csd", "words", words)
    glove = {"a_b": (np.arange(12.0).reshape(4, 3), when)}
    lay_csd(folder / "CMU_MOSEI_TimestampedWordVectors.csd", "glove_vectors", glove)
    label = np.array([[-2.0, 0, 1, 0, 0, 0, 0.33], [0.0, 0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0]])[:, :columns]
    both = {"a_b": (label, STRETCHES), "c-d": (label[:1] + 3, STRETCHES[:1])}
    lay_csd(folder / "CMU_MOSEI_Labels.csd", "All Labels", both)
    return voice, times.mean(axis=1)


def vectors(value: Any) -> tuple[np.ndarray, np.ndarray]:
    assert isinstance(value, Objects)
    return value.times_N, np.stack(list(value.values))


def test_rows_of_a_stretch_are_vectors_at_their_times(tmp_path: Path) -> None:
    voice, middle = lay_mosei(tmp_path)
    source = create_source("cmu_mosei", {"path": str(tmp_path)})
    specs = {spec.name: (spec.kind, spec.timed, spec.shape, spec.horizon) for spec in source.schema.modalities}
    assert specs == {
        "COVAREP": ("vector", True, (2,), 2.0), "words": ("text", False, (), None),
        "glove_vectors": ("vector", True, (3,), 2.0),
    }  # fmt: skip
    records, notes = read("cmu_mosei", {"path": str(tmp_path)})
    assert records.keys() == {"a_b-0000", "a_b-0001", "c-d-0000"} and notes["samples_without_rows"] == 1
    for number, (first, last) in enumerate(STRETCHES[:2]):
        inside = (middle >= first) & (middle < last)
        times, rows = vectors(records[f"a_b-{number:04d}"].values["COVAREP"])
        np.testing.assert_allclose(times, (middle - first)[inside], atol=1e-6)
        np.testing.assert_array_equal(rows, np.where(np.isinf(voice), 0, voice)[inside].astype(np.float32))
    assert inside.sum() == 20 and notes["infinite_CMU_MOSEI_COVAREP_values"] == 1
    one, two, other = (records[key] for key in ("a_b-0000", "a_b-0001", "c-d-0000"))
    assert (one.values["words"], two.values["words"], other.values["words"]) == ("hello there", "so", "hello")
    times, rows = vectors(one.values["glove_vectors"])
    np.testing.assert_allclose(times, [0.3, 0.7, 1.45], atol=1e-6)
    np.testing.assert_array_equal(rows, np.arange(9.0).reshape(3, 3))
    assert set(other.values) == {"words"} and other.group == "c-d"
    assert {name: one.targets[name] for name in ("sentiment", "positive", "seven")} == {
        "sentiment": -2.0, "positive": 0.0, "seven": 1.0,
    }  # fmt: skip
    assert np.asarray(one.targets["emotions"]).tolist() == [0, 1, 0, 0, 0, 1]
    assert two.targets["positive"] is None and other.targets["sentiment"] == 1.0


def test_rows_of_the_same_tenths_become_their_mean_and_a_list_says_the_parts(tmp_path: Path) -> None:
    lay_mosei(tmp_path / "mosi", columns=1)
    (tmp_path / "folds.csv").write_text("video,standard\na_b,train\n")
    options = {"path": str(tmp_path / "mosi"), "average_s": "0.5", "splits": str(tmp_path / "folds.csv")}
    report = pack(create_source("cmu_mosi", options), str(tmp_path / "out"), workers=2)
    records = packed_records(tmp_path / "out")
    times, rows = vectors(records["a_b-0000"].values["COVAREP"])
    np.testing.assert_allclose(times, [0.25, 0.75, 1.25], atol=1e-6)
    np.testing.assert_array_equal(rows, [[2, -2], [7, -7], [12, -12]])
    assert records["a_b-0000"].splits == {"standard": "train"} and records["c-d-0000"].splits == {}
    assert report["source"]["notes"]["samples_without_part"] == 1
    assert open_manifest(str(tmp_path / "out")).schema.task_names == ("sentiment", "positive", "seven")


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"one \.csd file has to hold the labels .* and its sequences are none"):
        create_source("cmu_mosi", {"path": str(tmp_path)})
    lay_mosei(tmp_path)
    short = {"a_b": (np.zeros((3, 2)), np.zeros((2, 2)))}
    lay_csd(tmp_path / "x.csd", "x", short)
    with pytest.raises(ValueError, match=r"x\.csd: video a_b has 3 rows and 2 intervals"):
        read("cmu_mosi", {"path": str(tmp_path)})
    lay_csd(tmp_path / "x.csd", "x", {"a_b": (np.zeros((1, 2)), [[2.0, 1.0]])})
    with pytest.raises(ValueError, match="an interval of video a_b ends before it begins"):
        read("cmu_mosi", {"path": str(tmp_path)})
    with h5py.File(tmp_path / "x.csd", "w") as stream:
        stream["numbers"] = np.zeros(3)
    with pytest.raises(ValueError, match=r"x\.csd is no computational sequence: NAME/data/VIDEO/features"):
        create_source("cmu_mosi", {"path": str(tmp_path)})
    (tmp_path / "x.csd").write_text("no HDF5")
    with pytest.raises(ValueError, match=r"x\.csd cannot be read as HDF5"):
        create_source("cmu_mosi", {"path": str(tmp_path)})
    with pytest.raises(ValueError, match=r"splits and average_s are for a folder of \.csd files"):
        create_source("cmu_mosi", {"path": str(tmp_path / "x.csd"), "average_s": 1})
