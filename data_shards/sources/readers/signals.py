"""Evenly sampled signals as they come from a file -> the leads, unit and rate that are wanted.

Shape legend: L samples, C leads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data_shards.records.precision import lost
from data_shards.sources.readers.recordings.recording import SignalError
from data_shards.sources.readers.recordings.resample import ratio, resampled

_VOLT = {"v": 1.0, "mv": 1e-3, "uv": 1e-6, "µv": 1e-6, "μv": 1e-6, "nv": 1e-9}  # both of Unicode's micro signs


@dataclass(frozen=True)
class Signal:
    """Samples of a file, as numbers of the file's own type.

    Attributes:
        values_LC: numbers, NaN where the file says that there is no value.
        rate: samples per second, None if the file does not say. names: of the leads, or none. units: of the leads, or
            none. odd: what is to be counted.
    """

    values_LC: np.ndarray
    rate: float | None
    names: tuple[str, ...]
    units: tuple[str, ...]
    odd: Counter[str]


def fit_signal(
    signal: Signal,
    where: str,
    leads: int | Sequence[str],
    rate: float | None,
    unit: str,
    notes: Counter[str],
    resample: bool = False,
) -> np.ndarray:
    """float32 [L, C]: the wanted leads in the wanted order, in the wanted unit; samples without a value are 0.

    What the file does not say (a .npy says nothing) is taken as it is wanted.

    Args:
        where: for messages. leads: their number, then they stay in the file's order, or their names in order.
        rate: samples per second that are wanted; None takes any. unit: that is wanted; empty takes any.
        notes: counts what the file says where nothing is wanted, what was converted, and what had no value.
        resample: convert a signal of another rate instead of refusing it.

    Raises:
        ValueError: a lead is missing, the rate or the unit is another, or float32 cannot hold the numbers.
    """
    other_rate = rate is not None and signal.rate is not None and abs(signal.rate - rate) > 1e-6 * rate
    if other_rate and not resample:
        raise ValueError(
            f"{where} has {signal.rate:g} samples per second, and {rate:g} are declared; have such files resampled "
            "(resample: true), or pack those of each rate as a modality of their own"
        )
    values_LC, units = signal.values_LC, signal.units
    if signal.names and not isinstance(leads, int):
        order = lead_order(signal.names, leads, where)
        values_LC, units = values_LC[:, order], tuple(units[place] for place in order) if units else ()
    if rate is None and signal.rate is not None:
        notes[f"waveforms_at_{signal.rate:g}_per_second"] += 1
    scale_C = _scales(units, unit, where, notes)
    if (scale_C != 1).any():
        values_LC = values_LC * scale_C
        notes["waveforms_converted_to_another_unit"] += 1
    if other_rate:
        assert rate is not None and signal.rate is not None
        try:
            values_LC = resampled(values_LC, ratio(signal.rate, rate))
        except SignalError as error:
            raise ValueError(f"{where}: {error}") from error
        notes[f"waveforms_resampled.{signal.rate:g}_to_{rate:g}"] += 1
    for what, count in signal.odd.items():
        notes[f"waveform_{what}"] += count
    return _stored(values_LC, where, signal.rate is not None, notes)


def lead_order(names: Sequence[str], wanted: Sequence[str], where: str) -> list[int]:
    """Place of each wanted lead in a file, whatever the case; ValueError if one is missing or there twice."""
    places: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        places.setdefault(name.strip().lower(), []).append(place)
    missing = [name for name in wanted if len(places.get(name.strip().lower(), [])) != 1]
    if missing:
        raise ValueError(f"{where} lacks lead {', '.join(missing)} (or has it twice); it has {', '.join(names)}")
    return [places[name.strip().lower()][0] for name in wanted]


def _scales(units: Sequence[str], unit: str, where: str, notes: Counter[str]) -> np.ndarray:
    """float64 [C]: factors to the wanted unit."""
    if not unit:
        for name in sorted(set(units)):
            notes[f"waveforms_in_{name}"] += 1
        return np.ones(1)
    scales = []
    for own in units:
        known = own.lower() in _VOLT and unit.lower() in _VOLT
        if own != unit and not known:
            raise ValueError(f"{where} is in {own}, and {unit} is declared; convert it, or declare {own}")
        scales.append(1.0 if own == unit else _VOLT[own.lower()] / _VOLT[unit.lower()])
    return np.array(scales or [1.0])


def _stored(values_LC: np.ndarray, where: str, gaps_are_zero: bool, notes: Counter[str]) -> np.ndarray:
    if gaps_are_zero:
        gap_LC = np.isnan(values_LC)
        notes["waveform_samples_without_value"] += int(gap_LC.sum())
        return np.where(gap_LC, 0.0, values_LC).astype(np.float32)
    if values_LC.dtype.itemsize > 2 and values_LC.dtype != np.float32:
        problem = lost(values_LC.astype(np.float64, copy=False).reshape(-1))
        if problem:
            raise ValueError(f"{where}: {problem}; scale the samples, or save them as float32 yourself")
    return values_LC.astype(np.float32)
