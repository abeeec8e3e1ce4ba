"""Which items of MIMIC-IV are which variable, what is plausible, and how to read its odd columns.

Item numbers are those of ``d_items`` (bedside) and ``d_labitems`` (laboratory). Several items mean the same: pressures
are measured with a cuff or in an artery, temperatures in Fahrenheit or Celsius.
"""

from __future__ import annotations

import numpy as np

# variable -> bedside items, and the range outside of which a number is a typing error
VITALS: dict[str, tuple[tuple[int, ...], float, float]] = {
    "heart_rate": ((220045,), 0, 350),
    "systolic": ((220179, 220050, 225309), 0, 375),
    "diastolic": ((220180, 220051, 225310), 0, 375),
    "mean_pressure": ((220181, 220052, 225312), 0, 375),
    "respiratory_rate": ((220210, 224690), 0, 300),
    "oxygen_saturation": ((220277,), 0, 100),
    "temperature": ((223762, 223761), 14, 47),
    "gcs_eye": ((220739,), 1, 4),
    "gcs_verbal": ((223900,), 1, 5),
    "gcs_motor": ((223901,), 1, 6),
    "inspired_oxygen": ((223835,), 0, 100),
    "weight": ((224639,), 0, 500),
}
FAHRENHEIT = 223761
# variable -> laboratory items, and the plausible range
LABS: dict[str, tuple[tuple[int, ...], float, float]] = {
    "glucose": ((50931, 50809), 0, 2200),
    "potassium": ((50971, 50822), 0, 15),
    "sodium": ((50983, 50824), 50, 225),
    "chloride": ((50902, 50806), 50, 175),
    "creatinine": ((50912,), 0, 66),
    "urea_nitrogen": ((51006,), 0, 275),
    "bicarbonate": ((50882,), 0, 66),
    "anion_gap": ((50868,), 0, 55),
    "hemoglobin": ((51222, 50811), 0, 30),
    "hematocrit": ((51221, 50810), 0, 100),
    "magnesium": ((50960,), 0, 22),
    "phosphate": ((50970,), 0, 22),
    "calcium": ((50893,), 0, 30),
    "platelets": ((51265,), 0, 2200),
    "white_cells": ((51301, 51300), 0, 1100),
    "red_cells": ((51279,), 0, 14),
    "lactate": ((50813,), 0, 33),
    "ph": ((50820,), 6.3, 10),
    "carbon_dioxide_pressure": ((50818,), 0, 220),
    "oxygen_pressure": ((50821,), 0, 770),
    "bilirubin": ((50885,), 0, 66),
    "alanine_transaminase": ((50861,), 0, 11000),
    "aspartate_transaminase": ((50878,), 0, 22000),
    "albumin": ((50862,), 0, 10),
    "inr": ((51237,), 0, 50),
    "troponin_t": ((51003,), 0, 50),
}


def item_channels(variables: dict[str, tuple[tuple[int, ...], float, float]]) -> dict[int, int]:
    """Item number -> channel number."""
    return {item: channel for channel, (items, _, _) in enumerate(variables.values()) for item in items}


def plausible(
    variables: dict[str, tuple[tuple[int, ...], float, float]], channel_O: np.ndarray, value_O: np.ndarray
) -> np.ndarray:
    """bool [O]: which values lie in the range of their variable."""
    low = np.array([entry[1] for entry in variables.values()])
    high = np.array([entry[2] for entry in variables.values()])
    with np.errstate(invalid="ignore"):
        return np.asarray((value_O >= low[channel_O]) & (value_O <= high[channel_O]))


def celsius(item_O: np.ndarray, value_O: np.ndarray) -> np.ndarray:
    """Values with Fahrenheit turned into Celsius."""
    return np.where(item_O == FAHRENHEIT, (value_O - 32) / 1.8, value_O)


def study_time(date_N: np.ndarray, clock_N: np.ndarray) -> np.ndarray:
    """datetime64[us] of a picture's StudyDate (YYYYMMDD) and StudyTime (HHMMSS.fff, a number that lost its zeros)."""
    day, clock = date_N.astype(np.int64), clock_N.astype(np.float64)
    year, month, date = day // 10_000, day // 100 % 100, day % 100
    start = np.array([f"{y:04d}-{m:02d}-{d:02d}" for y, m, d in zip(year, month, date, strict=True)], "M8[us]")
    whole = clock.astype(np.int64)
    seconds = whole // 10_000 * 3600 + whole // 100 % 100 * 60 + whole % 100
    return start + (seconds * 1_000_000 + np.round((clock - whole) * 1e6).astype(np.int64)).astype("m8[us]")
