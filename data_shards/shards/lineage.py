"""Where a packed data set comes from: which version it is, and which of its vectors pretrained encoders have made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, SerializerFunctionWrapHandler, model_serializer

from data_shards.records.schema import ModalitySpec

_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Embedded:
    """What a modality was before a pretrained encoder made a vector of it, and which encoder did.

    Attributes:
        digest: of the encoder, as in `ModalitySpec.encoder`.
        source: folder or name that it was loaded from.
        tokens, dtype, max_tokens, max_seconds: how it was asked, as in a recipe's `model.encoders`.
        was: the modality of the data set that was embedded. of: digest of that data set.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    digest: str
    source: str
    tokens: int | Literal["pooled"]
    dtype: str
    max_tokens: int | None
    max_seconds: float | None
    was: ModalitySpec
    of: str


@dataclass(frozen=True)
class Lineage:
    """Which version of a growing data set this is.

    Attributes:
        number: 1 for a data set as it was packed. parent: digest of the version that it was made from.
        embedded: modality -> what it was, of those that pretrained encoders have made.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    number: int = 1
    parent: str | None = None
    embedded: dict[str, Embedded] = field(default_factory=dict)

    @model_serializer(mode="wrap")
    def _as_table(self, table: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Left out where there is none: other data keep the bytes, and the digest, of their manifest.
        return {key: value for key, value in table(self).items() if value or key != "embedded"}
