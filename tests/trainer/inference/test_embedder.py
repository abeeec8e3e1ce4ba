"""Records with vectors in place of objects: what encoders say of each, whatever its company, at the same times."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from data_shards import DatasetSchema, ModalitySpec, Objects, Record, TextGroup
from data_shards.records.codec import encode_record
from data_shards.records.columns import Columns
from data_shards.records.decoder import Decoder
from tests.trainer.pretrained import RATE, SIDE, group_of, objects, save_encoder
from trainer.config.encoders import PretrainedConfig
from trainer.inference import embedder
from trainer.inference.embedder import Embedder, embedded_from, embedded_schema
from trainer.models.pretrained.load import load_encoder

HOURS: dict[str, Any] = {"timed": True, "time_unit": "hours", "horizon": 48.0}
SCHEMA = DatasetSchema(
    "s",
    (
        ModalitySpec("before", "vector", shape=(2,)),
        ModalitySpec("notes", "text", max_objects=9, **HOURS),
        ModalitySpec("title", "text"),
        ModalitySpec("cxr", "image", shape=(3, SIDE, SIDE), dtype="uint8", **HOURS),
        ModalitySpec("sound", "waveform", shape=(1,), rate=RATE),
        ModalitySpec("after", "vector", shape=(2,)),
    ),
)
FAMILIES = {"notes": "bert", "cxr": "vit", "sound": "wav2vec2"}
TOKENS: dict[str, Any] = {"notes": "pooled", "cxr": 4, "sound": 2}
TEXTS = [one.decode() for one in objects("text", 9)]
PICTURES = [one.numpy() for one in objects("image", 4, seed=1)]
SOUNDS = [one.numpy()[:, None] for one in objects("waveform", 3, seed=2)]
PAIR = np.array([1.5, -2.5], np.float32)


def at(*times: float) -> np.ndarray:
    return np.array(times, np.float32)


RECORDS = [
    Record("a", {"before": PAIR, "notes": Objects(at(5, 1, 5), TEXTS[:3]), "title": "red", "sound": SOUNDS[0]}),
    Record("b", {"notes": Objects(at(), []), "cxr": Objects(at(2, 3), PICTURES[:2]), "after": PAIR}),
    Record("c", {"title": "blue"}),
    Record("d", {"notes": Objects(at(7), TEXTS[3:4]), "cxr": Objects(at(0), PICTURES[2:3]), "sound": SOUNDS[1]}),
    Record("e", {"notes": Objects(at(1, 2, 3, 4, 5), TEXTS[4:9]), "sound": SOUNDS[2]}),
]


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders")
    found = {}
    for name, family in FAMILIES.items():
        source = save_encoder(folder / name, family)
        config = PretrainedConfig(source=str(source), tokens=TOKENS[name])
        found[name] = load_encoder(SCHEMA.modalities[SCHEMA.numbers[name]], config).eval()
    return found


def columns() -> list[Columns]:
    decoder = Decoder(SCHEMA)
    return [decoder.columns(encode_record(record, SCHEMA)) for record in RECORDS]


def alone(encoder: Any, kind: str, value: Any) -> np.ndarray:
    """What an encoder says of one object, without the embedder."""
    made = value.encode() if isinstance(value, str) else torch.from_numpy(value[:, 0] if kind == "waveform" else value)
    group = group_of(kind, [made])
    with torch.no_grad():
        return encoder(group, encoder.look(group)).flatten().numpy()  # type: ignore[no-any-return]


def test_each_object_becomes_what_its_encoder_says_of_it_alone(encoders):
    made, notes = Embedder(SCHEMA, encoders)(columns())
    assert notes == {"embedded.notes": 9, "embedded.cxr": 3, "embedded.sound": 3}
    # By modality, then time; equal times as they came.
    wanted = {
        0: [(0, 0, PAIR), (1, 1, TEXTS[1]), (1, 5, TEXTS[0]), (1, 5, TEXTS[2]), (4, 0, SOUNDS[0])],
        1: [(3, 2, PICTURES[0]), (3, 3, PICTURES[1]), (5, 0, PAIR)],
        2: [],
        3: [(1, 7, TEXTS[3]), (3, 0, PICTURES[2]), (4, 0, SOUNDS[1])],
        4: [*((1, i + 1, TEXTS[4 + i]) for i in range(5)), (4, 0, SOUNDS[2])],
    }
    widths = {0: 2, 1: 32, 3: 128, 4: 64, 5: 2}
    for row, rows in wanted.items():
        own = made[row]
        assert own.vector_V.tolist() == [number for number, _, _ in rows]
        assert own.vector_times_V.tolist() == [time for _, time, _ in rows]
        ends = np.cumsum([0, *(widths[number] for number, _, _ in rows)])
        assert len(own.features_) == ends[-1]
        for (number, _, value), start, end in zip(rows, ends[:-1], ends[1:], strict=True):
            spec = SCHEMA.modalities[number]
            said = value if spec.kind == "vector" else alone(encoders[spec.name], spec.kind, value)
            np.testing.assert_allclose(own.features_[start:end], said, rtol=1e-4, atol=1e-5)
    assert [own.empty_E.tolist() for own in made] == [[], [1], [], [], []]
    assert [own.text_X.tolist() for own in made] == [[2], [], [2], [], []] and bytes(made[0].bytes_) == b"red"
    assert all(not own.arrays for own in made)


def test_the_schema_says_what_the_vectors_are(encoders):
    schema = embedded_schema(SCHEMA, encoders)
    was, spec = SCHEMA.modalities[3], schema.modalities[3]
    assert (spec.kind, spec.shape, spec.dtype, spec.tokens) == ("vector", (128,), "float32", 4)
    assert (spec.timed, spec.horizon, spec.time_unit, spec.encoder) == (True, 48.0, "hours", encoders["cxr"].digest)
    assert (schema.modalities[1].tokens, schema.modalities[1].shape, schema.modalities[1].max_objects) == (0, (32,), 9)
    assert schema.modalities[4].rate is None and schema.modalities[2] == SCHEMA.modalities[2]
    said, job = embedded_from(SCHEMA, "d" * 64, encoders)
    found = said["cxr"]
    assert (found.was, found.of, found.tokens, found.dtype, found.digest) == (
        was, "d" * 64, 4, "float32", encoders["cxr"].digest
    )  # fmt: skip
    # Places say nothing about vectors; data, and how an encoder is asked, do.
    others = {**encoders, "cxr": load_encoder(was, encoders["cxr"].config.model_copy(update={"dtype": "bfloat16"}))}
    assert embedded_from(SCHEMA, "d" * 64, others)[1] != job != embedded_from(SCHEMA, "e" * 64, encoders)[1]


def test_results_do_not_depend_on_how_records_are_dealt(encoders, monkeypatch):
    whole, _ = Embedder(SCHEMA, encoders)(columns())
    again, _ = Embedder(SCHEMA, encoders)(columns())
    assert all(np.array_equal(a.features_, b.features_) for a, b in zip(whole, again, strict=True))
    # In other batches they differ in roundings, and in nothing else.
    monkeypatch.setattr(embedder, "OBJECTS", 2)
    small, _ = Embedder(SCHEMA, encoders)(columns())
    for one, two in zip(whole, small, strict=True):
        np.testing.assert_allclose(one.features_, two.features_, rtol=1e-4, atol=1e-5)


def test_batches_hold_neighbours_in_length_and_are_small(monkeypatch):
    monkeypatch.setattr(embedder, "OBJECTS", 3)
    monkeypatch.setattr(embedder, "BYTES", 20)
    lengths = [9, 1, 5, 5, 30, 2, 9]
    assert list(embedder._batches(lengths, lengths)) == [[1, 5, 2], [3, 0], [6], [4]]
    assert list(embedder._batches([], [])) == []


class Strange:
    """An encoder that says its answers."""

    width, tokens, digest, cut = 2, 1, "a" * 64, 0

    def __init__(self, *answer: float) -> None:
        self.answer = answer

    def look(self, group: TextGroup) -> None:
        self.cut += group.pairs

    def __call__(self, group: TextGroup, looked: None) -> Tensor:
        return torch.tensor([[list(self.answer)]] * group.pairs)

    def describe(self) -> dict[str, Any]:
        return {"tokens": "pooled"}


def test_what_is_no_number_is_refused_and_what_is_cut_is_counted():
    with pytest.raises(
        ValueError, match="record a: the encoder of title says NaN or infinity about one of its objects"
    ):
        Embedder(SCHEMA, {"title": Strange(1.0, float("nan"))})(columns())
    made, notes = Embedder(SCHEMA, {"title": Strange(1.0, 2.0)})(columns())
    assert notes == {"embedded.title": 2, "embedded_cut.title": 2} and made[2].features_.tolist() == [1.0, 2.0]
    wide = Strange(1.0, 2.0)
    wide.tokens = 20_000
    with pytest.raises(ValueError, match="20000 tokens of 2, 40000 features, at most 32768 are kept: ask for fewer"):
        Embedder(SCHEMA, {"title": wide})
    with pytest.raises(ValueError, match="has no modality 'x'; it has before, notes"):
        Embedder(SCHEMA, {"x": wide})


def test_a_schema_refuses_what_no_encoder_makes():
    vector = ModalitySpec("v", "vector", shape=(6,), encoder="a" * 64, tokens=3)
    with pytest.raises(ValueError, match="6 features are not 4 tokens"):
        replace(vector, tokens=4)
    for change in ({"kind": "text", "shape": ()}, {"encoder": ""}, {"tokens": -1}):
        with pytest.raises(ValueError, match="encoder and tokens are for vectors that an encoder made"):
            replace(vector, **{"dtype": "", **change})
