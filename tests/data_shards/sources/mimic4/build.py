"""Files in the layout of MIMIC-IV, with its traps."""

from __future__ import annotations

import csv
import gzip
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

STAYS = (
    # subject, admission, stay, in, out, death, age, gender
    ("10000032", "20000001", "30000001", "2180-07-23 14:00:00", "2180-07-26 10:00:00", "", 52, "F"),
    ("10000032", "20000002", "30000002", "2181-01-01 00:00:00", "2181-01-10 00:00:00", "2181-01-12 00:00:00", 52, "F"),
    ("10000048", "20000003", "30000003", "2150-03-01 08:00:00", "2150-03-02 07:00:00", "", 61, "M"),  # one day only
    ("10000055", "20000004", "30000004", "2150-03-01 08:00:00", "2150-03-05 07:00:00", "2150-03-03 00:00:00", 70, "M"),
    ("10000061", "20000005", "30000005", "2150-03-01 08:00:00", "2150-03-09 08:00:00", "", 17, "M"),  # no adult
    ("10000077", "20000006", "30000006", "2160-03-01 08:00:00", "2160-03-09 08:00:00", "", 40, "M"),  # never measured
)
CHART = (
    ("10000032", "30000001", "2180-07-23 15:00:00", 220045, "80"),
    ("10000032", "30000001", "2180-07-23 16:00:00", 223761, "98.6"),  # Fahrenheit
    ("10000032", "30000001", "2180-07-23 17:00:00", 223762, "36.5"),
    ("10000032", "30000001", "2180-07-23 18:00:00", 220045, "8000"),  # a typing error
    ("10000032", "30000001", "2180-07-23 13:00:00", 220045, "70"),  # before the stay
    ("10000032", "30000001", "2180-07-25 15:00:00", 220045, "71"),  # after 48 hours
    ("10000032", "30000001", "2180-07-23 19:00:00", 220739, ""),  # no number
    ("10000032", "30000002", "2181-01-01 02:30:00", 220045, "90"),
    ("10000048", "30000003", "2150-03-01 09:00:00", 220045, "60"),
    ("10000099", "30000099", "2150-03-01 09:00:00", 220045, "60"),  # not in the cohort
)
LABS = (("10000032", "", "2180-07-24 06:00:00", 50971, "4.2"), ("10000032", "", "2180-07-24 06:00:00", 99999, "1"))


