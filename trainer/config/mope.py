"""The section `mope` of a recipe: which frozen backbone, how it is prompted, and what it is compared with."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from trainer.config.section import Section
from trainer.config.sections import Probability

Method = Literal["head", "static", "mapped", "dynamic", "mope_no_static", "mope", "lora", "full", "late_fusion"]
Family = Literal[
    "vit", "swin", "clip_vision_model", "dinov2", "bert", "roberta", "distilbert", "electra", "clip_text_model"
]


class TowerConfig(Section):
    """One pretrained encoder of pictures or of text."""

    source: str | None = Field(
        None,
        description="where its weights are: a folder with config.json and model.safetensors, a name on the Hugging "
        "Face hub, or a run of job=tower; null = random weights of `family` and `config`",
    )
    family: Family | None = Field(None, description="architecture, where there is no source")
    config: dict[str, Any] = Field(
        default_factory=dict, description="settings of the architecture, by their names in transformers"
    )
    modality: str | None = Field(None, description="modality of the data it reads; null = the only one of its kind")
    readout: Literal["mean", "cls"] = Field(
        "mean", description="its hidden states to one vector: mean over all tokens, or the first (CLIP text: the last)"
    )
    tokenizer: str = Field(
        "auto", description="of a text tower: bytes, or a folder or name; auto = the source's own, bytes if it has none"
    )
    max_tokens: int = Field(128, ge=1, description="longest text in tokens; the rest is cut off")
    normalise: Literal["auto", "data"] = Field(
        "auto", description="of pictures: data = mean and deviation of the training part; auto = the source's, if any"
    )


class MaskConfig(Section):
    """A class for every pixel instead of tasks: a UperNet head on a prompted Swin."""

    modality: str = Field("mask", description="modality that holds the masks: uint8 pictures of class numbers")
    classes: int = Field(2, ge=2, le=255, description="classes of a pixel; 0 is the background, 255 is unlabelled")
    hidden: int = Field(64, ge=4, multiple_of=4, description="channels of the head")


class ImportanceConfig(Section):
    """Keeps the experts of every site in use: squared variation of their importance, above a threshold."""

    weight: float = Field(0.01, ge=0, description="coefficient of the loss")
    cut: float = Field(0.1, ge=0, description="squared variation below which the loss, and its gradient, are zero")
    ema: float = Field(0.9, ge=0, lt=1, description="share of the past in the running importance; 0 = this batch only")


class MopeConfig(Section):
    """Mixture of prompt experts on frozen backbones (arXiv 2403.10568), and what it is compared with."""

    method: Method = Field("mope", description="what is trained beside the head")
    host: str | None = Field(
        None, description="checkpoint or run of job=fusemoe that is prompted; null = the towers `image` and `text`"
    )
    image: TowerConfig | None = Field(None, description="tower that reads pictures")
    text: TowerConfig | None = Field(None, description="tower that reads text")
    prompted: Literal["image", "text", "both"] = Field(
        "image", description="tower that is prompted; the other one is what its prompts are made from"
    )
    context: Literal["paired", "shuffled"] = Field(
        "paired", description="shuffled: prompts are made from another record of the batch, as a control"
    )
    k: int = Field(4, ge=1, description="prompt experts of a site")
    static_length: int = Field(6, ge=0, description="rows of the static prompt of a site")
    dynamic_length: int = Field(6, ge=1, description="rows of each expert of a site")
    source_length: int = Field(
        0, ge=0, description="rows of static prompts in every layer of the tower that is not prompted; 0 = it is frozen"
    )
    skip_first: bool = Field(False, description="leave out the first layer of every stage, as the released code does")
    first_layer: int = Field(0, ge=0, description="layers below this one have no prompts")
    shallow_prompt: bool = Field(
        False, description="with skip_first: the very first layer has a static prompt as long as all parts together"
    )
    insertion: Literal["kv", "tokens"] = Field(
        "kv",
        description="how prompts enter attention: as keys and values only, or as tokens that leave after the layer",
    )
    gate: bool = Field(
        False, description="prompts get a softmax of their own, times a learned gate that starts at zero: identity"
    )
    router: Literal["both", "cross", "intra", "random"] = Field(
        "both", description="what routes: pooled host and context, one of them, or projections that are not trained"
    )
    intra_dim: int = Field(2, ge=1, description="width of the host's part of a routing query")
    cross_dim: int = Field(8, ge=1, description="width of the context's part of a routing query")
    tau: float = Field(0.1, gt=0, description="temperature of the routing softmax")
    noise: float = Field(1 / 256, ge=0, description="deviation of the noise on routing logits; training only")
    normalise_query: bool = Field(True, description="routing queries have unit length; false = as in the released code")
    importance: ImportanceConfig = Field(default_factory=ImportanceConfig, description="load of the experts")
    alone_entropy: float = Field(
        0.001,
        ge=0,
        description="of a FuseMoE host: coefficient of the entropy loss on the routing of modalities that are alone "
        "in their record, which the importance loss leaves out",
    )
    mapper_hidden: int = Field(384, ge=1, description="hidden width of the mapper")
    context_dim: int = Field(64, ge=1, description="width of the context of a FuseMoE host")
    mask: MaskConfig | None = Field(None, description="what to mark in the pictures; null = the tasks of the data")
    dropout: Probability = Field(0.1, description="dropout on mapped prompts and on prompts of the source tower")
    head_input: Literal["host", "both"] = Field("host", description="what the head reads: prompted tower(s), or all")
    head_layers: Literal["last", "all"] = Field(
        "last",
        description="what the head of a FuseMoE host reads: last = what its pooling gives; all = beside it every "
        "modality's mean state before the first and after every fusion block",
    )
    head_hidden: int = Field(0, ge=0, description="hidden width of the head; 0 = one linear layer")
    missing: Literal["refuse", "learned", "generated"] = Field(
        "refuse",
        description="a record without picture or text: refuse it by name, or a learned vector in its place; generated: "
        "for the prompted tower, plus a linear map of what the other one says",
    )
    cache: bool = Field(
        False,
        description="read what frozen, unprompted towers say about the training records once, before the first step; "
        "saves that tower's time from the second epoch on, holds one vector a record",
    )
    lora_rank: int = Field(4, ge=1, description="rank of LoRA's weight changes")
    lora_match: int | None = Field(
        None,
        ge=1,
        description="choose the rank whose number of trained parameters is nearest to this; null = lora_rank",
    )

    @model_validator(mode="after")
    def _one_host(self) -> MopeConfig:
        if self.host and (self.image or self.text):
            raise ValueError("mope.host and mope.image or mope.text are both given: prompt a FuseMoE model, or towers")
        if self.host and self.mask:
            raise ValueError("mope.mask marks pixels of a picture tower, and mope.host is a FuseMoE model: give towers")
        if self.host and not self.gate and self.prompts:
            raise ValueError("mope.host needs mope.gate=true: prompts of a FuseMoE model have a softmax of their own")
        if self.head_layers == "all" and not self.host:
            raise ValueError("mope.head_layers=all reads the blocks of a FuseMoE model, and mope.host names none")
        queries = self.intra_dim * (self.router != "cross") + self.cross_dim * (self.router != "intra")
        if self.dynamic and self.k > queries:
            raise ValueError(
                f"mope.k={self.k} experts need as many orthogonal routing keys, and a query has {queries} dimensions "
                f"(mope.intra_dim + mope.cross_dim, as far as mope.router={self.router} uses them): raise "
                f"mope.cross_dim to {self.k - queries + self.cross_dim} or lower mope.k"
            )
        return self

    @property
    def static(self) -> bool:
        """Whether the method has static prompts."""
        return self.method in ("static", "mope")

    @property
    def dynamic(self) -> bool:
        """Whether the method has prompt experts and a router."""
        return self.method in ("dynamic", "mope", "mope_no_static")

    @property
    def mapped(self) -> bool:
        """Whether the method has a mapped prompt."""
        return self.method in ("mapped", "mope", "mope_no_static")

    @property
    def prompts(self) -> bool:
        """Whether the method prompts at all."""
        return self.static or self.dynamic or self.mapped

    @property
    def rows(self) -> int:
        """Rows of all parts together at one site."""
        return self.static * self.static_length + self.dynamic * self.dynamic_length + int(self.mapped)
