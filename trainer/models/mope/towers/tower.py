"""A pretrained encoder of pictures or of text: its inputs, its hidden states, the vector that is read out.

Shapes: B samples, C channels, N tokens, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from data_shards.records.statistics import ModalityStatistics
from trainer.config.mope import TowerConfig
from trainer.models.layers.embedding import make_embeddings_exact
from trainer.models.layers.ragged import pick_rows
from trainer.models.layers.standardise import Constant
from trainer.models.mope.towers.sites import KINDS, PICTURES, Site, find_sites, pooled, register_attention
from trainer.models.pretrained.loading.backbone import BackboneError
from trainer.models.pretrained.loading.library import from_pretrained
from trainer.models.pretrained.loading.sources import Asked, Loaded, load_source, random_model
from trainer.models.pretrained.loading.tokenizers import Tokenizer, tokenizer_of


class Tower(nn.Module):
    """One encoder: pictures or texts of a batch -> hidden states -> one vector.

    Args:
        asked: kind image or text. loaded: the model. config: readout, longest text.
        statistics: of the modality, for pictures whose source has no normalisation of its own.
    """

    def __init__(
        self, asked: Asked, loaded: Loaded, config: TowerConfig, statistics: ModalityStatistics | None
    ) -> None:
        super().__init__()
        self.what, self.family, self.readout = asked.kind, loaded.family, config.readout
        self.model, self.run_id = loaded.model, loaded.run_id
        make_embeddings_exact(self.model)
        self.sites: list[Site] = find_sites(loaded.model, loaded.family)
        self.tokenizer: Tokenizer | None = None
        self.mean = self.scale = None
        if self.what == "text":
            self.tokenizer = None if loaded.shapes_only else _tokenizer(asked, loaded, config)
        else:
            mean, std = loaded.mean, loaded.std
            if config.normalise == "data" or mean is None or std is None:
                assert statistics is not None
                mean, std = list(statistics.mean), list(statistics.std)
            self.mean = Constant(torch.tensor(mean)[:, None, None])
            self.scale = Constant(1 / torch.tensor(std).clamp_min(1e-6)[:, None, None])
        self.trained = False

    @property
    def width(self) -> int:
        """D of the vector that is read out."""
        return self.sites[-1].width

    def train(self, mode: bool = True) -> Tower:
        """A frozen tower stays in evaluation mode: no dropout, no dropped path, no statistics that move."""
        return super().train(mode and self.trained)

    def pictures(self, values_BCHW: Tensor) -> Tensor:
        """Raw pictures (B, C, H, W) -> hidden states (B, N, D)."""
        assert self.mean is not None and self.scale is not None
        x_BCHW = (values_BCHW.float() - self.mean()) * self.scale()
        hidden_BND: Tensor = self.model(pixel_values=x_BCHW.to(self.dtype), return_dict=True).last_hidden_state
        return hidden_BND

    def feature_maps(self, values_BCHW: Tensor) -> list[Tensor]:
        """Raw pictures -> maps (B, D, H, W) after each stage, of a tower whose stages shrink the picture (swin)."""
        assert self.mean is not None and self.scale is not None
        x_BCHW = ((values_BCHW.float() - self.mean()) * self.scale()).to(self.dtype)
        output = self.model(pixel_values=x_BCHW, output_hidden_states=True, return_dict=True)
        return list(output.reshaped_hidden_states[1:])

    def texts(self, texts: list[bytes]) -> tuple[Tensor, Tensor]:
        """Token numbers (B, N) and which of them are the text's own, on the CPU."""
        assert self.tokenizer is not None
        return self.tokenizer(texts)

    def encode_tokens(self, numbers_BN: Tensor, valid_BN: Tensor) -> Tensor:
        """Hidden states (B, N, D) of texts."""
        # `return_dict` is said, because a folder's config.json may say otherwise.
        output = self.model(input_ids=numbers_BN, attention_mask=valid_BN.long(), return_dict=True)
        hidden_BND: Tensor = output.last_hidden_state
        return hidden_BND

    def read(self, hidden_BND: Tensor, valid_BN: Tensor | None, tail_BPD: Tensor | None = None) -> Tensor:
        """(B, D); prompts that were tokens in the last layer (`tail_BPD`) count among the tokens of a mean."""
        if self.readout == "cls":
            if self.family == "clip_text_model":
                assert valid_BN is not None
                start_B = torch.arange(len(hidden_BND), device=hidden_BND.device) * hidden_BND.shape[1]
                return pick_rows(hidden_BND.flatten(0, 1), start_B + valid_BN.sum(1) - 1)
            return hidden_BND[:, 0]
        if tail_BPD is not None:
            hidden_BND = torch.cat([hidden_BND, tail_BPD], 1)
            if valid_BN is not None:
                valid_BN = torch.cat([valid_BN, valid_BN.new_ones(tail_BPD.shape[:2])], 1)
        return pooled(hidden_BND, valid_BN)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    @property
    def picture_shape(self) -> tuple[int, int, int]:
        """(C, H, W) that the architecture takes."""
        config: Any = self.model.config
        side = config.image_size
        height, width = (side, side) if isinstance(side, int) else side
        return int(config.num_channels), int(height), int(width)

    @property
    def patches(self) -> int:
        """Tokens of a picture in the first layer."""
        config: Any = self.model.config
        _, height, width = self.picture_shape
        return (height // int(config.patch_size)) * (width // int(config.patch_size))


def _tokenizer(asked: Asked, loaded: Loaded, config: TowerConfig) -> Tokenizer:
    words = loaded.tokenizer if config.tokenizer == "auto" else None
    if config.tokenizer not in ("auto", "bytes"):
        words = from_pretrained("tokenizer", asked.label, config.tokenizer)
    where = f"{asked.key}.tokenizer"
    size = f"give its tokenizer's folder in {where}, or vocab_size in {asked.key}.config"
    return tokenizer_of(words, loaded.model.config, config.max_tokens, asked.label, f" in {where}", size)


def load_tower(
    what: str, config: TowerConfig, statistics: ModalityStatistics | None = None, weights: bool = True
) -> Tower:
    """The tower `what` (image or text); without `weights`, of its source only the configuration is read.

    Raises BackboneError.
    """
    asked = Asked(f"tower {what}", f"mope.{what}", what, KINDS, register_attention())
    if config.source is None:
        loaded = random_model(asked, config.family, config.config)
    else:
        loaded = load_source(asked, config.source, weights)
    if loaded.family not in KINDS or (loaded.family in PICTURES) != (what == "image"):
        fit = [name for name in KINDS if (name in PICTURES) == (what == "image")]
        raise BackboneError(f"tower {what}: family {loaded.family!r} is none of {', '.join(fit)}")
    return Tower(asked, loaded, config, statistics)
