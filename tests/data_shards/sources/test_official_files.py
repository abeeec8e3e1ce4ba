"""Sources of official files, written here in their layout, with the layout's traps."""

from __future__ import annotations

import collections
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_shards import Series, create_source, pack
from data_shards.sources.readers.plain_pickle import NotPlainError, read_plain_npy, read_plain_pickle
from tests.data_shards.sources.build import read

# --- pickles without unpickling ---


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


PLAIN = {
    "numbers": [1, -2, 1 << 70, 2.5, True, None],
    "text": ("ä", b"bytes", ""),
    "nested": {"a": [[], {}, ()]},
    "ordered": collections.OrderedDict(a=1),
    "float": np.arange(12, dtype=np.float32).reshape(3, 4),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big_endian": np.arange(3, dtype=">i4"),
    "names": np.array(["one", "zwei"]),
    "objects": np.array(["one", b"two", 3], object),
    "scalar": np.float64(0.25),
    "nothing": np.empty((0, 3), np.float32),
}


def alike(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        if a.dtype == object:
            return list(a) == b
        return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(alike(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(alike(x, y) for x, y in zip(a, b, strict=True))
    return type(a) in (type(b), np.float64) and a == b


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_come_out_as_the_unpickler_would_give_them(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "plain.pkl"
    shared = np.ones(2)
    path.write_bytes(pickle.dumps({**PLAIN, "twice": [shared, shared]}, protocol))
    found = read_plain_pickle(path)
    assert alike({**PLAIN, "twice": [shared, shared]}, found)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_malicious_pickle_is_refused_and_does_nothing(tmp_path: Path, protocol: int) -> None:
    touched, path = tmp_path / "touched", tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps({"train": [1, Evil(touched)]}, protocol))
    with pytest.raises(NotPlainError, match="only plain data are read; nothing of it was run"):
        read_plain_pickle(path)
    assert not touched.exists()
    with path.open("rb") as stream:  # the same bytes really are dangerous
        pickle.load(stream)  # noqa: S301
    assert touched.exists()


def test_names_hidden_inside_allowed_ones_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    for payload in (
        b"cnumpy\nndarray\n(tR.",  # a type is called
        b"cos\nsystem\n(S'true'\ntR.",
        b"c_codecs\nencode\n.",  # a name as the value
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.",
        b"(lp0\ng0\na.",  # a list inside itself
        b"i__main__\nX\n.",
        b"]}b.",  # a list with a state
    ):
        path.write_bytes(payload)
        with pytest.raises(NotPlainError):
            read_plain_pickle(path)
    for damage in (b"", b"not a pickle", pickle.dumps(PLAIN)[:-40], b"]a.", b"g5\n."):
        path.write_bytes(damage)
        with pytest.raises(ValueError, match=r"x\.pkl"):
            read_plain_pickle(path)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_damaged_pickles_are_values_or_sentences_and_nothing_else(tmp_path: Path, protocol: int) -> None:
    """A few bytes changed anywhere: never another kind of error, never a file opened or a process started."""
    rng, path = np.random.default_rng(protocol), tmp_path / "x.pkl"
    whole = np.frombuffer(pickle.dumps(PLAIN, protocol), np.uint8)
    outcomes = Counter[str]()
    for _ in range(400):
        data = whole.copy()
        places = rng.integers(0, len(data), rng.integers(1, 6))
        data[places] = rng.integers(0, 256, len(places))
        path.write_bytes(data.tobytes()[: None if rng.random() < 0.8 else int(rng.integers(1, len(data)))])
        try:
            read_plain_pickle(path)
            outcomes["value"] += 1
        except ValueError as error:
            assert str(error).startswith(str(path))
            outcomes["sentence"] += 1
    assert outcomes["sentence"] > 50 and outcomes["value"] > 5


def test_an_array_that_claims_another_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    data = pickle.dumps(np.zeros(4, np.float32), 2).replace(b"K\x04\x85", b"K\x05\x85")
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"shape \(5,\) has 4 values"):
        read_plain_pickle(path)


# --- PAM ---


def lay_pam(folder: Path, count: int = 20, malicious: Path | None = None) -> Path:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((count, 600, 17)).astype(np.float32)
    values[rng.random(values.shape) < 0.6] = 0
    values[3] = 0
    values[4, :, 5] = 0
    (folder / "processed_data").mkdir(parents=True)
    (folder / "splits").mkdir()
    np.save(folder / "processed_data" / "PTdict_list.npy", values)
    np.save(folder / "processed_data" / "arr_outcomes.npy", (np.arange(count) % 8).astype(float)[:, None])
    for number in (1, 2):
        order = rng.permutation(count)
        parts: list[Any] = [order[:16], order[16:18], order[18:]]
        if malicious is not None:
            parts[0] = Evil(malicious)
        cells = np.empty(3, object)
        cells[:] = parts
        np.save(folder / "splits" / f"PAM_split_{number}.npy", cells, allow_pickle=True)
    return folder


def test_pam_keeps_negative_readings_and_reads_object_arrays_without_running_them(tmp_path: Path) -> None:
    records, notes = read("pam", {"path": str(lay_pam(tmp_path / "pam"))})
    values = np.load(tmp_path / "pam" / "processed_data" / "PTdict_list.npy")
    assert notes == {"observations": int((values != 0).sum()), "windows_without_observation": 1}
    assert len(records) == 19 and "sensor_05" not in records["window-00004"].values
    sensor = records["window-00007"].values["sensor_02"]
    assert isinstance(sensor, Series) and (sensor.values_O < 0).any()
    seen = np.flatnonzero(values[7, :, 2])
    np.testing.assert_allclose(sensor.times_O, seen / 100, rtol=1e-6)
    np.testing.assert_array_equal(sensor.values_O, values[7, seen, 2])
    parts = Counter(record.splits["split1"] for record in records.values())
    assert sum(parts.values()) == 19 and parts["train"] >= 15 and "split2" in records["window-00000"].splits
    whole, _ = read("pam", {"path": str(tmp_path / "pam"), "per_sensor": "false"})
    assert set(whole["window-00000"].values) == {"sensors"}
    assert pack(create_source("pam", {"path": str(tmp_path / "pam")}), str(tmp_path / "out"))["records"] == 19


def test_pam_files_that_would_run_something_or_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotPlainError, match="only plain data"):
        create_source("pam", {"path": str(lay_pam(tmp_path / "evil", malicious=tmp_path / "touched"))})
    assert not (tmp_path / "touched").exists()
    folder = lay_pam(tmp_path / "pam")
    np.save(folder / "splits" / "PAM_split_1.npy", np.array([[0, 1], [2, 3], [3, 99]]))
    with pytest.raises(ValueError, match="names window 99, and there are 20"):
        create_source("pam", {"path": str(folder)})
    np.save(folder / "splits" / "PAM_split_1.npy", np.array([[0, 1], [2, 3], [3, 4]]))
    with pytest.raises(ValueError, match="a window is in two parts"):
        create_source("pam", {"path": str(folder)})
    with pytest.raises(ValueError, match="does not exist; give the folder that holds processed_data"):
        create_source("pam", {"path": str(tmp_path)})
    (folder / "text.npy").write_text("no array")
    with pytest.raises(ValueError, match="not a NumPy file"):
        read_plain_npy(folder / "text.npy")


# --- CMU ---


def multibench(count: int) -> dict[str, Any]:
    """Padded in front; the second sample has no words, the third an infinite voice, the fourth no face."""
    rng = np.random.default_rng(count)
    table = {
        "text": rng.standard_normal((count, 50, 300)).astype(np.float32),
        "audio": rng.standard_normal((count, 50, 5)).astype(np.float32),
        "vision": rng.standard_normal((count, 50, 20)).astype(np.float32),
        "labels": np.linspace(-3, 3, count).astype(np.float32).reshape(count, 1, 1),
        "id": np.array([[f"video{n // 2}", "0.5", "1.5"] for n in range(count)]),
    }
    for view in ("text", "audio", "vision"):
        table[view][:, :40] = 0
    table["text"][1], table["audio"][2, 45, 0], table["vision"][3] = 0, -np.inf, 0
    table["vision"][0, 41] = 0  # a still face between words is no padding
    return table


def test_multibench_samples_lose_padding_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "mosi_data.pkl"
    table = {part: multibench(count) for part, count in (("train", 7), ("valid", 5), ("test", 5))}
    path.write_bytes(pickle.dumps(table))
    records, notes = read("cmu_mosi", {"path": str(path)})
    assert notes == {"samples_without_words": 3, "infinite_audio_values": 3}
    assert Counter(record.splits["default"] for record in records.values()) == {"train": 6, "val": 4, "test": 4}
    first = records["train-00000-video0"]
    assert first.group == "video0" and np.asarray(first.values["vision"]).shape == (10, 20)
    np.testing.assert_array_equal(np.asarray(first.values["text"]), table["train"]["text"][0, 40:])
    assert np.asarray(records["train-00002-video1"].values["audio"])[5, 0] == 0
    assert set(records["train-00003-video1"].values) == {"text", "audio"}
    assert first.targets == {"sentiment": -3.0, "positive": 0.0, "seven": 0.0}
    assert records["train-00003-video1"].targets["positive"] is None  # exactly 0
    schema = create_source("cmu_mosi", {"path": str(path)}).schema
    assert [m.shape for m in schema.modalities] == [(300,), (5,), (20,)]


def test_mmsa_samples_are_cut_at_their_own_lengths(tmp_path: Path) -> None:
    path, table = tmp_path / "unaligned_50.pkl", {}
    rng = np.random.default_rng(0)
    for part, count in (("train", 4), ("valid", 2), ("test", 2)):
        table[part] = {
            "text": rng.standard_normal((count, 50, 768)).astype(np.float32),
            "audio": rng.standard_normal((count, 375, 5)),
            "vision": rng.standard_normal((count, 500, 20)),
            "audio_lengths": [100] * count,
            "vision_lengths": [7] * count,
            "raw_text": np.array([f"spoken {n}" for n in range(count)], object),
            "id": [f"abc-{part}_X$_${n}" for n in range(count)],
            "regression_labels": np.full(count, 1.2),
            "classification_labels": np.full(count, 2),
        }
        table[part]["text"][:, 30:] = 0
    path.write_bytes(pickle.dumps(table))
    records, _ = read("cmu_mosei", {"path": str(path)})
    one = records["train-00001-abc-train_X-_-1"]
    shapes = {view: np.asarray(one.values[view]).shape for view in ("text", "audio", "vision")}
    assert shapes == {"text": (30, 768), "audio": (100, 5), "vision": (7, 20)}
    assert (one.values["transcript"], one.group) == ("spoken 1", "abc-train_X")
    assert one.targets == {"sentiment": pytest.approx(1.2), "positive": 1.0, "seven": 4.0}


def test_cmu_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps({"train": Evil(tmp_path / "touched")}))
    with pytest.raises(NotPlainError, match="only plain data"):
        create_source("cmu_mosi", {"path": str(path)})
    assert not (tmp_path / "touched").exists()
    path.write_bytes(pickle.dumps({"train": {}}))
    with pytest.raises(ValueError, match="not the parts train, valid and test"):
        create_source("cmu_mosi", {"path": str(path)})
    path.write_bytes(pickle.dumps({part: {"text": [1]} for part in ("train", "valid", "test")}))
    with pytest.raises(ValueError, match="part train lacks audio, vision, id"):
        create_source("cmu_mosi", {"path": str(path)})
