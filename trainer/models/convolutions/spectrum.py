"""Signals in patches -> logarithms of their power in bands of frequency (log-mel), a frame for each patch.

A frame is a window of a few patches around its own, weighted by Hann's window. Bands are triangles, evenly spaced on
the mel scale from 0 to half the rate where the modality declares its rate, else evenly from 0 to half a cycle per
sample. Power is such that white noise of deviation 1 has 1 in every band, so silence is log(FLOOR) and nothing needs
statistics of its own.

Shape legend: N frames, s samples a patch, C channels, X samples of a frame, Q frequencies, B bands, K different rates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trainer.models.convolutions.signals import beside
from trainer.models.layers.standardise import Constant

FLOOR = 1e-4  # of power: a ten thousandth of the signal's own


def mel(frequency: Tensor) -> Tensor:
    """Hz on the mel scale (O'Shaughnessy's formula, as HTK has it)."""
    return 2595 * (1 + frequency / 700).log10()


def band_weights(samples: int, bands: int, rate: float | None) -> Tensor:
    """(Q, B): the share of each frequency of a frame in each band; columns sum to 1.

    A band that lies between two frequencies is the nearest one.
    """
    frequency_Q = torch.arange(samples // 2 + 1, dtype=torch.float64) / samples
    scale_Q, top = frequency_Q, 0.5
    if rate is not None:
        scale_Q, top = mel(frequency_Q * rate), float(mel(torch.tensor(rate / 2, dtype=torch.float64)))
    width = top / (bands + 1)
    centre_B = torch.arange(1, bands + 1, dtype=torch.float64) * width
    distance_QB = (scale_Q[:, None] - centre_B).abs() / width
    weight_QB = (1 - distance_QB).clamp_min(0)
    nearest_QB = torch.zeros_like(weight_QB).scatter_(0, distance_QB.argmin(0, keepdim=True), 1.0)
    weight_QB = torch.where(weight_QB.sum(0) > 0, weight_QB, nearest_QB)
    return weight_QB / weight_QB.sum(0)


class LogSpectrum(nn.Module):
    """(N, s * C) standardised samples -> (N, C * B).

    Args:
        patch: s. window: patches of a frame. bands: B. channels: C.
        rates: samples per second of each modality of the group, None if it declares none.
    """

    def __init__(self, patch: int, window: int, bands: int, channels: int, rates: Sequence[float | None]) -> None:
        super().__init__()
        self.patch, self.window, self.channels, self.bands = patch, window, channels, bands
        samples = patch * window
        known = list(dict.fromkeys(rates))
        place_X = torch.arange(samples, dtype=torch.float64)
        hann_X = 0.5 - 0.5 * (2 * math.pi * (place_X + 0.5) / samples).cos()
        hann_X = hann_X / hann_X.square().sum().sqrt()
        angle_XQ = 2 * math.pi * place_X[:, None] * torch.arange(samples // 2 + 1, dtype=torch.float64) / samples
        self.wave_XQ = Constant(torch.cat([angle_XQ.cos(), angle_XQ.sin()], dim=1) * hann_X[:, None])
        self.weight_QX = Constant(torch.cat([band_weights(samples, bands, rate) for rate in known], dim=1))
        # Which of the rates each modality has, as a row of ones and zeros.
        self.own_MK = Constant(torch.tensor([[float(rate == own) for own in known] for rate in rates]))

    def forward(self, patch_NX: Tensor, block_N: Tensor) -> Tensor:
        """`block_N` is the modality of each patch."""
        frame_NX = beside(patch_NX.float(), self.window, (self.window - 1) // 2)
        samples = self.patch * self.window
        wave_NCX = frame_NX.view(-1, samples, self.channels).transpose(1, 2)
        part_NCQ = wave_NCX @ self.wave_XQ()
        power_NCQ = part_NCQ.square().unflatten(2, (2, -1)).sum(2)
        band_NCKB = (power_NCQ @ self.weight_QX()).unflatten(2, (-1, self.bands))
        own_NK = self.own_MK().index_select(0, block_N)
        power_NCB = (band_NCKB * own_NK[:, None, :, None]).sum(2)
        return (power_NCB + FLOOR).log().flatten(1)
