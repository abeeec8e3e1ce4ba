"""Pictures through a pretrained encoder: pixels are normalised as its source says, on the device.

Pixels are 0 to 255 here. A grey picture is three times the same for a model of colours. Families whose positions were
trained for one size get that size, by the interpolation that the source names.

Shapes: P pictures, C channels, H x W pixels, D width, h x w cells of what the model gives.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from data_shards import ImageGroup, ModalitySpec
from trainer.config.encoders import PretrainedConfig
from trainer.models.layers.standardise import Constant
from trainer.models.pretrained.cost import pass_cost
from trainer.models.pretrained.encoder import Chunk, PretrainedEncoder
from trainer.models.pretrained.loading.backbone import BackboneError
from trainer.models.pretrained.loading.families import TIMM
from trainer.models.pretrained.loading.sources import Asked, Loaded
from trainer.models.pretrained.reading import grid

BICUBIC = 3  # number of a way to resize, in a source's files; others are taken for bilinear
PIXELS = 1 << 22  # of the pictures that go through the model together


class PretrainedPictures(PretrainedEncoder):
    """Of the kinds of ViT, or convolutional. Raises BackboneError: pictures that it cannot take."""

    def __init__(self, asked: Asked, loaded: Loaded, config: PretrainedConfig, spec: ModalitySpec) -> None:
        self.shape = spec.shape
        super().__init__(asked, loaded, config)
        facts = loaded.facts or {}
        self.channels = self._channels(spec)
        self.side = self._side()
        self.mode = "bicubic" if facts.get("resample") == BICUBIC else "bilinear"
        mean, std = self._normalisation(loaded)
        self.mean = Constant(torch.tensor(mean)[:, None, None])
        self.scale = Constant(1 / torch.tensor(std).clamp_min(1e-12)[:, None, None])
        self.cells = self._cells(spec)

    def _channels(self, spec: ModalitySpec) -> int:
        own = getattr(self.model.config, "model_args", None) or {}  # timm's
        takes = int(getattr(self.model.config, "num_channels", own.get("in_chans", 3)))
        if spec.shape[0] not in (takes, 1):
            raise BackboneError(
                f"{self.label} takes pictures of {takes} channels, and modality {spec.name} has {spec.shape[0]}: pack "
                f"it with {takes}, or with 1, which is taken {takes} times"
            )
        return takes

    def _side(self) -> tuple[int, int]:
        """Height and width that the model is given."""
        if not self.family.sized:
            return self.shape[1], self.shape[2]
        side = self.model.config.image_size
        return (side, side) if isinstance(side, int) else (int(side[0]), int(side[1]))

    def _normalisation(self, loaded: Loaded) -> tuple[list[float], list[float]]:
        facts, mean, std = loaded.facts or {}, loaded.mean, loaded.std
        if self.name == TIMM:
            own = self.model.config.pretrained_cfg or {}
            mean, std = ([255 * float(value) for value in own.get(key, ())] or None for key in ("mean", "std"))
        if mean is None and facts and not facts.get("do_normalize", True):
            step = float(facts.get("rescale_factor", 1 / 255)) if facts.get("do_rescale", True) else 1.0
            mean, std = [0.0] * self.channels, [1 / step] * self.channels
        if mean is None or std is None:
            if loaded.shapes_only:
                return [0.0] * self.channels, [1.0] * self.channels
            raise BackboneError(
                f"{self.label}: {self.config.source} does not say how pixels are normalised: it needs "
                "preprocessor_config.json with image_mean and image_std"
            )
        return mean, std

    def _cells(self, spec: ModalitySpec) -> tuple[int, int]:
        """Height and width of what the model gives."""
        try:
            _, _, shape = pass_cost(self.model, self.example(1))
        except (RuntimeError, ValueError) as error:
            raise BackboneError(
                f"{self.label} cannot take pictures of {self.side[0]} x {self.side[1]} pixels, which modality "
                f"{spec.name} has: pack larger ones ({' '.join(str(error).split())[:120]})"
            ) from error
        if self.family.maps:
            if len(shape) != 4 or shape[1] != self.width:
                raise BackboneError(
                    f"{self.label}: {self.config.source} is no convolutional network, and of timm only those are read: "
                    "give the model in transformers' own format, e.g. of type vit"
                )
            return int(shape[2]), int(shape[3])
        config = self.model.config
        shrunk = config.patch_size if isinstance(config.patch_size, int) else config.patch_size[0]
        shrunk *= 2 ** (len(config.depths) - 1) if self.name == "swin" else 1
        height, width = self.side[0] // shrunk, self.side[1] // shrunk
        assert height * width + self.family.leading == shape[1], f"{shape} are not {height} x {width} cells"
        return height, width

    def example(self, positions: int) -> dict[str, Tensor]:
        return {"pixel_values": torch.ones(1, self.channels, *self.side, device="meta")}

    def _objects(self, group: ImageGroup) -> Sequence[tuple[int, Tensor]]:
        return list(enumerate(group.values_PCHW))

    def _content(self, one: tuple[int, Tensor]) -> bytes:
        return one[1].contiguous().numpy().tobytes()

    def _read(self, objects: list[tuple[int, Tensor]]) -> list[int]:
        return [place for place, _ in objects]

    def _length(self, made: int) -> int:
        return 1

    def _together(self, made: list[int], order: list[int]) -> list[list[int]]:
        if self.features is not None:
            return super()._together(made, order)
        most = max(1, PIXELS // (self.side[0] * self.side[1]))
        return [order[start : start + most] for start in range(0, len(order), most)]

    def _chunk(self, made: list[int]) -> Chunk:
        read_PNL = None
        if not self._own_token:
            read_NL = grid(*self.cells, self.tokens)
            read_PNL = functional.pad(read_NL, (self.family.leading, 0))[None]
        return Chunk(len(made), {}, read_PNL, made[0])

    def _hidden(self, group: ImageGroup, chunk: Chunk) -> Tensor:
        pixel_PCHW = group.values_PCHW[chunk.first : chunk.first + chunk.rows].float()
        if pixel_PCHW.shape[2:] != self.side:
            pixel_PCHW = functional.interpolate(pixel_PCHW, self.side, mode=self.mode, antialias=True)
        if pixel_PCHW.shape[1] != self.channels:
            pixel_PCHW = pixel_PCHW.expand(-1, self.channels, -1, -1)
        pixel_PCHW = ((pixel_PCHW - self.mean()) * self.scale()).to(self.dtype)
        hidden: Tensor = self.model(pixel_values=pixel_PCHW, return_dict=True).last_hidden_state
        return hidden.flatten(2).transpose(1, 2) if self.family.maps else hidden

    def _finished(self, token_PND: Tensor) -> Tensor:
        if self.name != "convnext":
            return token_PND
        norm = self.model.layernorm
        return norm(token_PND.to(norm.weight.dtype)).float()  # type: ignore[no-any-return]
