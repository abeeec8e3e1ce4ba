"""Checkpoints of earlier versions: they answer as they did, or a sentence says what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_shards import DatasetSchema, open_manifest, pack
from tests.trainer.jobs.test_train import job
from tests.trainer.tiny import SCHEMA, Tiny, TinyOptions, config
from trainer.checkpoints.checkpoint import Checkpoint
from trainer.checkpoints.description import outdated, schema_difference
from trainer.checkpoints.evaluation_recipe import evaluation_config
from trainer.checkpoints.find import committed_paths, open_checkpoint
from trainer.checkpoints.listing import list_checkpoints
from trainer.checkpoints.pieces import write_digested_json
from trainer.config.run_config import RunConfig
from trainer.config.sections import ModelConfig
from trainer.inference.export import checkpoint_model, export_model
from trainer.inference.exported import load_model
from trainer.models.mope.host.backbone import host_architecture, load_host

WAVEFORMS = (
    r"waveform tokens \(encoders.waveform_2\) were stretches of the declared length.*: train again, or use the ver"
)


def rewritten(checkpoint: Checkpoint, change: Callable[[dict[str, Any]], None]) -> Checkpoint:
    """The checkpoint with another description, committed again."""
    meta = json.loads(json.dumps(checkpoint.meta))
    change(meta)
    checkpoint.fs.rm_file(f"{checkpoint.path}/checkpoint.json")
    digest = write_digested_json(checkpoint.fs, f"{checkpoint.path}/checkpoint.json", meta)
    checkpoint.fs.pipe_file(f"{checkpoint.path}/COMMIT", digest.encode())
    return open_checkpoint(checkpoint.url)


def packed_as(folder: Path, kinds: set[str], note: int = 24, suffix: str = "") -> str:
    """The tiny data set with modalities of these kinds; texts may be `note` bytes long and end in `suffix`."""
    specs = [m for m in SCHEMA.modalities if m.kind in kinds]
    specs = [replace(m, max_length=note) if m.kind == "text" else m for m in specs]

    class Some(Tiny):
        schema = DatasetSchema("some", tuple(specs), SCHEMA.tasks)

        def read(self, unit: Any, notes: Any) -> Any:
            for record in super().read(unit, notes):
                record.values = {name: v for name, v in record.values.items() if name in self.schema.modality_names}
                if "note" in record.values:
                    record.values["note"] += suffix  # type: ignore[operator]
                yield record

    pack(Some(TinyOptions()), str(folder), chunk_records=6)
    return str(folder)


def test_waveforms_of_an_earlier_version_are_refused_wherever_weights_are_used(tmp_path: Path) -> None:
    data = packed_as(tmp_path / "data", {"waveform", "vector"})
    run = config(data, tmp_path)
    job(1, run, stop_at=2)
    checkpoint = open_checkpoint(run.run_dir)
    export_model(checkpoint.url, str(tmp_path / "export"))

    def forget(meta: dict[str, Any]) -> None:
        for name in [name for name in meta["parameters"] if ".length." in name]:
            del meta["parameters"][name]

    old = rewritten(checkpoint, forget)
    assert len(checkpoint.meta["parameters"]) - len(old.meta["parameters"]) == 2
    with pytest.raises(ValueError, match=WAVEFORMS):
        checkpoint_model(old)
    with pytest.raises(ValueError, match=WAVEFORMS):
        export_model(old.url, str(tmp_path / "again"))
    with pytest.raises(ValueError, match=f"mope.host: .*{WAVEFORMS}"):
        host_architecture(old.url, ModelConfig())
    with pytest.raises(ValueError, match=f"mope.host: .*{WAVEFORMS}"):
        load_host(old.url, open_manifest(data).schema)
    with pytest.raises(AssertionError, match=WAVEFORMS):
        job(1, evaluation_config(old))
    with pytest.raises(AssertionError, match=WAVEFORMS):
        job(1, run)  # which would go on with it
    assert [(row.step, row.problem) for row in list_checkpoints(run.run_dir)] == [(old.step, None)]
    load_model(str(tmp_path / "export"))


def test_only_waveforms_without_a_length_are_outdated() -> None:
    assert outdated({"encoders.waveform_2.position_TD", "encoders.waveform_2.length.weight"}) is None
    assert outdated({"encoders.image_1x4x4.position_TD", "encoders.text.position.weight"}) is None
    known = {"backbone.encoders.waveform_1.position_TD", "backbone.encoders.waveform_2.length.weight"}
    assert "(backbone.encoders.waveform_1)" in (outdated(known) or "")


def test_a_checkpoint_keeps_its_positions_and_meets_longer_texts(tmp_path: Path) -> None:
    data = packed_as(tmp_path / "data", {"text", "vector"}, note=2000)
    run = config(data, tmp_path)
    job(1, run)
    checkpoint = open_checkpoint(run.run_dir)
    # "high text" has 9 bytes, in groups of 4.
    assert checkpoint.meta["config"]["model"]["text"]["positions"] == 3
    assert checkpoint.meta["parameters"]["encoders.text.position.weight"] == [3, 16]
    longer = packed_as(tmp_path / "longer", {"text", "vector"}, note=3000, suffix=" and more" * 40)
    metrics = job(1, evaluation_config(checkpoint, longer))["metrics"]
    assert metrics["test/records"] == 8 and 0 < metrics["test/loss"] < 10


def test_texts_of_an_earlier_version_keep_their_declared_positions(tmp_path: Path) -> None:
    data = packed_as(tmp_path / "data", {"text", "vector"})
    run = config(data, tmp_path, model__text__positions=6)  # what 24 bytes are, as all tables were
    expected = job(1, run)["metrics"]["test/loss"]
    stopped = config(data, tmp_path / "stopped", model__text__positions=6)
    job(1, stopped, stop_at=3)

    def forget(meta: dict[str, Any]) -> None:
        del meta["config"]["model"]["text"]["positions"]

    old = rewritten(open_checkpoint(run.run_dir), forget)
    assert job(1, evaluation_config(old))["metrics"]["test/loss"] == expected
    checkpoint_model(old)
    assert host_architecture(old.url, ModelConfig()).text.positions == 6
    # A run that goes on is told the number.
    rewritten(open_checkpoint(stopped.run_dir), forget)
    stopped.model.text.positions = None
    with pytest.raises(
        AssertionError,
        match=r"text.position.weight is \(6, 16\) .* and \(3, 16\) in the model; set model.text.positions=6",
    ):
        job(1, stopped)
    stopped.model.text.positions = 6
    assert job(1, stopped)["metrics"]["test/loss"] == expected


@pytest.mark.long
def test_pictures_of_earlier_runs_stay_patches_and_new_ones_are_read_by_convolutions(tmp_path: Path) -> None:
    data, recipe = packed_as(tmp_path / "data", {"image", "vector"}), "model__image__network"
    patches = config(data, tmp_path / "patches", **{recipe: "patches"})
    expected = job(1, patches)["metrics"]["test/loss"]
    stages = {name for name in shapes(config(data, tmp_path)) if ".stages." in name}
    assert stages and not any(".stages." in name for name in shapes(patches))

    def forget(meta: dict[str, Any]) -> None:
        del meta["config"]["model"]["image"]["network"]

    def leave(meta: dict[str, Any]) -> None:
        assert meta["config"]["model"]["image"]["network"] == "patches"

    for name, change in (("forgotten", forget), ("recorded", leave)):
        stopped = config(data, tmp_path / name, **{recipe: "patches"})
        job(1, stopped, stop_at=3)
        rewritten(open_checkpoint(stopped.run_dir), change)
        assert job(1, config(data, tmp_path / name))["metrics"]["test/loss"] == expected
        checkpoint = open_checkpoint(stopped.run_dir)
        assert checkpoint.meta["config"]["model"]["image"]["network"] == "patches"
    old = rewritten(open_checkpoint(patches.run_dir), forget)
    assert job(1, evaluation_config(old))["metrics"]["test/loss"] == expected
    checkpoint_model(old)
    # A new run is another one, and goes on as it began.
    new = config(data, tmp_path / "new")
    job(1, new, stop_at=3)
    assert open_checkpoint(new.run_dir).meta["config"]["model"]["image"]["network"] == "convolutions"
    assert stages <= set(open_checkpoint(new.run_dir).meta["parameters"])
    assert job(1, new)["metrics"]["test/loss"] == job(1, config(data, tmp_path))["metrics"]["test/loss"] != expected


def shapes(run: RunConfig) -> dict[str, Any]:
    """Parameters of a new run's first checkpoint."""
    if not committed_paths(run.run_dir):
        job(1, run)
    shapes: dict[str, Any] = open_checkpoint(run.run_dir).meta["parameters"]
    return shapes


def test_the_most_that_may_be_packed_is_no_difference_between_data_sets() -> None:
    specs = [replace(m, max_length=(m.max_length or 0) + 1) if m.max_length else m for m in SCHEMA.modalities]
    assert schema_difference(SCHEMA, DatasetSchema("other", tuple(specs), SCHEMA.tasks)) is None
    specs[0] = replace(specs[0], horizon=11.0)
    assert "horizon is 11.0" in (schema_difference(SCHEMA, DatasetSchema("other", tuple(specs), SCHEMA.tasks)) or "")
