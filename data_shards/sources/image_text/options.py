"""Options, and what presets and defaults make of those that are not given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from data_shards.sources.base import SourceOptions
from data_shards.sources.image_text.parts import template_fields

Kind = Literal["multiclass", "multilabel"]
Policy = Literal["refuse", "drop", "keep"]
PRESETS: dict[str | None, dict[str, Any]] = {
    None: {},
    "food101": {"name": "food101"},
    "mm_imdb": {"kind": "multilabel", "name": "mm_imdb"},
    "snli_ve": {
        "image": "Flickr30K_ID",
        "text": "sentence2",
        "label": "gold_label",
        "file": "snli_ve_{part}.jsonl",
        "picture": "Flickr30K/flickr30k_images/{value}.jpg",
        "no_label": "-",
        "unlabelled": "drop",
        "name": "snli_ve",
    },
}


class ImageTextOptions(SourceOptions):
    """Options of this source. A preset fills in what is not given."""

    path: str = Field(description="folder with one .jsonl file per part, and the pictures below it")
    preset: Literal["food101", "mm_imdb", "snli_ve"] | None = Field(None, description="a known layout")
    name: str | None = Field(None, description="name of the data set; default: the preset's, or image_text")
    image: str | None = Field(None, description="field with the picture's path, relative to the folder; default img")
    text: str | None = Field(None, description="field with the text; default text")
    label: str | None = Field(None, description="field with the label (or a list of them); default label")
    id: str | None = Field(
        None,
        description="field with the record's own key: letters, digits, '_' and '-', unique in all parts; default: part "
        "and number, e.g. train-0000012",
    )
    mask: str | None = Field(
        None,
        description="field with the path of a mask, a grey or palette picture of class numbers (255 = unlabelled); "
        "without option label, records then have no label",
    )
    file: str | None = Field(
        None, description="name of a part's file; default {part}.jsonl (val may be called dev, valid or validation)"
    )
    train: str | None = Field(None, description="file of the part train, if its name is another one")
    val: str | None = Field(None, description="file of the part val, e.g. dev_seen.jsonl")
    test: str | None = Field(None, description="file of the part test")
    val_share: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of training that makes the part val, by hash of the picture; if none is there",
    )
    picture: str | None = Field(None, description="path of a picture, made from the field's {value}; default {value}")
    kind: Literal["multiclass", "multilabel"] | None = Field(None, description="one label a record, or any number")
    no_label: str | None = Field(None, description="a label that means there is none")
    unlabelled: Literal["refuse", "drop", "keep"] | None = Field(
        None,
        description="records without label: an error, left out, or packed without a target; default: left out of "
        "training, packed in the other parts, where predict can read them",
    )
    several: int | None = Field(
        None,
        ge=2,
        le=1024,
        description="records may hold several pictures (a list of paths) and several turns of a dialogue (a list of "
        "texts, or of objects with role or from and content or value); the last so many of each are kept, as objects "
        "whose times are their places, 0 for the first that is kept; default: one picture and one text, without a time",
    )
    size: int = Field(224, ge=8, le=2048, description="side of the packed pictures, in pixels")
    background: Literal["white", "black"] = Field("white", description="what transparent parts of pictures show")
    max_bytes: int = Field(4096, ge=1, description="longest text in bytes; the rest is cut off, and counted")
    unseen: Literal["refuse", "drop", "ignore"] = Field(
        "refuse",
        description="labels that training (or labels.txt) lacks: an error, the record is left out, or the label is",
    )
    no_picture: Literal["refuse", "drop", "keep"] = Field(
        "refuse", description="records without a picture, or whose file is not there: an error, left out, or text alone"
    )
    damaged: Literal["refuse", "drop"] = Field("refuse", description="records whose picture cannot be decoded")
    seed: int = Field(0, description="seed of the order of records")


@dataclass(frozen=True)
class Layout:
    """What is where: options, else the preset, else these defaults.

    Attributes:
        unlabelled: None leaves records without label out of training and packs those of other parts.
    """

    name: str = "image_text"
    image: str = "img"
    text: str = "text"
    label: str = "label"
    file: str = "{part}.jsonl"
    picture: str = "{value}"
    kind: Kind = "multiclass"
    no_label: str | None = None
    unlabelled: Policy | None = None

    @staticmethod
    def of(options: ImageTextOptions) -> Layout:
        """Raises ValueError if the template of a picture's path has other names than {value}."""
        given = {name: getattr(options, name) for name in Layout.__dataclass_fields__}
        own = {name: value for name, value in given.items() if value is not None}
        layout = Layout(**{**PRESETS[options.preset], **own})
        if template_fields(layout.picture, "picture") - {"value"}:
            raise ValueError(f"option picture is {layout.picture!r}: only {{value}} can stand in braces")
        return layout