def table(path: Path, header: str, rows: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", newline="") as stream:  # type: ignore[operator]
        writer = csv.writer(stream)
        writer.writerow(header.split(","))
        writer.writerows(rows)


def lay_mimic(folder: Path, optional: bool = True) -> Path:
    people = {s[0]: (s[0], s[7], s[6], 2180, "2011 - 2013", "") for s in STAYS}
    table(
        folder / "hosp/patients.csv.gz",
        "subject_id,gender,anchor_age,anchor_year,anchor_year_group,dod",
        people.values(),
    )
    admissions = [(s[0], s[1], s[3], s[4], s[5], "EMERGENCY", int(bool(s[5]))) for s in STAYS]
    header = "subject_id,hadm_id,admittime,dischtime,deathtime,admission_type,hospital_expire_flag"
    table(folder / "hosp/admissions.csv.gz", header, admissions)
    stays = [(*s[:3], "MICU", "MICU", s[3], s[4], 1.0) for s in STAYS]
    table(
        folder / "icu/icustays.csv.gz",
        "subject_id,hadm_id,stay_id,first_careunit,last_careunit,intime,outtime,los",
        stays,
    )
    chart = [(c[0], "", c[1], "", c[2], c[2], c[3], c[4], c[4], "", 0) for c in CHART]
    header = "subject_id,hadm_id,stay_id,caregiver_id,charttime,storetime,itemid,value,valuenum,valueuom,warning"
    table(folder / "icu/chartevents.csv.gz", header, chart)
    labs = [(n, s, h, "", i, "", t, t, v, v, "mEq/L", "", "", "", "", "") for n, (s, h, t, i, v) in enumerate(LABS)]
    header = "labevent_id,subject_id,hadm_id,specimen_id,itemid,order_provider_id,charttime,storetime,value,valuenum,"
    header += "valueuom,ref_range_lower,ref_range_upper,flag,priority,comments"
    table(folder / "hosp/labevents.csv", header, labs)
    if optional:
        lay_optional(folder)
    return folder


# note, charted, stored, text
NOTES = (
    (15, "2180-07-24 01:00:00", "2180-07-24 02:00:00", 'LATER, "quoted"\nlines'),
    (14, "2180-07-23 23:00:00", "2180-07-24 00:30:00", "EARLIER"),
    (16, "2180-07-28 01:00:00", "2180-07-28 02:00:00", "TOO LATE"),
    (17, "2180-07-25 13:30:00", "2180-07-25 16:00:00", "WRITTEN TOO LATE"),  # the window ends between the two
    (18, "2180-07-24 03:00:00", "", "NEVER STORED"),
)
# picture, study, view, day, time, grey
PICTURES = (
    ("aaa", "50414267", "AP", 21800724, "93014.5", 90),  # 09:30:14.5, the zero is gone
    ("bbb", "50414268", "PA", 21800724, "213014.531", 200),
    ("ccc", "50414269", "LATERAL", 21800724, "223014.531", None),
    ("ddd", "50414270", "AP", 21800801, "0.0", None),
)
ECG = "files/p1000/p10000032/s40689238/40689238"
# path, time, what its samples begin at; the last one is after the window, and its file is not there
ECGS = (
    (ECG, "2180-07-23 20:44:00", 100),
    ("files/p1000/p10000032/s40689239/40689239", "2180-07-24 08:00:00", 300),
    ("files/p1000/p10000032/s40689240/40689240", "2180-07-27 08:00:00", None),
)


def lay_optional(folder: Path) -> None:
    header = "note_id,subject_id,hadm_id,note_type,note_seq,charttime,storetime,text"
    notes = [(f"10000032-RR-{n}", "10000032", "", "RR", n, at, stored, text) for n, at, stored, text in NOTES]
    table(folder / "note/radiology.csv.gz", header, notes)
    header = "dicom_id,subject_id,study_id,ViewPosition,StudyDate,StudyTime"
    pictures = [(name, "10000032", study, view, day, time) for name, study, view, day, time, _ in PICTURES]
    table(folder / "cxr/mimic-cxr-2.0.0-metadata.csv.gz", header, pictures)
    for name, study, _, _, _, grey in PICTURES:
        path = folder / f"cxr/files/p10/p10000032/s{study}/{name}.jpg"
        path.parent.mkdir(parents=True)
        if grey is not None:
            Image.new("L", (90, 60), grey).save(path)
    ecgs = [("10000032", path[-8:], path[-8:], time, path) for path, time, _ in ECGS]
    table(folder / "ecg/record_list.csv", "subject_id,study_id,file_name,ecg_time,path", ecgs)
    for path, _, first in ECGS:
        if first is not None:
            counts = np.full((50, 12), first) + np.arange(12)
            counts[0, 0] = -32768  # no value
            lay_ecg(folder / "ecg" / path, counts)
    lay_codes(folder)


def lay_codes(folder: Path) -> None:
    """Drugs, procedures and diagnoses of patient 10000032; of the first stay until hour 48, and outside of it."""
    header = "subject_id,hadm_id,seq_num,icd_code,icd_version"
    codes = [("20000001", 1, "5723", 9), ("20000001", 2, "I2101", 10), ("20000002", 1, "0389", 9)]
    table(folder / "hosp/diagnoses_icd.csv.gz", header, [("10000032", *row) for row in codes])
    header = "subject_id,hadm_id,seq_num,chartdate,icd_code,icd_version"
    done = [("10000032", "20000001", 1, "2180-07-24", "0W9G3ZZ", 10), ("10000032", "20000002", 1, "2181-01-02", "", 9)]
    table(folder / "hosp/procedures_icd.csv.gz", header, done)
    given = [
        ("2180-07-23 15:00:00", "Heparin", "Administered"),
        ("2180-07-23 16:00:00", "Insulin", "Not Given"),
        ("2180-07-25 13:59:00", "Heparin", "Delayed Administered"),
        ("2180-07-25 14:01:00", "Morphine", "Administered"),  # after the window
        ("2180-07-23 17:00:00", "", "Administered"),
    ]
    header = "subject_id,hadm_id,emar_id,emar_seq,charttime,medication,event_txt"
    rows = [("10000032", "20000001", f"10000032-{n}", n, *row) for n, row in enumerate(given)]
    table(folder / "hosp/emar.csv.gz", header, rows)
    inputs = [("2180-07-24 14:00:00", "2180-07-24 20:00:00", "221906", 3.5), ("2180-07-23 13:00:00", "", "221906", 1)]
    header = "subject_id,hadm_id,stay_id,starttime,endtime,itemid,amount"
    rows = [("10000032", "20000001", "30000001", *row) for row in inputs]
    table(folder / "icu/inputevents.csv.gz", header, rows)
    header = "subject_id,hadm_id,starttime,stoptime,drug"
    orders = [("2180-07-23 18:00:00", "2180-07-30 18:00:00", " Aspirin "), ("", "", "Aspirin")]
    table(folder / "hosp/prescriptions.csv.gz", header, [("10000032", "20000001", *row) for row in orders])
    header = "subject_id,hadm_id,stay_id,starttime,endtime,itemid,value"
    done = [("10000032", "20000001", "30000001", "2180-07-23 20:00:00", "2180-07-24 20:00:00", "225792.0", 1)]
    table(folder / "icu/procedureevents.csv.gz", header, done)
    labels = [("221906", "Norepinephrine"), ("225792", "Invasive Ventilation")]
    table(folder / "icu/d_items.csv.gz", "itemid,label", labels)


OFFICIAL_LEADS = ("I", "II", "III", "aVR", "aVF", "aVL", "V1", "V2", "V3", "V4", "V5", "V6")  # aVF before aVL


def lay_ecg(
    path: Path,
    counts: np.ndarray,
    rate: str = "500",
    leads: tuple[str, ...] = OFFICIAL_LEADS,
    gain: str = "200.0(0)/mV",
) -> None:
    """A WFDB record in format 16: the header with sums of samples as they are, and the samples."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sums = counts.astype(np.int64).sum(axis=0)
    lines = [f"{path.name}.dat 16 {gain} 16 0 0 {s % 65536} 0 {lead}" for s, lead in zip(sums, leads, strict=True)]
    head = f"{path.name} {counts.shape[1]} {rate} {len(counts)} 20:44:00"
    path.with_name(f"{path.name}.hea").write_text("\n".join([head, *lines, "# a comment"]) + "\n")
    path.with_name(f"{path.name}.dat").write_bytes(counts.astype("<i2").tobytes())


def lay_tables(folder: Path, **tables: tuple[str, list[tuple[Any, ...]]]) -> Path:
    """A folder with a chart of one heart rate an hour after each stay's start, and other tables as they are given.

    Args:
        tables: patients, admissions, icustays, chartevents, labevents or diagnoses -> (header, rows).
    """
    places = {
        "patients": "hosp/patients", "admissions": "hosp/admissions", "icustays": "icu/icustays",
        "chartevents": "icu/chartevents", "labevents": "hosp/labevents", "diagnoses": "hosp/diagnoses_icd",
    }  # fmt: skip
    rows = [(s[0], s[2], hours_after(s[3], 1), 220045, 80) for s in tables["icustays"][1] if s[3]]
    tables.setdefault("chartevents", ("subject_id,stay_id,charttime,itemid,valuenum", rows))
    first = tables["icustays"][1][0]
    lab = [(first[0], hours_after(first[3], 2), 50971, 4.5, "mEq/L")]
    tables.setdefault("labevents", ("subject_id,charttime,itemid,valuenum,valueuom", lab))
    for name, (header, own) in tables.items():
        table(folder / f"{places[name]}.csv", header, own)
    return folder


def hours_after(start: str, hours: float) -> str:
    """A moment as MIMIC writes it."""
    return (datetime.fromisoformat(start) + timedelta(hours=hours)).isoformat(" ", "seconds")
