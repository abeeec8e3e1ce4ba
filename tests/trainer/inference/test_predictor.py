"""Predictions without an engine: the numbers of the evaluation, one row a record, and explanations that add up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from data_shards import DatasetSchema, pack
from tests.trainer.jobs.test_train import job
from tests.trainer.tiny import SCHEMA, Reordered, Tiny, TinyOptions, config, packed, predictor_of
from trainer.checkpoints.evaluation_recipe import evaluation_config
from trainer.checkpoints.find import open_checkpoint
from trainer.checkpoints.pieces import CheckpointError
from trainer.inference.answers import answer
from trainer.inference.explain import modality_shares, watched_forward
from trainer.inference.export import checkpoint_model
from trainer.inference.predictor import Predictor, cut_stretches
from trainer.inference.request import Request
from trainer.metrics.prediction_table import read_predictions
from trainer.metrics.temperature import read_temperatures, write_temperatures
from trainer.models.layers.missing import keep_modalities

pytestmark = pytest.mark.together


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A data set and the folder of a run, routed per bin so that units and tokens differ."""
    folder = tmp_path_factory.mktemp("predict")
    data = packed(folder / "data")
    moe = {"model__moe__granularity": "bin", "model__moe__router": "per_modality"}
    job(1, config(data, folder, training__epochs=1, **moe))
    return data, folder / "run"


def request_for(trained: tuple[str, Path], **changes: object) -> Request:
    recipe = evaluation_config(open_checkpoint(str(trained[1])), str(changes.pop("data", trained[0])))
    recipe.training.eval_batch_size = 5
    return Request(**{"config": recipe, **changes})  # type: ignore[arg-type]


def whole(request: Request) -> tuple[Predictor, pa.Table]:
    predictor = predictor_of(request)
    return predictor, pa.concat_tables([predictor(stretch)[0] for stretch in predictor.stretches()])


def test_the_test_part_is_predicted_as_the_run_did(trained: tuple[str, Path]) -> None:
    tasks, logged = read_predictions(trained[1] / "predictions" / "test.parquet")
    _, table = whole(request_for(trained, part="test"))
    assert table["record"].to_pylist() == logged.index_B.tolist()
    for task in tasks:
        name = f"{task.name}.{'value' if task.kind == 'regression' else 'logits'}"
        got = np.array(table[name].to_pylist(), np.float32).reshape(len(table), -1)
        np.testing.assert_allclose(got, logged.logits[task.name], rtol=1e-4, atol=1e-5)


def test_every_record_once_in_order_however_it_is_cut(trained: tuple[str, Path]) -> None:
    predictor, table = whole(request_for(trained))
    assert table["record"].to_pylist() == list(range(48)) and len(set(table["key"].to_pylist())) == 48
    stretches = cut_stretches(predictor.manifest.counts("default", None), samples=7)
    assert len(stretches) == 4 and [one.start for one in stretches[1:]] == [one.stop for one in stretches[:-1]]
    again = pa.concat_tables([predictor(stretch)[0] for stretch in stretches])
    np.testing.assert_allclose(np.array(again["days.value"]), np.array(table["days.value"]), rtol=1e-4, atol=1e-5)
    assert cut_stretches(np.array([0, 0])) == []


def test_shares_are_what_they_say(trained: tuple[str, Path]) -> None:
    predictor, table = whole(request_for(trained, explain=True, part="val"))
    row = table.to_pylist()[0]
    share = {name: value for name, value in row["died.modality_share"].items() if value is not None}
    assert set(row["died.modality_share"]) == set(SCHEMA.modality_names) and sum(share.values()) == pytest.approx(1)
    assert np.shape(row["expert_share"]) == (2, 4) and np.sum(row["expert_share"], 1) == pytest.approx([1, 1])
    # By hand: each modality of the one record hidden in turn.
    order = predictor._order.take(0, 1)
    records, numbers, _ = predictor._reader.read(*order)
    batch, model = predictor._collate(records, numbers), predictor.model
    task = SCHEMA.task("died")
    with torch.no_grad():
        before = answer(task, model(batch).logits["died"])
        change = {}
        for name in share:
            keep = torch.ones_like(batch.present_BM)
            keep[0, SCHEMA.numbers[name]] = False
            change[name] = float((answer(task, model(keep_modalities(batch, keep)).logits["died"]) - before).abs())
    total = sum(change.values())
    assert share == pytest.approx({name: value / total for name, value in change.items()}, rel=1e-3)


