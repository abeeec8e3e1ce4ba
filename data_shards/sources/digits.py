"""scikit-learn's handwritten digits seen eight ways: a small real problem with every kind of modality.

Each of the 1,797 pictures (8 x 8, values 0 to 16) becomes an image, two irregular series (its rows and its columns, a
random part of the pixels at jittered times), a waveform (raster scan), three vectors (Fourier coefficients, Zernike
moments, gradient orientations) and a text. Each of them carries nearly all of the picture, so a model that fuses them
must stay accurate when any are missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cached_property, lru_cache
from math import factorial
from typing import ClassVar

import numpy as np
from pydantic import Field

from data_shards.permutation import permutation
from data_shards.records.record import Record, Series
from data_shards.records.schema import DatasetSchema, ModalitySpec, TaskSpec
from data_shards.sources.base import Source, SourceOptions

SIDE = 8
LEVELS = " .:-=+*#%@"
ZERNIKE_ORDER = 8
BINS, CELLS = 8, 4
_UNIT_RECORDS = 300
_GRAY = 15  # raw values 0 to 16 become 0 to 240


class DigitsOptions(SourceOptions):
    """Options of this source."""

    missing: float = Field(0.2, ge=0, lt=1, description="probability that a modality is missing, each on its own")
    observed: float = Field(0.7, gt=0, le=1, description="share of pixels that a series observes")
    seed: int = Field(0, description="seed of what is missing, of jitter and of the train/val/test parts (70/10/20 %)")


class Digits(Source):
    """Pictures as records; see the module's text."""

    Options: ClassVar[type[SourceOptions]] = DigitsOptions

    def __init__(self, options: DigitsOptions) -> None:
        super().__init__(options)
        self.missing, self.observed, self.seed = options.missing, options.observed, options.seed
        self.schema = _schema()

    def units(self) -> list[tuple[int, int]]:
        """[start, end) picture numbers."""
        count = len(_pictures()[0])
        return [(start, min(start + _UNIT_RECORDS, count)) for start in range(0, count, _UNIT_RECORDS)]

    def read(self, unit: tuple[int, int], notes: Counter[str]) -> Iterator[Record]:
        """Pictures of one unit; ``notes`` counts missing modalities."""
        images, labels = _pictures()
        for number in range(*unit):
            rng = np.random.default_rng((self.seed, number))
            values = _modalities(images[number], rng, self.observed)
            keep = rng.random(len(values)) >= self.missing
            if not keep.any():
                keep[rng.integers(len(values))] = True
            notes["missing_modalities"] += int((~keep).sum())
            kept = {name: value for (name, value), there in zip(values.items(), keep, strict=True) if there}
            part = self._parts[number]
            yield Record(f"digit-{number:04d}", kept, {"digit": float(labels[number])}, {"default": part})

    @cached_property
    def _parts(self) -> list[str]:
        count = len(_pictures()[0])
        parts = ["train"] * count
        order = permutation(count, self.seed, "digits")
        for place, number in enumerate(order.tolist()):
            if place >= 0.7 * count:
                parts[number] = "val" if place < 0.8 * count else "test"
        return parts


def _schema() -> DatasetSchema:
    pixels = tuple(str(i) for i in range(SIDE))
    series = {"kind": "series", "channels": pixels, "horizon": float(SIDE)}
    features = {"fourier": len(_fourier_plan()) * 2, "zernike": len(_zernike_basis()), "gradient": CELLS * CELLS * BINS}
    modalities = (
        ModalitySpec("image", "image", shape=(1, SIDE, SIDE), dtype="uint8"),
        ModalitySpec("rows", **series, time_unit="rows", description="channel = column"),  # type: ignore[arg-type]
        ModalitySpec("columns", **series, time_unit="columns", description="channel = row"),  # type: ignore[arg-type]
        ModalitySpec("raster", "waveform", shape=(1,), rate=float(SIDE * SIDE), max_length=SIDE * SIDE),
        *(ModalitySpec(name, "vector", shape=(size,)) for name, size in features.items()),
        ModalitySpec(
            "text", "text", max_length=SIDE * (SIDE + 1), description="one character per pixel, a line per row"
        ),
    )
    digit = TaskSpec("digit", "multiclass", classes=tuple(map(str, range(10))))
    return DatasetSchema("digits", modalities, (digit,))


