"""Files of evenly sampled signals -> arrays of samples and leads: NumPy (.npy) and WFDB records (.hea, .dat).

Shape legend: L samples, C leads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_shards.records.precision import lost
from data_shards.sources.readers.wfdb import header_file, read_wfdb

_SOUND = (".wav", ".mp3", ".flac", ".ogg", ".opus", ".m4a", ".aac", ".aif", ".aiff", ".wma", ".au")
_SOUND_BEGINS = (b"RIFF", b"fLaC", b"ID3", b"OggS", b"FORM", b"\xff\xfb", b".snd")
_NPY = b"\x93NUMPY"
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


def read_signal(path: Path) -> Signal:
    """The signal in a .npy file, or in the WFDB record of that name (with or without .hea or .dat).

    Raises:
        ValueError: no such file, one of another kind, or one that would have to be unpickled.
    """
    if path.name.lower().endswith(_SOUND):
        raise _sound(path)
    if path.suffix in (".hea", ".dat") or (not path.is_file() and header_file(path).is_file()):
        found = read_wfdb(path)
        return Signal(found.values_LC, found.rate, found.names, found.units, found.odd)
    array = _read_npy(path)
    return Signal(array[:, None] if array.ndim == 1 else array, None, (), (), Counter())


def fit_signal(
    signal: Signal, where: str, leads: int | Sequence[str], rate: float | None, unit: str, notes: Counter[str]
) -> np.ndarray:
    """float32 [L, C]: the wanted leads in the wanted order, in the wanted unit; samples without a value are 0.

    What the file does not say (a .npy says nothing) is taken as it is wanted.

    Args:
        where: for messages. leads: their number, then they stay in the file's order, or their names in order.
        rate: samples per second that are wanted; None takes any. unit: that is wanted; empty takes any.
        notes: counts what the file says where nothing is wanted, what was converted, and what had no value.

    Raises:
        ValueError: a lead is missing, the rate or the unit is another, or float32 cannot hold the numbers.
    """
    if rate is not None and signal.rate is not None and abs(signal.rate - rate) > 1e-6 * rate:
        raise ValueError(
            f"{where} has {signal.rate:g} samples per second, and {rate:g} are declared; resample it, or pack the "
            "records of each rate as a modality of their own"
        )
    values_LC, units = signal.values_LC, signal.units
    if signal.names and not isinstance(leads, int):
        order = lead_order(signal.names, leads, where)
        values_LC, units = values_LC[:, order], tuple(units[place] for place in order)
    if rate is None and signal.rate is not None:
        notes[f"waveforms_at_{signal.rate:g}_per_second"] += 1
    scale_C = _scales(units, unit, where, notes)
    if (scale_C != 1).any():
        values_LC = values_LC * scale_C
        notes["waveforms_converted_to_another_unit"] += 1
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


def _read_npy(path: Path) -> np.ndarray:
    try:
        with path.open("rb") as stream:
            begin = stream.read(len(_NPY))
            if begin.startswith(_SOUND_BEGINS):
                raise _sound(path)
            if begin != _NPY:
                raise ValueError(
                    f"{path} is neither a NumPy file (.npy) nor a WFDB record (.hea); save its samples with numpy.save "
                    "in the shape (samples, leads), and give that file"
                )
            stream.seek(0)
            array = np.lib.format.read_array(stream, allow_pickle=False)
    except OSError as error:
        raise ValueError(f"{path} cannot be read as a signal: {error.strerror or error}") from error
    except ValueError as error:
        if str(path) in str(error):
            raise
        what = "objects, not numbers" if "object" in str(error).lower() else f"no whole array ({error})"
        raise ValueError(f"{path} holds {what}; save one array of numbers with numpy.save") from error
    if array.dtype.kind not in "iuf" or array.ndim not in (1, 2):
        raise ValueError(
            f"{path} holds {array.dtype} of shape {array.shape}, not numbers of shape (samples, leads) or (samples,)"
        )
    return np.asarray(array)


def _sound(path: Path) -> ValueError:
    return ValueError(
        f"{path} is a sound file, and a waveform is read from a NumPy file (.npy) or a WFDB record (.hea); decode it, "
        "e.g. with soundfile.read or scipy.io.wavfile.read, save the samples with numpy.save, and give that .npy file"
    )
