"""Signals at another rate, by a polyphase filter.

Shape legend: L samples, C channels.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from data_shards.sources.readers.recordings.recording import SignalError

_LONGEST = 1_000_000  # of the two numbers that rates stand in; the filter is 20 times as long


def ratio(rate: float, wanted: float) -> Fraction:
    """How many samples there are for one of now; exact for rates as they are written. Raises SignalError."""
    found = Fraction(repr(float(wanted))) / Fraction(repr(float(rate)))
    if max(found.numerator, found.denominator) > _LONGEST:
        raise SignalError(
            f"{rate:g} and {wanted:g} samples per second stand as {found.numerator} to {found.denominator}, which no "
            "filter of a usable length converts; resample it yourself"
        )
    return found


def resampled(values_LC: np.ndarray, up_down: Fraction) -> np.ndarray:
    """float64 [ceil(L up / down), C]: sample i is at the time of sample i down / up. Where samples have no value, none.

    `scipy.signal.resample_poly`: a low-pass of the lower of both rates (Kaiser, 20 times the larger number long), on
    what the signal differs by from the line between its ends. Gaps (NaN) are bridged by lines, and cut out again.
    """
    # Loading it takes half a second, and most data sets have one rate
    from scipy.signal import resample_poly

    gap_LC = np.isnan(values_LC)
    whole_LC = _bridged(values_LC, gap_LC) if gap_LC.any() else values_LC.astype(np.float64, copy=False)
    first_C, slope_C = whole_LC[0], (whole_LC[-1] - whole_LC[0]) / max(1, len(whole_LC) - 1)
    rest_LC = whole_LC - (first_C + np.arange(len(whole_LC))[:, None] * slope_C)
    out_LC = np.asarray(resample_poly(rest_LC, up_down.numerator, up_down.denominator, axis=0))
    out_LC += first_C + np.arange(len(out_LC))[:, None] / float(up_down) * slope_C
    if gap_LC.any():
        nearest = np.rint(np.arange(len(out_LC)) / float(up_down)).astype(np.int64).clip(0, len(values_LC) - 1)
        out_LC[gap_LC[nearest]] = np.nan
    return out_LC


def _bridged(values_LC: np.ndarray, gap_LC: np.ndarray) -> np.ndarray:
    """Gaps become the line between their neighbours; a channel of nothing but gaps 0."""
    whole_LC = np.nan_to_num(values_LC.astype(np.float64))
    place_L = np.arange(len(values_LC))
    for channel in np.flatnonzero(gap_LC.any(axis=0) & ~gap_LC.all(axis=0)):
        gap_L = gap_LC[:, channel]
        whole_LC[gap_L, channel] = np.interp(place_L[gap_L], place_L[~gap_L], whole_LC[~gap_L, channel])
    return whole_LC
