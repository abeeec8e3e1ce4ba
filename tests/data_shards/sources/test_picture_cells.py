"""Tables whose pictures are deep, turned or transparent, by path and as bytes in Parquet: values and counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from data_shards import create_source
from tests.data_shards.sources.image_text.folders import read
from tests.data_shards.sources.readers.picture_bytes import saved

RAMP = (np.arange(4096) * 16).astype(np.uint16).reshape(64, 64)
HALVES = np.kron(np.array([[[255, 0, 0]], [[0, 0, 255]]], np.uint8), np.ones((32, 64, 1), np.uint8))


def packed(folder: Path, pictures: dict[str, bytes], as_bytes: bool, **image: Any) -> tuple[dict[str, np.ndarray], Any]:
    """Record -> (C, H, W), and the notes."""
    folder.mkdir()
    for name, data in pictures.items():
        (folder / name).write_bytes(data)
    column = [{"bytes": data, "path": name} for name, data in pictures.items()] if as_bytes else list(pictures)
    pq.write_table(pa.table({"id": [name.split(".")[0] for name in pictures], "p": column}), folder / "r.parquet")
    if as_bytes:
        for name in pictures:
            (folder / name).unlink()
    mapping = {
        "name": "x",
        "records": {"file": "r.parquet", "key": "id"},
        "split": {"shares": {"train": 1.0}},
        "modalities": {"i": {"kind": "image", "column": "p", "height": 64, "width": 64, **image}},
    }
    (folder / "m.yaml").write_text(yaml.safe_dump(mapping))
    records, notes = read(create_source("tables", {"path": str(folder / "m.yaml")}))
    return {key: np.asarray(record.values["i"]) for key, record in records.items()}, notes


@pytest.mark.parametrize("as_bytes", [False, True])
def test_deep_pictures(tmp_path: Path, as_bytes: bool) -> None:
    ramp = np.linspace(0, 1, 4096).reshape(64, 64).astype(np.float32)
    found, notes = packed(
        tmp_path / "f", {"g.png": saved(RAMP, "PNG"), "f.tif": saved(ramp, "TIFF")}, as_bytes, channels=1
    )
    assert np.array_equal(found["g"][0], np.rint(RAMP * (255 / 65535))) and len(np.unique(found["g"])) == 256
    assert abs(found["g"].mean() - 127.5) < 0.1
    assert np.array_equal(found["f"][0], np.rint(ramp * 255.0)) and found["f"].mean() == 127.5
    assert notes["pictures_reduced_to_8_bits"] == 2


@pytest.mark.parametrize("as_bytes", [False, True])
def test_turned_and_transparent_pictures(tmp_path: Path, as_bytes: bool) -> None:
    tag = Image.Exif()
    tag[0x0112] = 6
    clear = np.concatenate([np.full((64, 64, 3), (255, 0, 0)), np.zeros((64, 64, 1))], -1).astype(np.uint8)
    clear[:32, :, 3] = 255
    pictures = {"t.jpg": saved(HALVES, "JPEG", exif=tag, quality=95), "alpha.png": saved(clear, "PNG")}
    found, notes = packed(tmp_path / "f", pictures, as_bytes, channels=3)
    assert np.abs(found["t"][:, :, 40:].astype(int) - np.array([255, 0, 0])[:, None, None]).max() < 4
    assert np.abs(found["t"][:, :, :24].astype(int) - np.array([0, 0, 255])[:, None, None]).max() < 4
    assert (found["alpha"][:, :32] == np.array([255, 0, 0])[:, None, None]).all()
    assert (found["alpha"][:, 32:] == 255).all()
    assert notes["pictures_turned"] == notes["pictures_flattened"] == 1
    black, _ = packed(tmp_path / "g", {"alpha.png": pictures["alpha.png"]}, as_bytes, channels=3, background="black")
    assert (black["alpha"][:, 32:] == 0).all()
