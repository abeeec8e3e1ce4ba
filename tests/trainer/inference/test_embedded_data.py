"""A model of embedded data: its checkpoint says which encoder its input needs; original data go through no other."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_shards import open_manifest, pack
from tests.data_shards.build import ListSource
from tests.data_shards.packing.remade import SCHEMA, records
from tests.trainer.inference.embedding import embed
from tests.trainer.inference.test_predictor import request_for, whole
from tests.trainer.jobs.test_train import job
from tests.trainer.pretrained import save_encoder
from tests.trainer.tiny import config
from trainer.checkpoints.description import embedded_from_json, schema_difference
from trainer.checkpoints.find import open_checkpoint
from trainer.checkpoints.pieces import CheckpointError
from trainer.inference.request import needed_encoders

pytestmark = pytest.mark.together
SMALL = {"training__epochs": 1, "model__image__patch": 4, "training__tasks": ["death"]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder with the original data, embedded ones and encoders; and a run on the embedded ones."""
    folder = tmp_path_factory.mktemp("embedded")
    pack(ListSource(SCHEMA, records(48)), str(folder / "data"), chunk_records=8, shard_bytes=20_000)
    sources = {"notes": save_encoder(folder / "bert", "bert"), "face": save_encoder(folder / "vit", "vit")}
    save_encoder(folder / "other", "bert", seed=2)
    embed(folder / "data", folder / "vectors", sources)
    embed(folder / "data", folder / "other_vectors", {**sources, "notes": folder / "other"})
    job(1, config(str(folder / "vectors"), folder, **SMALL))
    return folder, folder / "run"


def on(trained: tuple[Path, Path], data: str, **given: str):  # type: ignore[no-untyped-def]
    """A request for data of the folder, with encoders where they are needed."""
    folder, run = trained
    schema = open_manifest(str(folder / data)).schema
    encoders = needed_encoders(open_checkpoint(str(run)), schema, "", given)
    return request_for((str(folder / data), run), encoders=encoders)


def test_a_checkpoint_says_which_encoder_its_input_needs(trained: tuple[Path, Path]) -> None:
    folder, run = trained
    stored = open_checkpoint(str(run)).meta["embedded"]
    manifest = open_manifest(str(folder / "vectors"))
    assert embedded_from_json(stored) == manifest.embedded and set(stored) == {"notes", "face"}
    assert stored["notes"]["source"] == str(folder / "bert")
    assert json.loads(json.dumps(stored))["notes"]["was"]["kind"] == "text"
    assert embedded_from_json(None) == {}, "of checkpoints from before"


def test_original_data_are_predicted_as_their_vectors(trained: tuple[Path, Path]) -> None:
    request = on(trained, "data")
    assert sorted(request.encoders) == ["face", "notes"] and on(trained, "vectors").encoders == {}
    (_, raw), (_, vectors) = whole(request), whole(on(trained, "vectors"))
    assert raw["key"].to_pylist() == vectors["key"].to_pylist() == [f"r{i:03d}" for i in range(48)]
    one, two = (np.array(table["death.logits"].to_pylist()) for table in (raw, vectors))
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)
    assert np.ptp(two) > 1e-3, "records differ"


def test_the_encoder_may_have_moved_and_no_other_is_taken(trained: tuple[Path, Path], tmp_path: Path) -> None:
    folder, _ = trained
    moved = tmp_path / "moved"
    (folder / "bert").rename(moved)
    try:
        with pytest.raises(
            CheckpointError, match=r"bert.*; the model reads vectors that encoder [0-9a-f]{12} \(.*bert\) "
        ):
            whole(on(trained, "data"))
        assert whole(on(trained, "data", notes=str(moved)))[1].num_rows == 48
        with pytest.raises(
            CheckpointError, match=r"other is another encoder \([0-9a-f]{12}\); the model reads vectors"
        ):
            whole(on(trained, "data", notes=str(folder / "other")))
    finally:
        moved.rename(folder / "bert")


def test_vectors_of_another_encoder_and_wrong_wishes_are_refused(trained: tuple[Path, Path]) -> None:
    with pytest.raises(CheckpointError, match=r"modality notes was embedded by another encoder \([0-9a-f]{12}\) than"):
        whole(on(trained, "other_vectors"))
    with pytest.raises(
        CheckpointError, match=r"--encode scan: this modality needs no encoder; those that do are .*notes"
    ):
        on(trained, "data", scan="x")
    with pytest.raises(CheckpointError, match="--encode notes: this modality needs no encoder; none of the data does"):
        on(trained, "vectors", notes="x")


def test_differences_of_schemas_say_what_to_do(trained: tuple[Path, Path]) -> None:
    folder, _ = trained
    raw, vectors = (open_manifest(str(folder / name)).schema for name in ("data", "vectors"))
    assert schema_difference(vectors, vectors) is None
    found = schema_difference(vectors, raw)
    assert found is not None and found.startswith(
        "modality notes is text here, and the model was trained on vectors that"
    )
    found = schema_difference(raw, vectors)
    assert found is not None and "was embedded here, by encoder" in found and "reads the text itself" in found
    # One vector or several tokens: what a model makes of them is not the same.
    spec = replace(vectors.modalities[1], tokens=4)
    other = replace(vectors, modalities=(vectors.modalities[0], spec, *vectors.modalities[2:]))
    assert schema_difference(vectors, other) == "modalities notes: tokens is 4, the model was trained with 0"