def test_expert_shares_agree_with_the_routing_counts(trained: tuple[str, Path]) -> None:
    predictor = predictor_of(request_for(trained))
    records, numbers, _ = predictor._reader.read(*predictor._order.take(0, 8))
    batch = predictor._collate(records, numbers)
    with torch.no_grad():
        output, share_BLE = watched_forward(predictor.model, batch)
        assert torch.equal(output.pooled_BX, predictor.model(batch).pooled_BX)
        tokens_B = predictor.model.embed(batch)[1].sample_N.bincount()
    for layer, stats in enumerate(output.routing):
        torch.testing.assert_close((share_BLE[:, layer] * tokens_B[:, None]).sum(0), stats.gate_ME.sum(0))
    shares = modality_shares(predictor.model, batch, predictor.tasks, output)
    assert all((value[~batch.present_BM] == 0).all() for value in shares.values())


def test_no_labels_are_needed_and_other_modalities_refused(trained: tuple[str, Path], tmp_path: Path) -> None:
    class Unlabelled(Tiny):
        schema = DatasetSchema("tiny", SCHEMA.modalities, ())

        def read(self, unit, notes):  # type: ignore[no-untyped-def]
            for record in super().read(unit, notes):
                record.targets = {}
                yield record

    pack(Unlabelled(TinyOptions()), str(tmp_path / "plain"), chunk_records=6)
    _, table = whole(request_for(trained, data=tmp_path / "plain"))
    assert table["died.target"].null_count == 48 and table["died.prediction"].null_count == 0

    class Fewer(Unlabelled):
        schema = DatasetSchema("tiny", SCHEMA.modalities[1:], ())

        def read(self, unit, notes):  # type: ignore[no-untyped-def]
            for record in super().read(unit, notes):
                record.values.pop("lab", None)
                if record.values:
                    yield record

    pack(Fewer(TinyOptions()), str(tmp_path / "fewer"), chunk_records=6)
    with pytest.raises(CheckpointError, match="its modalities are vital"):
        predictor_of(request_for(trained, data=tmp_path / "fewer"))


def test_another_order_of_modalities_channels_and_tasks_is_the_same_data(
    trained: tuple[str, Path], tmp_path: Path
) -> None:
    pack(Reordered(TinyOptions()), str(tmp_path / "other"), chunk_records=6)
    own, other = (whole(request_for(trained, data=data))[1] for data in (trained[0], tmp_path / "other"))
    assert own.column_names == other.column_names
    assert all(own[name].equals(other[name]) for name in own.column_names), "to the last digit, labels too"
    explained = [
        whole(request_for(trained, data=data, explain=True, part="test"))[1].to_pylist()
        for data in (trained[0], tmp_path / "other")
    ]
    assert explained[0] == explained[1] and "died.modality_share" in explained[0][0]
    checkpoint = open_checkpoint(str(trained[1]))
    results = [job(1, evaluation_config(checkpoint, str(data))) for data in (trained[0], tmp_path / "other")]
    assert results[0]["metrics"] == results[1]["metrics"] and results[0]["samples"] == 8


def test_other_channels_are_refused_by_name(trained: tuple[str, Path], tmp_path: Path) -> None:
    class Renamed(Tiny):
        schema = replace(
            SCHEMA, modalities=(replace(SCHEMA.modalities[0], channels=("a", "b", "d")), *SCHEMA.modalities[1:])
        )

    pack(Renamed(TinyOptions()), str(tmp_path / "renamed"), chunk_records=6)
    said = r"modalities lab: channels is \('a', 'b', 'd'\), the model was trained with \('a', 'b', 'c'\)"
    with pytest.raises(CheckpointError, match=said):
        predictor_of(request_for(trained, data=tmp_path / "renamed"))


def test_temperatures_are_kept_and_used(trained: tuple[str, Path]) -> None:
    checkpoint = open_checkpoint(str(trained[1]))
    with pytest.raises(CheckpointError, match=r"evaluate .* --temperature"):
        read_temperatures(open_checkpoint(str(trained[1])))
    write_temperatures(checkpoint, {"died": 2.0})
    assert read_temperatures(open_checkpoint(str(trained[1]))) == {"died": 2.0}
    plain, cooled = (whole(request_for(trained, temperatures=t))[1] for t in ({}, {"died": 2.0}))
    np.testing.assert_allclose(np.array(cooled["died.logits"]) * 2, np.array(plain["died.logits"]), rtol=1e-5)
    assert cooled["kind.logits"] == plain["kind.logits"]
    (trained[1] / "temperature.json").write_text('{"step": 1, "temperatures": {}}')
    with pytest.raises(CheckpointError, match="temperatures of step 1, not"):
        read_temperatures(open_checkpoint(str(trained[1])))


def test_the_model_of_a_checkpoint_needs_no_engine(trained: tuple[str, Path]) -> None:
    model = checkpoint_model(open_checkpoint(str(trained[1])))
    assert not model.training and all(torch.isfinite(p).all() for p in model.parameters())
