"""Which items of MIMIC-IV are which variable, what is plausible, and how to read its odd columns.

Item numbers are those of ``d_items`` (bedside) and ``d_labitems`` (laboratory). Several items mean the same: pressures
are measured with a cuff or in an artery, temperatures in Fahrenheit or Celsius.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

Variables = dict[str, tuple[tuple[int, ...], float, float]]

# variable -> bedside items, and the range outside of which a number is a typing error
VITALS: Variables = {
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
POUND = 0.45359237  # kg
# variable -> laboratory items, and the plausible range
LABS: Variables = {
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

# variable -> its unit in the ways in which it is written (`plain_unit`); a value of another one is kept and counted
_SAME = {
    "bpm": ("heart_rate", "respiratory_rate"),
    "insp/min": ("respiratory_rate",),
    "mmhg": ("systolic", "diastolic", "mean_pressure", "carbon_dioxide_pressure", "oxygen_pressure"),
    "%": ("oxygen_saturation", "inspired_oxygen", "hematocrit"),
    "f": ("temperature",),
    "c": ("temperature",),
    "kg": ("weight",),
    "lb": ("weight",),
    "lbs": ("weight",),
    "mg/dl": ("glucose", "creatinine", "urea_nitrogen", "magnesium", "phosphate", "calcium", "bilirubin"),
    "meq/l": ("potassium", "sodium", "chloride", "bicarbonate", "anion_gap"),
    "mmol/l": ("potassium", "sodium", "chloride", "bicarbonate", "anion_gap", "lactate"),
    "g/dl": ("hemoglobin", "albumin"),
    "k/ul": ("platelets", "white_cells"),
    "10*3/ul": ("platelets", "white_cells"),
    "m/ul": ("red_cells",),
    "10*6/ul": ("red_cells",),
    "units": ("ph",),
    "iu/l": ("alanine_transaminase", "aspartate_transaminase"),
    "u/l": ("alanine_transaminase", "aspartate_transaminase"),
    "ng/ml": ("troponin_t",),
}
UNITS = {name: {unit for unit, names in _SAME.items() if name in names} for name in (*VITALS, *LABS)}


def item_channels(variables: Variables) -> dict[int, int]:
    """Item number -> channel number."""
    return {item: channel for channel, (items, _, _) in enumerate(variables.values()) for item in items}


def plausible(variables: Variables, channel_O: np.ndarray, value_O: np.ndarray) -> np.ndarray:
    """bool [O]: which values lie in the range of their variable."""
    low = np.array([entry[1] for entry in variables.values()])
    high = np.array([entry[2] for entry in variables.values()])
    with np.errstate(invalid="ignore"):
        return np.asarray((value_O >= low[channel_O]) & (value_O <= high[channel_O]))


def in_own_units(item_O: np.ndarray, value_O: np.ndarray, unit_O: np.ndarray | None) -> tuple[np.ndarray, int]:
    """Values with temperatures in Celsius and weights in kilograms, and how many were converted.

    Args:
        unit_O: unit of each value as it is written, "" where none is. It counts more than the item: both temperatures
            have one that says Fahrenheit or Celsius.
    """
    word_O = np.full(len(item_O), "") if unit_O is None else np.array([plain_unit(unit) for unit in unit_O.tolist()])
    warm_O = np.isin(item_O, VITALS["temperature"][0])
    fahrenheit_O = warm_O & ((word_O == "f") | ((word_O != "c") & (item_O == FAHRENHEIT)))
    pounds_O = np.isin(item_O, VITALS["weight"][0]) & np.isin(word_O, ("lb", "lbs"))
    value_O = np.where(fahrenheit_O, (value_O - 32) / 1.8, value_O)
    return np.where(pounds_O, value_O * POUND, value_O), int((fahrenheit_O | pounds_O).sum())


def plain_unit(unit: str) -> str:
    """A unit without blanks, degree signs and case: f for °F, mm Hg and mmHg alike."""
    word = "".join(unit.lower().split()).replace("deg.", "").replace("μ", "u").replace("µ", "u")
    return word.lstrip("°?")


def another_units(variables: Variables, channel_O: np.ndarray, unit_O: np.ndarray) -> Counter[str]:
    """How many values have a unit that is none of their variable's: `variable.unit` -> values."""
    found: Counter[str] = Counter()
    names = list(variables)
    for (channel, unit), count in Counter(zip(channel_O.tolist(), unit_O.tolist(), strict=True)).items():
        if unit and plain_unit(unit) not in UNITS[names[channel]]:
            found[f"{names[channel]}.{unit}"] += count
    return found


def study_time(date_N: np.ndarray, clock_N: np.ndarray) -> np.ndarray:
    """datetime64[us] of a picture's StudyDate (YYYYMMDD) and StudyTime (HHMMSS.fff, a number that lost its zeros).

    NaT where one of them is missing or is no date or time.
    """
    pairs = zip(date_N.tolist(), clock_N.tolist(), strict=True)
    return np.array([_moment(day, clock) for day, clock in pairs], "M8[us]")


def _moment(day: float, clock: float) -> np.datetime64:
    try:
        date, seconds = int(day), int(clock)
        start = np.datetime64(f"{date // 10_000:04d}-{date // 100 % 100:02d}-{date % 100:02d}", "us")
    except ValueError:  # NaN, or a 13th month
        return np.datetime64("NaT")
    hour, minute, second = seconds // 10_000, seconds // 100 % 100, seconds % 100
    if not (0 <= hour < 24 and minute < 60 and second < 60):
        return np.datetime64("NaT")
    microseconds = (hour * 3600 + minute * 60 + second) * 1_000_000 + round((clock - seconds) * 1e6)
    return start + np.timedelta64(microseconds, "us")
