"""Signals through a pretrained encoder of sounds: prepared on the CPU as the family's own extractor prepares them.

wav2vec2 reads samples of zero mean and unit variance, the audio spectrogram transformer a picture of log mel energies.
Samples that are stored as int16 are taken for sounds of amplitude 1 = 32,768, others as they are. What is shorter than
one frame is filled up with zeros.

Shapes: P signals, S samples, F frames, M mel bands, L hidden states.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from data_shards import ModalitySpec, WaveformGroup
from trainer.config.encoders import PretrainedConfig
from trainer.models.pretrained.encoder import Chunk, PretrainedEncoder
from trainer.models.pretrained.exact import ask_nothing_of_lengths
from trainer.models.pretrained.loading.backbone import BackboneError
from trainer.models.pretrained.loading.sources import Asked, Loaded
from trainer.models.pretrained.mel import WINDOW, LogMel
from trainer.models.pretrained.reading import stretches, stretches_of_all

INT16 = 1 / 32_768
MOST_SAMPLES = 1 << 24


class PretrainedSounds(PretrainedEncoder):
    """What both families share. Raises BackboneError: signals of another rate, or of several channels."""

    def __init__(self, asked: Asked, loaded: Loaded, config: PretrainedConfig, spec: ModalitySpec) -> None:
        self.facts: dict[str, Any] = loaded.facts or {}
        self.scale = INT16 if spec.dtype == "int16" else 1.0
        super().__init__(asked, loaded, config)
        if spec.width != 1:
            raise BackboneError(
                f"{self.label} takes signals of one channel, and modality {spec.name} has {spec.width}: pack one of "
                "them, or each as a modality of its own"
            )
        if not loaded.shapes_only and "sampling_rate" not in self.facts:
            raise BackboneError(
                f"{self.label}: {config.source} does not say at which rate signals are sampled: it needs "
                "preprocessor_config.json with sampling_rate"
            )
        self.rate = float(self.facts.get("sampling_rate", spec.rate or 1.0))
        if spec.rate != self.rate:
            has = "declares no rate" if spec.rate is None else f"has {spec.rate:g}"
            raise BackboneError(
                f"{self.label} takes signals of {self.rate:g} samples per second, and modality {spec.name} {has}: pack "
                f"it at {self.rate:g}"
            )
        self.longest = None if config.max_seconds is None else max(1, round(config.max_seconds * self.rate))

    @property
    def reads(self) -> str:
        longest = self._longest()
        return "all" if longest is None else f"{longest / self.rate:g} seconds"

    def _objects(self, group: WaveformGroup) -> Sequence[Tensor]:
        ends, samples_O = group.offsets.tolist(), group.values_OC[:, 0]
        return [samples_O[start:end] for start, end in itertools.pairwise(ends)]

    def _content(self, one: Tensor) -> bytes:
        return one.contiguous().numpy().tobytes()

    def _read(self, objects: list[Tensor]) -> list[Any]:
        made = []
        for signal_S in objects:
            longest = self._longest()
            if longest is not None and len(signal_S) > longest:
                self.cut, signal_S = self.cut + 1, signal_S[:longest]
            made.append(self._prepared(signal_S * self.scale if self.scale != 1 else signal_S))
        return made

    def _longest(self) -> int | None:
        """Samples that are read of a signal."""
        return self.longest

    def _prepared(self, signal_S: Tensor) -> Any:
        raise NotImplementedError


class PretrainedSpeech(PretrainedSounds):
    """wav2vec2: strided convolutions, and a transformer over their frames."""

    def _prepare(self) -> None:
        config = self.model.config
        self.kernels, self.strides = list(config.conv_kernel), list(config.conv_stride)
        self.shortest = 1
        for kernel, stride in zip(reversed(self.kernels), reversed(self.strides), strict=True):
            self.shortest = (self.shortest - 1) * stride + kernel
        self.norm: OwnFramesNorm | None = None
        if config.feat_extract_norm == "group":
            norm = self.model.feature_extractor.conv_layers[0].layer_norm
            norm.__class__ = OwnFramesNorm
            # Not as a module of its own: its weights are the model's.
            object.__setattr__(self, "norm", norm)
        ask_nothing_of_lengths(self.model)

    def frames(self, samples: int, layers: int | None = None) -> int:
        """Frames after this many convolutions; None = all."""
        for kernel, stride in list(zip(self.kernels, self.strides, strict=True))[:layers]:
            samples = (samples - kernel) // stride + 1
        return samples

    @property
    def lengths(self) -> tuple[float, float, int]:
        hop = math.prod(self.strides)
        most = MOST_SAMPLES if self.longest is None else self.longest
        return float(hop), 0.0, max(1, self.frames(max(most, self.shortest)))

    def example(self, positions: int) -> dict[str, Tensor]:
        samples = self.shortest + (positions - 1) * math.prod(self.strides)
        if self.norm is not None:
            self.norm.frames_P = torch.ones(1, dtype=torch.int64, device="meta")
        whole_PS = torch.ones(1, samples, dtype=torch.int64, device="meta")
        return {"input_values": torch.ones(1, samples, device="meta"), "attention_mask": whole_PS}

    def _prepared(self, signal_S: Tensor) -> Tensor:
        if self.facts.get("do_normalize", True) and len(signal_S):
            value_S = signal_S.double()
            value_S = (value_S - value_S.mean()) / (value_S.var(correction=0) + 1e-7).sqrt()
            signal_S = value_S.float()
        return nn.functional.pad(signal_S, (0, max(0, self.shortest - len(signal_S))))

    def _length(self, made: Tensor) -> int:
        return self.frames(len(made))

    def _chunk(self, made: list[Tensor]) -> Chunk:
        lengths = [len(signal) for signal in made]
        frames = [self.frames(length) for length in lengths]
        signal_PS = nn.utils.rnn.pad_sequence(made, batch_first=True)
        valid_PS = torch.arange(max(lengths), device="cpu") < torch.tensor(lengths, device="cpu")[:, None]
        inputs = {"input_values": signal_PS, "attention_mask": valid_PS.long()}
        inputs["frames"] = torch.tensor([self.frames(length, 1) for length in lengths], device="cpu")
        return Chunk(len(made), inputs, stretches_of_all(frames, self.tokens, max(frames)))

    def _hidden(self, group: Any, chunk: Chunk) -> Tensor:
        inputs = dict(chunk.inputs)
        frames_P = inputs.pop("frames")
        if self.norm is not None:
            self.norm.frames_P = frames_P
        inputs["input_values"] = inputs["input_values"].to(self.dtype)
        hidden_PLD: Tensor = self.model(**inputs, return_dict=True).last_hidden_state
        return hidden_PLD


class OwnFramesNorm(nn.GroupNorm):
    """wav2vec2's norm over time, of each signal's own frames: padding would count among them."""

    frames_P: Tensor

    def forward(self, input: Tensor) -> Tensor:
        value_PCF = input.float()
        own_P1F = (torch.arange(input.shape[2], device=input.device) < self.frames_P[:, None])[:, None].float()
        number_P11 = self.frames_P[:, None, None].float()
        mean_PC1 = (value_PCF * own_P1F).sum(2, keepdim=True) / number_P11
        centred_PCF = (value_PCF - mean_PC1) * own_P1F
        variance_PC1 = centred_PCF.square().sum(2, keepdim=True) / number_P11
        scaled_PCF = centred_PCF * (variance_PC1 + self.eps).rsqrt()
        scaled_PCF = scaled_PCF * self.weight[:, None].float() + self.bias[:, None].float()
        return scaled_PCF.to(input.dtype)


class PretrainedSpectrogram(PretrainedSounds):
    """The audio spectrogram transformer: patches of a picture of fixed size, its end empty for shorter signals."""

    def _prepare(self) -> None:
        config = self.model.config
        self.most = int(config.max_length)
        self.bands = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
        self.times = (config.max_length - config.patch_size) // config.time_stride + 1
        self.mel = LogMel(self.facts, int(config.num_mel_bins), self.most)

    def example(self, positions: int) -> dict[str, Tensor]:
        return {"input_values": torch.ones(1, self.most, int(self.model.config.num_mel_bins), device="meta")}

    def _longest(self) -> int | None:
        own = self.mel.samples(self.most)
        return own if self.longest is None else min(own, self.longest)

    def _prepared(self, signal_S: Tensor) -> tuple[Tensor, int]:
        signal_S = nn.functional.pad(signal_S, (0, max(0, WINDOW - len(signal_S))))
        return self.mel(signal_S)

    def _length(self, made: tuple[Tensor, int]) -> int:
        return self.bands * self.times + self.family.leading

    def _chunk(self, made: list[tuple[Tensor, int]]) -> Chunk:
        read_PNL = None
        if not self._own_token:
            width = self.bands * self.times
            read_PNL = torch.zeros(len(made), self.tokens, width + self.family.leading, device="cpu")
            for row, (_, frames) in enumerate(made):
                own = min(self.times, -(-frames // int(self.model.config.time_stride)))
                weight_NT = nn.functional.pad(stretches(own, self.tokens), (0, self.times - own)) / self.bands
                read_PNL[row, :, self.family.leading :] = weight_NT.repeat(1, self.bands)
        return Chunk(len(made), {"input_values": torch.stack([picture for picture, _ in made])}, read_PNL)

    def _hidden(self, group: Any, chunk: Chunk) -> Tensor:
        value_PFM = chunk.inputs["input_values"].to(self.dtype)
        hidden_PLD: Tensor = self.model(input_values=value_PFM, return_dict=True).last_hidden_state
        return hidden_PLD
