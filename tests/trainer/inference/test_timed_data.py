"""Data with timed objects, codes and moments: predicted, explained, exported, mixed; other vocabularies are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_shards import DatasetSchema, StepLoader, open_data, open_manifest, pack
from data_shards.records.vocabulary import Vocabulary
from tests.data_shards.inspection.test_objects import SCHEMA, CodeSource, record
from tests.trainer.inference.test_predictor import request_for, whole
from tests.trainer.jobs.test_mixture_run import mixed
from tests.trainer.jobs.test_train import job
from tests.trainer.tiny import config, packed, predictor_of
from trainer.checkpoints.find import open_checkpoint
from trainer.checkpoints.pieces import CheckpointError
from trainer.inference.export import export_model
from trainer.inference.exported import load_model
from trainer.inference.request import choose_data

pytestmark = pytest.mark.together

RECORDS = [record(number) for number in range(40)]
SMALL = {"training__epochs": 1, "model__image__patch": 1}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("timed")
    pack(CodeSource(RECORDS), str(folder / "data"))
    job(1, config(str(folder / "data"), folder, **SMALL))
    return str(folder / "data"), folder / "run"


def given(data: str) -> dict[str, Vocabulary]:
    manifest = open_manifest(data)
    return {name: manifest.vocabulary(name) for name in ("drugs", "history")}


def test_explained_by_object_and_code(trained: tuple[str, Path]) -> None:
    _, table = whole(request_for(trained, explain=True))
    rows = {row["key"]: row for row in table.to_pylist()}
    seven = rows["r07"]["died.objects"]
    assert {(one["modality"], one["object"], one["time"], one["what"]) for one in seven} == {
        *(("notes", n, 10.0 * n, "four") for n in range(3)),
        ("scans", 0, 5.0, None),
        ("ecg", 0, 1.0, None),
        ("ecg", 1, 3.0, None),
        ("gases", 0, 20.0, None),
        ("drugs", 0, 0.0, "aspirin"),
        ("drugs", 1, 2.0, "heparin"),
        ("drugs", 2, 8.0, "aspirin"),
        ("history", 0, None, "stroke"),
    }
    assert sum(one["share"] for one in seven) == pytest.approx(1, abs=1e-4)
    assert "(rare)" in {one["what"] for one in rows["r00"]["died.objects"]}
    assert set(table["objects_not_hidden"].to_pylist()) == {0}


def test_another_order_of_modalities_is_the_same_data(trained: tuple[str, Path], tmp_path: Path) -> None:
    source = CodeSource(RECORDS)
    source.schema = DatasetSchema("objects", SCHEMA.modalities[::-1], SCHEMA.tasks)
    pack(source, str(tmp_path))
    own, other = (whole(request_for(trained, data=data))[1] for data in (trained[0], tmp_path))
    assert all(own[name].equals(other[name]) for name in own.column_names)


def test_another_vocabulary_is_refused_and_the_given_one_is_taken(trained: tuple[str, Path], tmp_path: Path) -> None:
    pack(CodeSource(RECORDS[:9]), str(tmp_path / "own"))
    words = r"modality drugs has another vocabulary \(\w{12}, 4 numbers\) than the model was trained with \(\w{12}, 4"
    with pytest.raises(CheckpointError, match=words):
        predictor_of(request_for(trained, data=tmp_path / "own"))
    source = CodeSource(RECORDS[:9])
    source.vocabularies, source.vocabulary_rules = given(trained[0]), {}
    pack(source, str(tmp_path / "given"))
    few, all_ = (whole(request_for(trained, data=data))[1] for data in (tmp_path / "given", trained[0]))
    np.testing.assert_allclose(
        np.array(few["died.probability"]), np.array(all_["died.probability"])[:9], rtol=1e-4, atol=1e-5
    )


def test_an_export_is_the_same_model(trained: tuple[str, Path], tmp_path: Path) -> None:
    export_model(str(trained[1]), str(tmp_path / "export"))
    predictor = predictor_of(request_for(trained))
    parameters = dict(predictor.model.named_parameters())
    model = load_model(str(tmp_path / "export"))
    loaded = dict(model.named_parameters())
    assert loaded.keys() == parameters.keys()
    assert all(np.array_equal(loaded[name].detach(), value.detach()) for name, value in parameters.items())


def test_a_member_of_a_mixture_is_what_it_is_alone(trained: tuple[str, Path], tmp_path: Path) -> None:
    """Objects, times, codes and their values, by record; other members lie before it and after it."""
    entries = {
        "first": {"url": packed(tmp_path / "tiny", records=12)},
        "own": {"url": trained[0]},
        "last": {"url": packed(tmp_path / "more", records=12)},
    }
    run = mixed(entries, tmp_path)
    data = open_data(run.data)
    own = open_manifest(trained[0])
    assert data.statistics[run.data.split].modalities["own-drugs"] == own.statistics["default"].modalities["drugs"]
    assert data.schema.modalities[data.schema.numbers["own-drugs"]].vocabulary == own.schema.modalities[4].vocabulary
    found: dict[str, list[object]] = {}
    for manifest, section, prefix in ((data, run.data, "own/"), (own, config(trained[0], tmp_path).data, "")):
        steps = list(StepLoader(manifest, section, "train", 64, shuffle=False).steps(0))
        for batch in (batch for step in steps for batch in step.micro_batches):
            names = [name.removeprefix("own-") for name in manifest.schema.modality_names]
            for group in batch.groups.values():
                ends = getattr(group, "offsets", None)
                for p, (m, b) in enumerate(zip(group.modality_P.tolist(), group.sample_P.tolist(), strict=True)):
                    key = batch.keys[b]
                    if key.startswith(prefix) and ("/" in key) == bool(prefix):
                        columns = [
                            value for name, value in vars(group).items() if name.endswith(("_P", "_PF", "_PCHW"))
                        ]
                        rows = [column[p].tolist() for column in columns[2:]]
                        if ends is not None:
                            cut = slice(int(ends[p]), int(ends[p + 1]))
                            rows += [v[cut].tolist() for n, v in vars(group).items() if n.endswith(("_O", "_OC"))]
                        found.setdefault(prefix, []).append(str((key.removeprefix("own/"), names[m], rows)))
    assert len(found[""]) == 200 and sorted(found["own/"]) == sorted(found[""])  # type: ignore[type-var]


def test_a_model_of_a_mixture_predicts_and_explains_the_member(trained: tuple[str, Path], tmp_path: Path) -> None:
    entries = {"own": {"url": trained[0]}, "tiny": {"url": packed(tmp_path / "tiny", records=24)}}
    job(1, mixed(entries, tmp_path, training__epochs=1))
    from trainer.checkpoints.evaluation_recipe import evaluation_config
    from trainer.inference.request import Request

    checkpoint = open_checkpoint(str(tmp_path / "run"))
    chosen, member = choose_data(evaluation_config(checkpoint), checkpoint, trained[0])
    _, table = whole(Request(chosen, member=member, explain=True))
    row = table.to_pylist()[7]
    assert row["key"].endswith("r07") and len(row["own-died.objects"]) == 11
    assert {one["modality"] for one in row["own-died.objects"]} == set(SCHEMA.modality_names)
    assert {one["what"] for one in row["own-died.objects"]} == {"four", None, "aspirin", "heparin", "stroke"}
    assert replace(SCHEMA.tasks[0], name="own-died").name in {name.split(".")[0] for name in table.column_names}
