"""Small data for every importer with a recipe, in the official layouts: recipe -> source, and options to pack it.

Behind a colon: the same recipe on other data.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.data_shards.sources.cmu.test_sequences import lay_csd
from tests.data_shards.sources.image_text.folders import folder, png
from tests.data_shards.sources.mimic4.build import hours_after, lay_ecg, lay_tables, table
from tests.data_shards.sources.tables.test_shipped import DYNAMIC
from tests.data_shards.sources.test_official_files import lay_pam
from tests.data_shards.sources.test_physionet2019 import lay_stay
from tests.data_shards.sources.test_ptbxl import LEADS

STAYS = 18
PARTS = ("train", "train", "train", "train", "val", "test")
IN = "2150-03-01 08:00:00"
Options = dict[str, Any]


def patient(stay: int) -> str:
    return f"1000{stay:04d}"


def note(stay: int, number: int) -> str:
    return f"report {number} of stay {stay}"


def grey(stay: int, number: int) -> int:
    return 20 + 10 * stay + 5 * number


def ecg_counts(stay: int, number: int) -> np.ndarray:
    """int [samples, 12], each sample another number; the number-th ECG is longer than the one before."""
    samples = 200 + 100 * number
    return np.arange(samples)[:, None] // 5 + 10 * np.arange(12) + 1000 * number + stay


# Hours since a stay began at which the number-th object is there; the last one is after the window
HOURS = (1.5, 20.25, 47.75, 50.0)


def mimic4(path: Path) -> Options:
    """Stays of 60 hours or more. Of each: a report, an X-ray and an ECG at each of HOURS (stay 0: reports only)."""
    names = range(STAYS)
    ends = [hours_after(IN, 60 if stay % 2 else 120) for stay in names]
    lay_tables(
        path,
        patients=("subject_id,gender,anchor_age,anchor_year", [(patient(n), "FM"[n % 2], 40 + n, 2150) for n in names]),
        admissions=(
            "subject_id,hadm_id,dischtime,deathtime,hospital_expire_flag",
            [(patient(n), f"2{n}", ends[n], ends[n] if n // 6 % 2 else "", n // 6 % 2) for n in names],
        ),
        icustays=(
            "subject_id,hadm_id,stay_id,intime,outtime",
            [(patient(n), f"2{n}", f"3{n}", IN, ends[n]) for n in names],
        ),
    )
    notes, pictures, ecgs = [], [], []
    for stay in names:
        for number, hour in enumerate(HOURS):
            when = datetime.fromisoformat(hours_after(IN, hour))
            notes.append((patient(stay), hours_after(IN, max(0.5, hour - 3)), when.isoformat(" "), note(stay, number)))
            if stay == 0:
                continue
            day, clock = when.strftime("%Y%m%d"), f"{int(when.strftime('%H%M%S'))}.0"
            pictures.append((f"d{number}", patient(stay), f"5{number}", "AP", day, clock))
            place = path / f"cxr/files/p10/p{patient(stay)}/s5{number}/d{number}.jpg"
            place.parent.mkdir(parents=True)
            Image.new("L", (40, 30), grey(stay, number)).save(place)
            where = f"files/p{patient(stay)}/s{number}"
            ecgs.append((patient(stay), when.isoformat(" "), where))
            lay_ecg(path / "ecg" / where, ecg_counts(stay, number))
    table(path / "note/radiology.csv", "subject_id,charttime,storetime,text", notes)
    header = "dicom_id,subject_id,study_id,ViewPosition,StudyDate,StudyTime"
    table(path / "cxr/mimic-cxr-2.0.0-metadata.csv", header, pictures)
    table(path / "ecg/record_list.csv", "subject_id,ecg_time,path", ecgs)
    table(path / "splits.csv", "stay_id,default", [(f"3{stay}", PARTS[stay % 6]) for stay in names])
    return {"path": str(path), "splits": str(path / "splits.csv"), "max_notes": 5, "image_side": 32,
            "drugs": "none", "procedures": False, "history": False}  # fmt: skip


def ptbxl(path: Path) -> Options:
    """Five ECGs a fold, one of each superclass."""
    names, classes = range(50), ("NORM", "MI", "STTC", "CD", "HYP")
    header = "ecg_id,patient_id,age,sex,height,weight,scp_codes,strat_fold,filename_lr,filename_hr"
    rows = [
        (n, n, 50, n % 2, "", "", f"{{'{classes[n % 5]}': 100.0}}", 1 + n // 5, f"records100/{n}_lr", "") for n in names
    ]
    table(path / "ptbxl_database.csv", header, rows)
    table(path / "scp_statements.csv", ",diagnostic,diagnostic_class", [(name, 1, name) for name in classes])
    for n in names:
        lay_ecg(path / f"records100/{n}_lr", np.arange(600).reshape(50, 12) + n, "100", LEADS, "1000.0(0)/mV")
    return {"path": str(path)}


def physionet2019(path: Path) -> Options:
    for n in range(30):
        lay_stay(path, f"p{100_000 * (n % 2) + n:06d}", list(range(1, 6 + n % 4)), 4 if n % 3 else None, Lactate=2.0)
    return {"path": str(path)}


def cmu_mosi(path: Path) -> Options:
    videos = [f"v{n:02d}" for n in range(30)]
    starts = np.arange(20) / 10
    both = {name: np.stack([starts, starts + 0.1], 1) for name in videos}
    sizes = {"glove_vectors": 5, "COVAREP": 3, "OpenFace_2": 4}
    for number, (name, width) in enumerate(sizes.items()):
        rng = np.random.default_rng(number)
        lay_csd(path / f"{name}.csd", name, {video: (rng.normal(size=(20, width)), both[video]) for video in videos})
    label = {video: (np.array([[n % 7 - 3.0], [1.5]]), [[0.0, 1.0], [1.0, 2.0]]) for n, video in enumerate(videos)}
    lay_csd(path / "labels.csd", "Opinion Segment Labels", label)
    return {"path": str(path), "average_s": 0.5}


def pam(path: Path) -> Options:
    return {"path": str(lay_pam(path, 30))}


def image_text(path: Path) -> Options:
    rows = [{"img": f"{n % 3}.png", "text": f"words of {n % 2}", "label": f"class{n % 2}"} for n in range(24)]
    files = {f"{n}.png": png((80 * n, 10, 200)) for n in range(3)}
    parts = {"train.jsonl": rows, "val.jsonl": rows[:6], "test.jsonl": rows[:6]}
    return {"path": folder(path, parts, files), "size": 32}


def dialogues(path: Path) -> Options:
    """Up to three pictures and four turns of a dialogue each."""
    rows = [
        {"img": [f"{(n + i) % 3}.png" for i in range(1 + n % 3)], "label": f"class{n % 2}",
         "text": [{"role": "user" if i % 2 == 0 else "guide", "content": f"turn {i} of {n % 2}"} for i in range(n % 5)]}
        for n in range(24)
    ]  # fmt: skip
    files = {f"{n}.png": png((80 * n, 10, 200)) for n in range(3)}
    parts = {"train.jsonl": rows, "val.jsonl": rows[:6], "test.jsonl": rows[:6]}
    return {"path": folder(path, parts, files), "size": 32, "several": 3}


def yaib(path: Path) -> Options:
    stays = list(range(40))
    rows = [(stay, float(hour)) for stay in stays for hour in range(0, 24, 6)]
    columns = {
        name: [float(n + stay) if (n + stay) % 3 else None for stay, _ in rows] for n, name in enumerate(DYNAMIC)
    }
    path.mkdir()
    static = {"stay_id": stays, "age": [50.0] * 40, "sex": ["Male", "Female"] * 20, "height": [170.0] * 40,
              "weight": [70.0] * 40}  # fmt: skip
    times = {"stay_id": [stay for stay, _ in rows], "time": [hour for _, hour in rows]}
    pq.write_table(pa.table(static), path / "sta.parquet")
    pq.write_table(pa.table({**times, **columns}), path / "dyn.parquet")
    pq.write_table(pa.table({"stay_id": stays, "label": [stay % 2 for stay in stays]}), path / "outc.parquet")
    return {"path": str(path), "mapping": "yaib_mortality24"}


def clif(path: Path) -> Options:
    path.mkdir()
    names, start = [f"h{n}" for n in range(40)], datetime(2024, 3, 1, tzinfo=UTC)
    when = [start + timedelta(hours=1 + n % 20) for n in range(40)]

    def write(name: str, **columns: list[Any]) -> None:
        pq.write_table(pa.table({"hospitalization_id": names, **columns}), path / f"clif_{name}.parquet")

    write("hospitalization", patient_id=names, admission_dttm=[start] * 40, age_at_admission=list(range(40, 80)),
          discharge_category=["Home", "Expired"] * 20)  # fmt: skip
    write("vitals", recorded_dttm=when, vital_category=["map"] * 40, vital_value=[float(n) for n in range(40)])
    write("labs", lab_result_dttm=when, lab_category=["lactate"] * 40, lab_value_numeric=[1.0 + n for n in range(40)])
    write("medication_admin_continuous", admin_dttm=when, med_category=["propofol", "heparin"] * 20)
    return {"path": str(path), "mapping": "clif_mortality"}


def physionet2012(path: Path) -> Options:
    (path / "set-a").mkdir(parents=True)
    outcomes, splits = ["RecordID,Length_of_stay,In-hospital_death"], ["RecordID,split1"]
    for n in range(24):
        lines = ["Time,Parameter,Value", "00:00,Age,60", f"01:30,HR,{60 + n}", "05:00,K,4.1", "09:00,pH,7.3"]
        (path / f"set-a/{1000 + n}.txt").write_text("\n".join(lines) + "\n")
        outcomes.append(f"{1000 + n},9,{n // 6 % 2}")
        splits.append(f"{1000 + n},{PARTS[n % 6]}")
    (path / "Outcomes-a.txt").write_text("\n".join(outcomes) + "\n")
    (path / "splits.csv").write_text("\n".join(splits) + "\n")
    return {"path": str(path), "splits": str(path / "splits.csv")}


RECIPES: dict[str, tuple[str, Callable[[Path], Options]]] = {
    "activity_pam": ("pam", pam),
    "ecg_ptbxl": ("ptbxl", ptbxl),
    "icu_clif": ("tables", clif),
    "icu_mimic4": ("mimic4", mimic4),
    "icu_physionet2012": ("physionet2012", physionet2012),
    "icu_physionet2019": ("physionet2019", physionet2019),
    "icu_yaib": ("tables", yaib),
    "pictures_with_text": ("image_text", image_text),
    "pictures_with_text:dialogues": ("image_text", dialogues),
    "sentiment_cmu": ("cmu_mosi", cmu_mosi),
}
