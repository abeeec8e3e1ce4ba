"""Log energies of mel bands, as the audio spectrogram transformer's extractor computes them (after Kaldi).

The extractor itself goes frame by frame; here all frames of a signal are one product, in the same precisions.

Shapes: S samples, F frames, W samples of a window, B frequencies, M mel bands.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

WINDOW, HOP, FFT, PREEMPHASIS, FLOOR = 400, 160, 512, 0.97, 1.192092955078125e-07
MEAN, STD = -4.2677393, 4.5689974  # of the data that the published models were trained on


class LogMel:
    """A signal -> (frames that there are room for, M), normalised, and how many of them are its own.

    Args:
        facts: what the source says: sampling_rate, mean, std, do_normalize. bands: M. most: frames.
    """

    def __init__(self, facts: dict[str, Any], bands: int, most: int) -> None:
        from transformers.audio_utils import mel_filter_bank, window_function

        self.most, rate = most, int(facts.get("sampling_rate", 16_000))
        filters = mel_filter_bank(
            num_frequency_bins=FFT // 2 + 1,
            num_mel_filters=bands,
            min_frequency=20,
            max_frequency=rate // 2,
            sampling_rate=rate,
            norm=None,
            mel_scale="kaldi",
            triangularize_in_mel_space=True,
        )
        self._filters_BM = torch.from_numpy(filters).double()
        self._window_W = torch.from_numpy(window_function(WINDOW, "hann", periodic=False)).double()
        scaled = facts.get("do_normalize", True)
        self._mean = float(facts.get("mean", MEAN)) if scaled else 0.0
        self._scale = 2 * float(facts.get("std", STD)) if scaled else 1.0

    def samples(self, frames: int) -> int:
        """The longest signal of so many frames."""
        return (frames - 1) * HOP + WINDOW + HOP - 1

    def __call__(self, signal_S: Tensor) -> tuple[Tensor, int]:
        frame_FW = signal_S.double().unfold(0, WINDOW, HOP)[: self.most]
        frame_FW = frame_FW - frame_FW.mean(1, keepdim=True)
        first_F1 = frame_FW[:, :1] * (1 - PREEMPHASIS)
        frame_FW = torch.cat([first_F1, frame_FW[:, 1:] - PREEMPHASIS * frame_FW[:, :-1]], 1) * self._window_W
        # The extractor keeps frequencies in single precision and their energies in double.
        spectrum_FB = torch.fft.rfft(frame_FW, FFT).to(torch.complex64)
        energy_FB = spectrum_FB.real.double().square() + spectrum_FB.imag.double().square()
        mel_FM = (energy_FB @ self._filters_BM).clamp_min(FLOOR).log().float()
        picture_FM = torch.nn.functional.pad(mel_FM, (0, 0, 0, self.most - len(mel_FM)))
        return (picture_FM - self._mean) / self._scale, len(mel_FM)
