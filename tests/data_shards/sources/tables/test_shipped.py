"""Shipped mappings on tables in the layouts they are for, written here: YAIB's cohorts and CLIF."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_shards import Codes, Series, create_source
from data_shards.sources.tables.mapping import read_mapping
from data_shards.sources.tables.source import SHIPPED
from tests.data_shards.sources.build import read

MAPPINGS = Path(__file__).parents[4] / "data_shards/sources/mappings"
WORDS = (
    "alb alp alt ast be bicar bili bili_dir bnd bun ca cai ck ckmb cl crea crp dbp fgn fio2 glu hgb hr inr_pt k lact "
    "lymph map mch mchc mcv methb mg na neut o2sat pco2 ph phos plt po2 ptt resp sbp temp tnt urine wbc"
)
DYNAMIC = WORDS.split()


def lay_yaib(folder: Path, hourly: bool) -> Path:
    """Stays 7 and 8: a heart rate of 80 + the hour at every hour, potassium of stay 8 at hour 2."""
    folder.mkdir()
    static = {
        "stay_id": [7, 8], "age": [61.5, 40.0], "sex": ["Male", "Female"], "height": [180.0, None],
        "weight": [None, 70.0],
    }  # fmt: skip
    pq.write_table(pa.table(static), folder / "sta.parquet")
    rows = [(stay, float(hour)) for stay in (8, 7) for hour in range(26)]
    columns: dict[str, Any] = {name: [None] * len(rows) for name in DYNAMIC}
    columns["hr"] = [80.0 + hour for _, hour in rows]
    columns["k"] = [4.5 if row == (8, 2.0) else None for row in rows]
    table = {"stay_id": [stay for stay, _ in rows], "time": [hour for _, hour in rows]}
    table |= {name: pa.array(column, pa.float64()) for name, column in columns.items()}
    pq.write_table(pa.table(table), folder / "dyn.parquet")
    if hourly:
        outcomes = {"stay_id": [7, 7, 8], "time": [1.0, 3.0, 2.0], "label": [0.0, 1.0, 0.0]}
    else:
        outcomes = {"stay_id": [8, 7], "label": [True, False]}
    pq.write_table(pa.table(outcomes), folder / "outc.parquet")
    return folder


def test_yaibs_deaths_from_the_first_day(tmp_path: Path) -> None:
    folder = lay_yaib(tmp_path / "mortality24", hourly=False)
    records, notes = read("tables", {"path": str(folder), "mapping": "yaib_mortality24"})
    seven, eight = records["7"], records["8"]
    vitals, labs = eight.values["vitals"], eight.values["labs"]
    assert isinstance(vitals, Series) and isinstance(labs, Series)
    assert (vitals.times_O.tolist(), vitals.values_O.tolist()) == (list(range(25)), list(range(80, 105)))
    schema = create_source("tables", {"path": str(folder), "mapping": "yaib_mortality24"}).schema
    channels = {spec.name: spec.channels for spec in schema.modalities}
    assert sorted(channels["vitals"] + channels["labs"]) == sorted(DYNAMIC)
    assert [channels["labs"][channel] for channel in labs.channels_O.tolist()] == ["k"] and labs.times_O.tolist() == [2]
    assert np.asarray(seven.values["static"]).tolist() == [61.5, 180, 0, 1, 1, 0]
    assert isinstance(seven.values["sex"], Codes) and seven.values["sex"].codes == ["sex=Male"]
    assert (seven.targets["mortality"], eight.targets["mortality"]) == (0.0, 1.0)
    assert notes["observations_outside_window"] == 2


def test_yaibs_sepsis_hour_by_hour(tmp_path: Path) -> None:
    folder = lay_yaib(tmp_path / "sepsis", hourly=True)
    records, _ = read("tables", {"path": str(folder), "mapping": "yaib_sepsis"})
    seven = records["7"]
    assert seven.moments is not None and seven.moments.tolist() == [1, 3]
    assert np.asarray(seven.targets["sepsis"]).tolist() == [0, 1]
    assert np.asarray(records["8"].targets["sepsis"]).tolist() == [0]


def lay_clif(folder: Path) -> datetime:
    """Hospitalizations h1 (died), h.2 (home, admitted ten hours later) and h3 (missing, without a measurement)."""
    folder.mkdir()
    start = datetime(2024, 3, 1, 8, tzinfo=UTC)
    starts = [start, start + timedelta(hours=10), start]
    stays = {
        "patient_id": ["p1", "p2", "p3"], "hospitalization_id": ["h1", "h.2", "h3"],
        "admission_dttm": starts, "discharge_dttm": [one + timedelta(days=3) for one in starts],
        "age_at_admission": [70, 55, 60], "discharge_category": ["Expired", "Home", "Missing"],
    }  # fmt: skip
    pq.write_table(pa.table(stays), folder / "clif_hospitalization.parquet")

    def rows(name: str, given: list[tuple[str, float, str, float | None]], columns: tuple[str, str, str]) -> None:
        table = {"hospitalization_id": [row[0] for row in given]}
        table |= {columns[0]: [start + timedelta(hours=row[1]) for row in given]}  # type: ignore[dict-item]
        table |= {column: [row[n] for row in given] for n, column in enumerate(columns[1:], 2)}  # type: ignore[misc]
        pq.write_table(pa.table(table), folder / f"{name}.parquet")

    rows("clif_vitals", [("h1", 0.5, "heart_rate", 88.0), ("h.2", 11.5, "temp_c", 37.5), ("h1", 30, "map", 60.0),
                         ("h1", 1, "unknown_sign", 1.0), ("other", 1, "map", 60.0)],
         ("recorded_dttm", "vital_category", "vital_value"))  # fmt: skip
    rows("clif_labs", [("h1", 2, "creatinine", 1.5), ("h1", 2, "lactate", None)],
         ("lab_result_dttm", "lab_category", "lab_value_numeric"))  # fmt: skip
    rows("clif_medication_admin_continuous", [("h.2", 14, "propofol", 5.0)], ("admin_dttm", "med_category", "med_dose"))
    return start


def test_clifs_deaths_in_hospital(tmp_path: Path) -> None:
    lay_clif(tmp_path / "clif")
    source = create_source("tables", {"path": str(tmp_path / "clif"), "mapping": "clif_mortality"})
    records, notes = read("tables", {"path": str(tmp_path / "clif"), "mapping": "clif_mortality"})
    assert records.keys() == {"h1", "h_2e2"} and records["h1"].group == "p1"
    one, two = records["h1"], records["h_2e2"]
    vitals, labs, drugs = one.values["vitals"], one.values["labs"], two.values["drugs"]
    assert isinstance(vitals, Series) and isinstance(labs, Series) and isinstance(drugs, Codes)
    assert (vitals.times_O.tolist(), vitals.channels_O.tolist(), vitals.values_O.tolist()) == ([0.5], [1], [88.0])
    names = source.schema.modalities[1].channels
    assert [(names[n], value) for n, value in zip(labs.channels_O, labs.values_O, strict=True)] == [("creatinine", 1.5)]
    warm = two.values["vitals"]
    assert isinstance(warm, Series) and (warm.times_O.tolist(), warm.channels_O.tolist()) == ([1.5], [0])
    assert drugs.times_O is not None and (drugs.codes, drugs.times_O.tolist()) == (["propofol"], [4.0])
    assert (one.targets["died"], two.targets["died"]) == (1.0, 0.0)
    assert np.asarray(one.values["static"]).tolist() == [70, 1]
    assert notes["observations_outside_window"] == 1


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_mapping_is_legal_and_called_as_its_file(name: str) -> None:
    assert read_mapping(MAPPINGS / f"{name}.yaml").name == name


def test_a_mapping_that_is_not_shipped_and_a_path_that_is_no_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mapping 'eicu' is none of clif_mortality, yaib_mortality24, yaib_sepsis"):
        create_source("tables", {"path": str(tmp_path), "mapping": "eicu"})
    with pytest.raises(ValueError, match="is no folder; with a shipped mapping the path is the folder of the tables"):
        create_source("tables", {"path": str(tmp_path / "x.yaml"), "mapping": "yaib_sepsis"})
    with pytest.raises(ValueError, match=r"is a folder; give the mapping file .* shipped one with -o mapping=NAME"):
        create_source("tables", {"path": str(tmp_path)})
