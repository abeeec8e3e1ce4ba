"""One entry of `model.encoders`: an encoder that somebody else has trained reads a modality."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from trainer.config.section import Section


class PretrainedConfig(Section):
    """A pretrained encoder of texts, pictures or waveforms in the place of the one that is trained from nothing.

    Of data that `launch embed` has made, the modality is a vector: `tokens` says how it is read, and nothing is loaded.
    """

    source: str = Field(
        description="a folder with config.json and model.safetensors, a name on the Hugging Face hub, or a run of "
        "job=tower"
    )
    train: Literal["none", "lora", "all"] = Field(
        "none", description="none = it is frozen; lora = low-rank changes of its weights are trained; all = its weights"
    )
    tokens: Literal["pooled"] | int = Field(
        "pooled",
        description="tokens made of one object: pooled = one, as the family has it (the first token of texts, ViT and "
        "DINOv2, the mean of others); or a number: means of even parts of a picture, or stretches of a text or signal",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="of frozen weights, and of what is computed with them; what is trained is computed in "
        "parallel.precision",
    )
    lr: float | None = Field(
        None, gt=0, description="peak learning rate of what is trained of the encoder; null = optim.lr"
    )
    rank: int = Field(8, ge=1, description="rank of LoRA's weight changes")
    cache: bool = Field(
        False,
        description="keep what a frozen encoder says about an object, by its content, and do not ask it again; objects "
        "are then encoded one by one, so that a result does not depend on what was kept",
    )
    cache_mib: int = Field(
        1024, ge=1, description="most that is kept, MiB on each device; what is beyond is encoded again each time"
    )
    max_tokens: int | None = Field(
        None,
        ge=2,
        description="tokens of a text that are read, the rest is cut off and counted; null = as many as the "
        "encoder has positions for",
    )
    max_seconds: float | None = Field(
        None,
        gt=0,
        description="seconds of a waveform that are read, the rest is cut off and counted; null = all that "
        "the encoder can take",
    )

    @model_validator(mode="after")
    def _fits(self) -> PretrainedConfig:
        if isinstance(self.tokens, int) and not isinstance(self.tokens, bool) and self.tokens < 1:
            raise ValueError("tokens must be pooled, or a number from 1")
        if self.cache and self.train != "none":
            raise ValueError(
                f"cache keeps what an encoder says, and with train={self.train} it says another thing "
                "after every step: set cache=false or train=none"
            )
        if self.lr is not None and self.train == "none":
            raise ValueError(
                "lr is given, and nothing of the encoder is trained: set train=lora or train=all, or leave lr out"
            )
        return self

    @property
    def count(self) -> int:
        """Tokens made of one object."""
        return 1 if self.tokens == "pooled" else int(self.tokens)
