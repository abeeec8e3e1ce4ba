"""Log-mel: tones are where they sound, white noise is 1, silence is the floor, and mel is the formula's."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from trainer.models.convolutions.spectrum import FLOOR, LogSpectrum, band_weights, mel

PATCH, WINDOW, BANDS = 16, 4, 10


def powers(signal_L: Tensor, rate: float | None = None, others: tuple[float | None, ...] = ()) -> Tensor:
    """(N, B) of a signal of one channel."""
    spectrum = LogSpectrum(PATCH, WINDOW, BANDS, 1, (rate, *others))
    patch_NX = signal_L.view(-1, PATCH)
    return spectrum(patch_NX, torch.zeros(len(patch_NX), dtype=torch.int64)).exp() - FLOOR


@pytest.mark.parametrize("band", [0, 4, 8])
def test_a_tone_is_in_its_band(band: int) -> None:
    """Centres are at (b + 1) / 22 cycles per sample."""
    power_NB = powers((2 * math.pi * (band + 1) / 22 * torch.arange(640.0)).sin())
    middle_NB = power_NB[4:-4]
    assert set(middle_NB.argmax(1).tolist()) == {band}
    far = [other for other in range(BANDS) if abs(other - band) > 2]
    assert middle_NB[:, far].max() < 1e-3 * middle_NB[:, band].min()


def test_white_noise_has_power_one_and_silence_is_the_floor() -> None:
    noise = torch.randn(64_000, generator=torch.Generator().manual_seed(0))
    mean_B = powers(noise)[2:-2].mean(0)
    assert (mean_B - 1).abs().max() < 0.08
    spectrum = LogSpectrum(PATCH, WINDOW, BANDS, 1, (None,))
    silence_NB = spectrum(torch.zeros(6, PATCH), torch.zeros(6, dtype=torch.int64))
    torch.testing.assert_close(silence_NB, torch.full((6, BANDS), math.log(FLOOR)))


def test_frames_are_torchs_fourier_transform() -> None:
    signal_L = torch.randn(PATCH * 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    power_NB = powers(signal_L.float(), 8000.0)
    samples = PATCH * WINDOW
    # A frame starts one patch before its own.
    frame_X = signal_L[3 * PATCH : 3 * PATCH + samples]
    hann_X = torch.hann_window(2 * samples + 1, periodic=False, dtype=torch.float64)[1::2]
    power_Q = torch.fft.rfft(frame_X * hann_X).abs().square() / hann_X.square().sum()
    torch.testing.assert_close(
        power_NB[4], (power_Q @ band_weights(samples, BANDS, 8000.0)).float(), rtol=1e-4, atol=1e-5
    )


def test_mel() -> None:
    """1,000 Hz is 1,000 mel to a thousandth; bands of 8 kHz grow with frequency; each sums to 1."""
    assert float(mel(torch.tensor(1000.0, dtype=torch.float64))) == pytest.approx(1000, abs=0.1)
    weight_QB = band_weights(512, 20, 8000.0)
    assert weight_QB.shape == (257, 20) and torch.allclose(weight_QB.sum(0), torch.ones(20, dtype=torch.float64))
    peaks = (weight_QB.argmax(0) * 8000 / 512).tolist()
    top = 2595 * math.log10(1 + 4000 / 700)
    wanted = [700 * (10 ** (top * (band + 1) / 21 / 2595) - 1) for band in range(20)]
    assert max(abs(found - own) for found, own in zip(peaks, wanted, strict=True)) <= 8000 / 512
    # More bands than frequencies: each is the nearest one.
    assert band_weights(4, 9, None).sum(0).tolist() == pytest.approx([1.0] * 9)


def test_each_modality_has_the_bands_of_its_rate() -> None:
    signal_NX = torch.randn(8, PATCH, generator=torch.Generator().manual_seed(2))
    both = LogSpectrum(PATCH, WINDOW, BANDS, 1, (8000.0, None, 8000.0))
    for block, rate in enumerate((8000.0, None, 8000.0)):
        own = LogSpectrum(PATCH, WINDOW, BANDS, 1, (rate,))(signal_NX, torch.zeros(8, dtype=torch.int64))
        assert torch.equal(both(signal_NX, torch.full((8,), block)), own)


def test_a_model_in_bf16_still_sees_its_spectrum_in_fp32() -> None:
    whole, half = (LogSpectrum(PATCH, WINDOW, BANDS, 1, (None,)) for _ in range(2))
    signal_NX, block_N = torch.randn(8, PATCH), torch.zeros(8, dtype=torch.int64)
    found = half.bfloat16()(signal_NX, block_N)
    assert found.dtype == torch.float32 and torch.equal(found, whole(signal_NX, block_N))
