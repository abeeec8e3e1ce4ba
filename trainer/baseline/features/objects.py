"""What one picture, one waveform or one text is as a row of numbers. Simple on purpose: nothing is learned.

Shapes: P objects, C channels, H rows, W columns of a picture, F features.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

THUMBNAIL, COLOURS, CELLS, DIRECTIONS = 8, 4, 4, 8
BANDS = 8
WORDS = 512  # columns that words and pairs of words are hashed to


def picture_names(shape: tuple[int, ...]) -> list[str]:
    """Names of the columns of pictures of a shape (C, H, W)."""
    channels, height, width = shape
    grey = [f"grey_{row}_{column}" for row in range(_sides(height)) for column in range(_sides(width))]
    rows, columns = _sides(height, COLOURS), _sides(width, COLOURS)
    colours = [
        f"channel{c}_{row}_{column}" for c in range(channels) for row in range(rows) for column in range(columns)
    ]
    cells = [(row, column) for row in range(_sides(height, CELLS)) for column in range(_sides(width, CELLS))]
    edges = [f"edges_{row}_{column}_{direction}" for row, column in cells for direction in range(DIRECTIONS)]
    return [*grey, *(colours if channels > 1 else []), *edges]


def pictures(values_PCHW: np.ndarray) -> np.ndarray:
    """(P, F) float32: a grey thumbnail, a smaller one of each channel where there are several, and which way edges run.

    Edges are a histogram of oriented gradients (Dalal & Triggs 2005) over a coarse grid of cells, each normalised.
    """
    values_PCHW = values_PCHW.astype(np.float32)  # as they are: what reads the columns asks for their order only
    grey_PHW = values_PCHW.mean(axis=1)
    height, width = grey_PHW.shape[1:]
    columns = [_shrunk(grey_PHW, _sides(height), _sides(width))]
    if values_PCHW.shape[1] > 1:
        columns.append(_shrunk(values_PCHW, _sides(height, COLOURS), _sides(width, COLOURS)))
    flat = [column.reshape(len(grey_PHW), -1) for column in [*columns, _edges(grey_PHW)]]
    return np.concatenate(flat, axis=1).astype(np.float32)


def _sides(length: int, most: int = THUMBNAIL) -> int:
    return min(length, most)


def _shrunk(x_PHW: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """(..., rows, columns): mean over areas that cover the picture."""
    height, width = x_PHW.shape[-2:]
    row_R, column_C = np.arange(rows) * height // rows, np.arange(columns) * width // columns
    total = np.add.reduceat(np.add.reduceat(x_PHW, row_R, axis=-2), column_C, axis=-1)
    area_RC = np.diff(row_R, append=height)[:, None] * np.diff(column_C, append=width)
    shrunk: np.ndarray = total / area_RC
    return shrunk


def _edges(grey_PHW: np.ndarray) -> np.ndarray:
    """(P, rows, columns, directions): strength of edges by direction, without its sign, of each cell."""
    down_PHW, right_PHW = _differences(grey_PHW, 1), _differences(grey_PHW, 2)
    strength_PHW = np.hypot(down_PHW, right_PHW)
    direction_PHW = (np.arctan2(down_PHW, right_PHW) % np.pi * (DIRECTIONS / np.pi)).astype(np.int64) % DIRECTIONS
    height, width = grey_PHW.shape[1:]
    rows, columns = _sides(height, CELLS), _sides(width, CELLS)
    shares = [
        _shrunk(np.where(direction_PHW == direction, strength_PHW, 0.0), rows, columns)
        for direction in range(DIRECTIONS)
    ]
    cells = np.stack(shares, axis=-1)
    norm: np.ndarray = np.sqrt((cells**2).sum(axis=-1, keepdims=True))
    return np.divide(cells, norm, out=np.zeros_like(cells), where=norm > 1e-6)


def _differences(x_PHW: np.ndarray, axis: int) -> np.ndarray:
    return np.gradient(x_PHW, axis=axis) if x_PHW.shape[axis] > 1 else np.zeros_like(x_PHW)


OF_CHANNELS = ("mean", "std", "min", "max", "power", *(f"band{number}" for number in range(BANDS)))


def waveforms(offsets: np.ndarray, values_OC: np.ndarray) -> np.ndarray:
    """(P, C * 13) float32: `OF_CHANNELS` of each channel: spread, log of the power, and its shares in eight octaves.

    Band 0 ends at half of the sampling rate, each further one an octave below; the last takes all that is left but the
    mean. A waveform without samples is NaN.
    """
    pairs, channels = len(offsets) - 1, values_OC.shape[1]
    found = np.full((pairs, channels, len(OF_CHANNELS)), np.nan)
    for number in range(pairs):
        own_LC = values_OC[offsets[number] : offsets[number + 1]].astype(np.float64)
        if not len(own_LC):
            continue
        mean_C = own_LC.mean(axis=0)
        found[number, :, :4] = np.stack([mean_C, own_LC.std(axis=0), own_LC.min(axis=0), own_LC.max(axis=0)], axis=1)
        found[number, :, 4:] = _powers(own_LC - mean_C)
    return found.reshape(pairs, -1).astype(np.float32)


def _powers(x_LC: np.ndarray) -> np.ndarray:
    """(C, 1 + bands)."""
    power_KC = np.abs(np.fft.rfft(x_LC, axis=0))[1:] ** 2 / len(x_LC)
    total_C = power_KC.sum(axis=0)
    place_K = np.arange(1, len(power_KC) + 1) / max(len(power_KC), 1)
    band_K = np.minimum((-np.log2(place_K)).astype(np.int64), BANDS - 1)
    share_CB = np.zeros((x_LC.shape[1], BANDS))
    np.add.at(share_CB.T, band_K, power_KC)
    share_CB = np.divide(share_CB, total_C[:, None], out=np.zeros_like(share_CB), where=total_C[:, None] > 0)
    return np.concatenate([np.log(total_C + 1e-12)[:, None], share_CB], axis=1)


def texts(contents: Sequence[str]) -> np.ndarray:
    """(P, 1 + 512) float32: how many characters, then words and pairs of words hashed, each text of length 1."""
    from sklearn.feature_extraction.text import HashingVectorizer  # slow to import, and needed for texts only

    hashed = HashingVectorizer(n_features=WORDS, ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b")
    length_P1 = np.array([[len(text)] for text in contents], np.float32).reshape(-1, 1)
    if not len(contents):
        return np.empty((0, 1 + WORDS), np.float32)
    return np.concatenate([length_P1, hashed.transform(contents).toarray()], axis=1).astype(np.float32)
