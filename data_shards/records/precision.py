"""Numbers are stored as float32: what that would lose, before it is lost.

float32 has 24 bits: whole numbers above 16,777,216 lie in steps, Unix seconds in steps of 128. Rounding is fine as long
as it is finer than what the data themselves distinguish; `lost` finds where it is not.

Shape legend: N numbers in any order.
"""

from __future__ import annotations

import numpy as np

_DECIMALS = 3  # data of more decimals than that are taken for measurements, whose last digits mean nothing
_NOISE = 1e-10  # of float64 arithmetic, relative
_NEAR = 1e-9  # of a multiple: 0.1 + 0.2 has one decimal


def lost(value_N: np.ndarray) -> str | None:
    """What rounding to float32 would take away; None if that is finer than the numbers' own resolution.

    The resolution of whole numbers is 1, of numbers with up to three decimals the last of them. Others are
    measurements: then a thousandth of the range of their middle 80 % must survive (of all, if those are equal).

    Args:
        value_N: float64; NaN and infinities are passed over.
    """
    value_N = value_N[np.isfinite(value_N)]
    if not len(value_N):
        return None
    with np.errstate(over="ignore"):
        error_N = np.abs(value_N.astype(np.float32).astype(np.float64) - value_N)
    error, top = float(error_N.max()), float(np.abs(value_N).max())
    if not error:
        return None
    if not np.isfinite(error):
        return f"{top:g} is more than float32 can hold"
    decimals = _decimals(value_N)
    if decimals is not None:
        if error <= 0.5 * 10.0**-decimals:
            return None
        what = "whole numbers" if decimals == 0 else f"numbers with {decimals} decimals"
        return f"{what} up to {top:.10g} would move by up to {error:.3g}: that is where float32 has steps that large"
    low, high = np.quantile(value_N, [0.1, 0.9])
    spread = float(high - low)
    if spread <= _NOISE * top:
        spread = float(value_N.max() - value_N.min())
    # Equal up to the noise of float64: nothing to tell apart, but the number itself
    if error > 1e-3 * spread if spread > _NOISE * top else error > 0.5:
        return f"numbers near {top:.10g} that differ by {spread:.3g} would move by up to {error:.3g} in float32"
    return None


def lost_times(time_N: np.ndarray, resolution: float | None, gap: float) -> str | None:
    """As `lost`, for times within a record's window.

    Args:
        time_N: float64, relative to time 0. resolution: smallest step that the times are written in, in the same unit
            (a second, ...); None if they are finer than a thousandth. gap: the usual distance of neighbours, infinite
            if there are none.
    """
    if not len(time_N):
        return None
    error = float(np.abs(time_N.astype(np.float32).astype(np.float64) - time_N).max())
    # A hundred-thousandth of the usual distance is below any use, however finely the times are written
    below_use = gap / 1e5 if np.isfinite(gap) else 0.0
    finest = gap / 4 if resolution is None else max(resolution / 2, below_use)
    if error <= finest:
        return None
    top = float(np.abs(time_N).max())
    apart = f"are written in steps of {resolution:g}" if resolution is not None else f"lie {gap:.3g} apart"
    return f"times up to {top:.10g} would move by up to {error:.3g} in float32, and {apart}"


def resolution(time_N: np.ndarray) -> float | None:
    """Step that times are written in: 1 for whole numbers, 0.1 for one decimal, ...; None for finer ones."""
    decimals = _decimals(time_N)
    return None if decimals is None else 10.0**-decimals


def _decimals(value_N: np.ndarray) -> int | None:
    """Fewest decimals, at most three, that all numbers have; None if some have more."""
    for decimals in range(_DECIMALS + 1):
        scaled_N = value_N * 10.0**decimals
        if (np.abs(scaled_N - np.round(scaled_N)) <= np.maximum(_NEAR, 4e-16 * np.abs(scaled_N))).all():
            return decimals
    return None