def _modalities(image: np.ndarray, rng: np.random.Generator, observed: float) -> dict[str, Series | np.ndarray | str]:
    """All eight views of one picture (float64 [8, 8], 0 to 16)."""
    spectrum = np.fft.fft2(image)[tuple(zip(*_fourier_plan(), strict=True))]
    return {
        "image": (image * _GRAY).astype(np.uint8)[None],
        "rows": _scan(image, rng, observed),
        "columns": _scan(image.T, rng, observed),
        "raster": image.reshape(-1, 1).astype(np.float32),
        "fourier": np.concatenate([spectrum.real, spectrum.imag]).astype(np.float32),
        "zernike": (_zernike_basis() @ image.ravel()).astype(np.float32),
        "gradient": _gradient_histogram(image).astype(np.float32),
        "text": "\n".join("".join(LEVELS[int(v * (len(LEVELS) - 1) / 16)] for v in row) for row in image),
    }


def _scan(image: np.ndarray, rng: np.random.Generator, observed: float) -> Series:
    """Lines as times: pixel (i, j) is channel j at time i plus a jitter below half a line."""
    times = np.arange(SIDE) + rng.uniform(0, 0.5, SIDE)
    return Series.from_dense(times, image, rng.random((SIDE, SIDE)) < observed)


@lru_cache(maxsize=1)
def _fourier_plan() -> tuple[tuple[int, int], ...]:
    """Frequencies (y, x) below the highest; a real picture needs only one half of the plane."""
    return tuple((y % SIDE, x) for x in range(SIDE // 2) for y in range(-(SIDE // 2) + 1, SIDE // 2) if x > 0 or y >= 0)


@lru_cache(maxsize=1)
def _zernike_basis() -> np.ndarray:
    """float64 [functions, 64]: Zernike polynomials to order 8 on the disc around the picture (Teague 1980)."""
    line = (np.arange(SIDE) + 0.5) / SIDE * 2 - 1
    y, x = np.meshgrid(line, line, indexing="ij")
    radius, angle = np.hypot(x, y) / np.sqrt(2), np.arctan2(y, x)
    rows = []
    for n in range(ZERNIKE_ORDER + 1):
        for m in range(n % 2, n + 1, 2):
            radial = sum(
                (-1) ** k
                * factorial(n - k)
                / (factorial(k) * factorial((n + m) // 2 - k) * factorial((n - m) // 2 - k))
                * radius ** (n - 2 * k)
                for k in range((n - m) // 2 + 1)
            )
            rows.append(radial * np.cos(m * angle))
            if m:
                rows.append(radial * np.sin(m * angle))
    return np.stack([row.ravel() for row in rows]) / SIDE


def _gradient_histogram(image: np.ndarray) -> np.ndarray:
    """float64 [4*4*8]: gradient magnitude by cell and direction, shared between the two nearest directions."""
    dy, dx = np.gradient(np.pad(image, 1))
    dy, dx = dy[1:-1, 1:-1], dx[1:-1, 1:-1]
    place = (np.arctan2(dy, dx) / (2 * np.pi) % 1.0) * BINS
    low, magnitude = np.floor(place).astype(int), np.hypot(dx, dy)
    cell = np.arange(SIDE) // (SIDE // CELLS)
    base = (cell[:, None] * CELLS + cell[None, :]) * BINS
    histogram = np.zeros(CELLS * CELLS * BINS)
    np.add.at(histogram, base + low % BINS, magnitude * (1 - (place - low)))
    np.add.at(histogram, base + (low + 1) % BINS, magnitude * (place - low))
    return histogram


@lru_cache(maxsize=1)
def _pictures() -> tuple[np.ndarray, np.ndarray]:
    """(float64 [1797, 8, 8], int64 [1797])."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ValueError("source digits needs scikit-learn: pip install scikit-learn") from error
    data = load_digits()
    return data.images, data.target
