"""Pictures in cells of a table: by path, as bytes, as a struct of both; their values, counts and errors."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from data_shards import create_source
from data_shards.sources.tables.mapping import ImageTable
from data_shards.sources.tables.values import Rows, pictures
from tests.data_shards.sources.image_text.folders import read
from tests.data_shards.sources.readers.picture_bytes import saved

RAMP = (np.arange(4096) * 16).astype(np.uint16).reshape(64, 64)


def cells(values: list[Any], kind: pa.DataType, folder: Path, size: int = 8) -> tuple[dict[int, Any], Counter[str]]:
    table = pa.table({"record": pa.array(range(10, 10 + len(values))), "p": pa.array(values, kind)})
    spec = ImageTable(kind="image", column="p", channels=1, height=size, width=size)
    notes: Counter[str] = Counter()
    return pictures(Rows.of(table, 10, "rows.parquet"), spec, folder, notes), notes


def test_bytes_paths_and_structs_of_both_are_one_picture(tmp_path: Path) -> None:
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    data = saved(pixels, "PNG")
    (tmp_path / "a.png").write_bytes(data)
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    both = [{"bytes": data, "path": "elsewhere.png"}, {"bytes": None, "path": "a.png"}, {"bytes": None, "path": None}]
    for values, kind in (([data, None], pa.binary()), (["a.png", None], pa.string()), ([*both, None], struct)):
        found, notes = cells(values, kind, tmp_path)
        wanted = 2 if kind == struct else 1
        assert sorted(found) == list(range(wanted)) and notes == {}
        assert all(np.array_equal(picture, pixels[None]) for picture in found.values())


def test_errors_name_file_record_and_picture(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^rows.parquet, record number 12: picture in 'p' cannot be read: the picture is"
    ):
        cells([None, b""], pa.binary(), tmp_path)
    with pytest.raises(
        ValueError, match=r"record number 11: picture .*gone.png cannot be read: there is no such file$"
    ):
        cells(["gone.png"], pa.string(), tmp_path)
    with pytest.raises(ValueError, match=r"record number 11: picture .* cannot be read: is not a file$"):
        cells([""], pa.string(), tmp_path)


def test_a_table_of_16_bit_and_turned_pictures(tmp_path: Path) -> None:
    (tmp_path / "g.png").write_bytes(saved(RAMP, "PNG"))
    (tmp_path / "f.tif").write_bytes(saved(np.linspace(0, 1, 4096).reshape(64, 64).astype(np.float32), "TIFF"))
    (tmp_path / "r.csv").write_text("id,p\na,g.png\nb,f.tif\n")
    (tmp_path / "m.yaml").write_text(
        "name: x\nrecords: {file: r.csv, key: id}\nsplit: {shares: {train: 1.0}}\n"
        "modalities: {i: {kind: image, column: p, channels: 1, height: 64, width: 64}}\n"
    )
    records, notes = read(create_source("tables", {"path": str(tmp_path / "m.yaml")}))
    deep = np.asarray(records["a"].values["i"])
    assert len(np.unique(deep)) == 256 and deep.max() == 255 and abs(deep.mean() - 127.5) < 0.1
    assert len(np.unique(np.asarray(records["b"].values["i"]))) == 256
    assert notes["pictures_reduced_to_8_bits"] == 2
