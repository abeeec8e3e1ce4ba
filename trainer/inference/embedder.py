"""Records of a data set with vectors in place of what pretrained encoders read.

All objects of the given records go through the encoder together, sorted by length and cut into batches by what they
hold: equal records in equal company give equal bits, whoever asks.

Shapes: N objects of a modality, F features of a vector: the tokens of an object, one after the other.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from data_shards import DatasetSchema, Group, ImageGroup, ModalitySpec, TextGroup, WaveformGroup
from data_shards.packing.rewrite import as_vectors
from data_shards.records.columns import Columns
from data_shards.shards.lineage import Embedded

OBJECTS = 256
BYTES = 64 << 20
"""Most that an encoder is given at once; one object that is larger goes alone."""
MOST_FEATURES = 1 << 15
KINDS = ("text", "image", "waveform")


class ObjectEncoder(Protocol):
    """What is needed of a `PretrainedEncoder`."""

    width: int
    tokens: int
    digest: str | None
    cut: int

    def look(self, group: Any) -> Any:
        """What it must know of a group, from its tensors on the CPU."""

    def __call__(self, group: Any, looked: Any) -> Tensor:
        """float32 (objects, tokens, width)."""

    def describe(self) -> dict[str, Any]:
        """Where it comes from, and how it is used."""


def embedded_schema(schema: DatasetSchema, encoders: Mapping[str, ObjectEncoder]) -> DatasetSchema:
    """The schema with a vector for each modality that an encoder reads; times and all others stay.

    Raises ValueError: a modality that is not there, one that no encoder reads, or more features than a vector may have.
    """
    changed = {name: _vector(_spec(schema, name), encoder) for name, encoder in encoders.items()}
    return replace(schema, modalities=tuple(changed.get(spec.name, spec) for spec in schema.modalities))


def _spec(schema: DatasetSchema, name: str) -> ModalitySpec:
    if name not in schema.numbers:
        raise ValueError(f"data set {schema.name} has no modality {name!r}; it has {', '.join(schema.modality_names)}")
    return schema.modalities[schema.numbers[name]]


def _vector(spec: ModalitySpec, encoder: ObjectEncoder) -> ModalitySpec:
    assert encoder.digest is not None, "an encoder without weights says nothing"
    features = encoder.tokens * encoder.width
    if features > MOST_FEATURES:
        raise ValueError(
            f"modality {spec.name} would be {encoder.tokens} tokens of {encoder.width}, {features} features, at most "
            f"{MOST_FEATURES} are kept: ask for fewer tokens"
        )
    return replace(
        spec,
        kind="vector",
        shape=(features,),
        dtype="float32",
        channels=(),
        unit="",
        units=(),
        rate=None,
        max_length=None,
        encoder=encoder.digest,
        tokens=0 if encoder.describe()["tokens"] == "pooled" else encoder.tokens,
    )


def embedded_from(
    schema: DatasetSchema, digest: str, encoders: Mapping[str, ObjectEncoder]
) -> tuple[dict[str, Embedded], str]:
    """What lineage says of each modality; and the SHA-256 of all that decides the vectors, but not of places.

    Args:
        schema, digest: of the data set that is read.
    """
    keys = ("tokens", "dtype", "max_tokens", "max_seconds")
    said: dict[str, Embedded] = {}
    for name, encoder in encoders.items():
        about = encoder.describe()
        how = {key: about[key] for key in keys}
        said[name] = Embedded(about["digest"], about["source"], **how, was=_spec(schema, name), of=digest)
    decides = [
        digest,
        OBJECTS,
        BYTES,
        *([name, encoders[name].digest, *_how(encoders[name], keys)] for name in encoders),
    ]
    text = json.dumps([decides, embedded_schema(schema, encoders).digest()], sort_keys=True)
    return said, hashlib.sha256(text.encode()).hexdigest()


def _how(encoder: ObjectEncoder, keys: Sequence[str]) -> list[Any]:
    about = encoder.describe()
    return [about[key] for key in keys]


class Embedder:
    """Columns of a data set -> the same with vectors.

    Args:
        schema: of what is read. encoders: modality -> its encoder, on `device`.
    """

    def __init__(
        self, schema: DatasetSchema, encoders: Mapping[str, ObjectEncoder], device: torch.device | str = "cpu"
    ) -> None:
        self.read, self.schema, self.device = schema, embedded_schema(schema, encoders), torch.device(device)
        self._encoders = {schema.numbers[name]: encoder for name, encoder in encoders.items()}

    def __call__(self, records: Sequence[Columns]) -> tuple[list[Columns], dict[str, int]]:
        """The records, and `embedded.NAME`: objects, `embedded_cut.NAME`: objects of which the end was not read.

        Raises ValueError: an encoder says what is no number.
        """
        notes = Counter[str]()
        found: list[dict[int, np.ndarray]] = [{} for _ in records]
        for number, encoder in self._encoders.items():
            spec, before = self.read.modalities[number], encoder.cut
            objects = [objects_of(record, number, spec.kind) for record in records]
            value_NF = self._encoded(spec, encoder, [one for own in objects for one in own])
            ends = np.cumsum([len(own) for own in objects])[:-1]
            for row, own_NF in enumerate(np.split(value_NF, ends)):
                if not np.isfinite(own_NF).all():
                    raise ValueError(
                        f"record {records[row].key}: the encoder of {spec.name} says NaN or infinity about one of its "
                        "objects: look at the encoder, or try dtype=float32"
                    )
                found[row][number] = own_NF
            notes[f"embedded.{spec.name}"] += len(value_NF)
            notes[f"embedded_cut.{spec.name}"] += encoder.cut - before
        vectors = [as_vectors(record, self.read, own) for record, own in zip(records, found, strict=True)]
        return vectors, {name: count for name, count in notes.items() if count}

    def _encoded(self, spec: ModalitySpec, encoder: ObjectEncoder, objects: list[np.ndarray]) -> np.ndarray:
        """float32 [N, F] of all objects, in their order."""
        value_NF = np.empty((len(objects), encoder.tokens * encoder.width), np.float32)
        for rows in _batches([len(one) for one in objects], [one.nbytes for one in objects]):
            group: Group = _group(spec, [objects[row] for row in rows])
            looked = encoder.look(group)
            if self.device.type != "cpu":
                group, looked = _moved(group, self.device), looked.to(self.device)
            with torch.no_grad():
                value_NF[rows] = encoder(group, looked).flatten(1).float().cpu().numpy()
        return value_NF


def objects_of(columns: Columns, number: int, kind: str) -> list[np.ndarray]:
    """The objects of one modality of a record as arrays, a text as its bytes."""
    if kind != "text":
        return columns.arrays.get(number, [])
    end_X = np.cumsum(columns.sizes_X)
    own = np.flatnonzero(columns.text_X == number).tolist()
    return [columns.bytes_[end_X[x] - columns.sizes_X[x] : end_X[x]] for x in own]


def _batches(lengths: Sequence[int], sizes: Sequence[int]) -> Iterator[list[int]]:
    """Rows of each batch: those of about the same length together, so that little is padded."""
    rows, held = list[int](), 0
    for row in np.argsort(np.array(lengths, np.int64), kind="stable").tolist():
        if rows and (len(rows) == OBJECTS or held + sizes[row] > BYTES):
            yield rows
            rows, held = [], 0
        rows.append(row)
        held += sizes[row]
    if rows:
        yield rows


def _group(spec: ModalitySpec, objects: Sequence[np.ndarray]) -> Group:
    """Objects as a batch has them; each is a record of its own."""
    place_P, number_P = torch.arange(len(objects)), torch.zeros(len(objects), dtype=torch.int64)
    if spec.kind == "image":
        return ImageGroup(number_P, place_P, torch.from_numpy(np.stack(objects)))
    offsets = torch.from_numpy(np.cumsum([0, *map(len, objects)]))
    joined = np.concatenate(objects)
    if spec.kind == "text":
        return TextGroup(number_P, place_P, offsets, torch.from_numpy(joined))
    return WaveformGroup(number_P, place_P, offsets, torch.from_numpy(joined.astype(np.float32)))


def _moved(group: Group, device: torch.device) -> Group:
    return replace(group, **{own.name: getattr(group, own.name).to(device) for own in fields(group)})
