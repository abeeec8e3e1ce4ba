"""ECGs of MIMIC-IV-ECG: twelve leads at 500 samples per second, ten seconds each.

The header says what a record holds: rate, gains, baselines, units and the order of the leads, which in MIMIC-IV-ECG is
not the usual one (aVF stands before aVL). They are given in the usual order, in mV. Twelve signals of which none has
the name of a lead are taken to be in the usual order, and counted.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_shards.sources.readers.recordings.resample import ratio, resampled
from data_shards.sources.readers.signals import Signal, fit_signal, lead_order
from data_shards.sources.readers.wfdb import read_wfdb

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
RATE = 500.0


@dataclass(frozen=True)
class Ecg:
    """An ECG at RATE / step samples per second.

    Attributes:
        values_LC: float32 [L, 12] in mV, in the order of LEADS. gaps: samples of the file that had no value.
        counts: what else was odd or was done.
    """

    values_LC: np.ndarray
    gaps: int
    counts: Counter[str] = field(default_factory=Counter)


def read_ecg(path: Path, step: int, resample: bool = False) -> Ecg:
    """A WFDB record of the twelve leads, every ``step`` samples averaged (those that have a value; 0 where none has).

    Args:
        path: with or without .hea. step: of samples at RATE, so RATE / step samples per second are given; a record
            that has these already is taken as it is.
        resample: convert a record of any other rate (by a polyphase filter) instead of refusing it.

    Raises:
        ValueError: no such record, a lead is missing, or another rate; says which.
    """
    where, counts, wanted = f"ECG {path}", Counter[str](), RATE / step
    record = read_wfdb(path)
    names = record.names
    if len(names) == len(LEADS) and not {name.lower() for name in names} & {lead.lower() for lead in LEADS}:
        names, counts["ecg_leads_without_names"] = LEADS, 1
    values_LC = record.values_LC[:, lead_order(names, LEADS, where)]
    gaps = int(np.isnan(values_LC).sum())
    if record.rate == RATE:
        values_LC, counts["ecg_samples_cut"] = _averaged(record.values_LC, step)
    elif record.rate == wanted:
        values_LC, counts["ecg_at_packed_rate"] = record.values_LC, 1
    elif resample:
        assert record.rate is not None, "a header says it"
        values_LC, counts["ecg_resampled"] = resampled(record.values_LC, ratio(record.rate, wanted)), 1
    else:
        raise ValueError(
            f"{where} has {record.rate:g} samples per second, not {RATE:g}; convert such ECGs to the {wanted:g} that "
            "are packed with -o ecg_resample=true, or leave them out with -o ecg_unusable=drop"
        )
    signal = Signal(values_LC, wanted, names, record.units, record.odd)
    fitted = fit_signal(signal, where, LEADS, wanted, "mV", counts)
    # Gaps are those of the file: a mean has one only if all of its samples do
    del counts["waveform_samples_without_value"]
    return Ecg(fitted, gaps, counts)


def _averaged(values_LC: np.ndarray, step: int) -> tuple[np.ndarray, int]:
    """Means of ``step`` samples, NaN where none has a value, and how many samples at the end make no whole step."""
    length = len(values_LC) // step * step
    parts_LSC = values_LC[:length].reshape(-1, step, values_LC.shape[1])
    known_LSC = ~np.isnan(parts_LSC)
    count_LC = known_LSC.sum(axis=1)
    sum_LC = np.where(known_LSC, parts_LSC, 0.0).sum(axis=1)
    means = np.divide(sum_LC, count_LC, out=np.full(sum_LC.shape, np.nan), where=count_LC > 0)
    return means, len(values_LC) - length
