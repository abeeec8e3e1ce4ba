"""Which column of the table says what: fixed by the schema and, of codes, by what is frequent in the training part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from data_shards import DatasetSchema, ModalitySpec
from trainer.baseline.features.objects import OF_CHANNELS, WORDS, picture_names
from trainer.baseline.features.stretches import OF_FEATURES, OF_OBJECTS, OF_SERIES

OF_CODES = ("count", "different", "first_time", "last_time")


@dataclass(frozen=True)
class Layout:
    """The columns of a table, modality by modality, then whether each modality is there.

    Attributes:
        codes: modality -> numbers of the codes that have columns of their own.
        names: of the columns. first_M: the first column of each modality, and of what comes after the last.
    """

    schema: DatasetSchema
    codes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    names: tuple[str, ...] = field(init=False)
    first_M: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        own = [_columns(spec, self.codes.get(spec.name, ())) for spec in self.schema.modalities]
        names = [
            f"{spec.name}.{name}" for spec, columns in zip(self.schema.modalities, own, strict=True) for name in columns
        ]
        names += [f"{name}.there" for name in self.schema.modality_names]
        object.__setattr__(self, "names", tuple(names))
        object.__setattr__(self, "first_M", np.cumsum([0, *map(len, own)]))

    @property
    def owner_X(self) -> np.ndarray:  # noqa: N802
        """int64: the modality of each column."""
        modalities = np.arange(len(self.schema.modalities))
        return np.concatenate([np.repeat(modalities, np.diff(self.first_M)), modalities])


def feature_names(spec: ModalitySpec) -> list[str]:
    """Of one object of a modality: what `objects` makes of it, or a vector's own features."""
    match spec.kind:
        case "vector":
            return list(spec.channels) or [str(number) for number in range(spec.shape[0])]
        case "image":
            return picture_names(spec.shape)
        case "waveform":
            channels = spec.channels or tuple(str(number) for number in range(spec.shape[0]))
            return [f"{channel}.{name}" for channel in channels for name in OF_CHANNELS]
        case "text":
            return ["characters", *(f"words{number}" for number in range(WORDS))]
    raise AssertionError(spec.kind)


def _columns(spec: ModalitySpec, codes: tuple[int, ...]) -> list[str]:
    if spec.kind == "series":
        return [f"{channel}.{name}" for channel in spec.channels for name in OF_SERIES]
    if spec.kind == "codes":
        counts = [f"code{code}.count" for code in codes]
        return [*OF_CODES, *counts, *([f"code{code}.last" for code in codes] if spec.valued else [])]
    features = feature_names(spec)
    if not spec.timed:
        return features
    # Of texts at times the words of all of them count, as if they were one.
    if spec.kind == "text":
        return [*OF_OBJECTS, *features]
    return [*OF_OBJECTS, *(f"{feature}.{name}" for name in OF_FEATURES for feature in features)]
