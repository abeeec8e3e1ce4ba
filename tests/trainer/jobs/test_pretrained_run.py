"""Runs with pretrained encoders inside: frozen, with LoRA, trained; stopped, moved, evaluated, exported."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_shards import DatasetSchema, ModalitySpec, Objects, Record, TaskSpec, open_manifest, pack
from data_shards.sources.base import Source, SourceOptions
from launch.report.run_page import _backbone
from tests.trainer.jobs.test_train import FixedContext, job, losses, weights
from tests.trainer.pretrained import RATE, SIDE, WORDS, save_encoder
from tests.trainer.tiny import config, predictor_of
from trainer.checkpoints.evaluation_recipe import evaluation_config
from trainer.checkpoints.find import open_checkpoint
from trainer.config.run_config import RunConfig
from trainer.inference.export import export_model
from trainer.inference.exported import load_model
from trainer.inference.request import Request
from trainer.jobs.job import run

WINDOW = {"time_unit": "hours", "horizon": 10.0}
SCHEMA = DatasetSchema(
    "ward",
    (
        ModalitySpec("memo", "text", timed=True, max_length=80, **WINDOW),  # type: ignore[arg-type]
        ModalitySpec("notes", "text", timed=True, max_length=80, **WINDOW),  # type: ignore[arg-type]
        ModalitySpec("cxr", "image", shape=(3, SIDE, SIDE), dtype="uint8"),
        ModalitySpec("sound", "waveform", shape=(1,), rate=RATE, max_length=4000),
        ModalitySpec("age", "vector", shape=(2,)),
    ),
    (TaskSpec("died", "binary"),),
)


class Ward(Source):
    """Records whose words, pictures and sounds tell the label; some modalities are missing."""

    Options = SourceOptions
    schema = SCHEMA

    def units(self) -> Sequence[Any]:
        return range(24)

    def read(self, unit: Any, notes: Counter[str]) -> Iterator[Record]:
        rng = np.random.default_rng([5, unit])
        z = rng.normal()

        def texts() -> Objects:
            times = np.sort(rng.uniform(0, 10, int(rng.integers(0, 4)))).astype(np.float32)
            words = WORDS[5:9] if z > 0 else WORDS[8:]
            return Objects(times, [" ".join(rng.choice(words, int(rng.integers(1, 9)))) for _ in times])

        values: dict[str, Any] = {
            "memo": texts(),
            "notes": texts(),
            "cxr": np.clip(128 + 60 * z + 10 * rng.normal(size=(3, SIDE, SIDE)), 0, 255).astype(np.uint8),
            "sound": (rng.normal(size=(int(rng.integers(200, 1500)), 1)) * 0.1).astype(np.float32),
            "age": (rng.normal(size=2) + z).astype(np.float32),
        }
        kept = rng.random(len(values)) > 0.2
        kept[-1] = True
        present = {name: value for (name, value), keep in zip(values.items(), kept, strict=True) if keep}
        part = "test" if unit % 6 == 5 else "val" if unit % 6 == 4 else "train"
        yield Record(f"r{unit:02d}", present, {"died": float(z > 0)}, {"default": part})


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pretrained")
    pack(Ward(SourceOptions()), str(folder / "data"), chunk_records=4)
    for name, family in (("notes", "bert"), ("cxr", "vit"), ("sound", "wav2vec2")):
        save_encoder(folder / name, family)
    return {"data": folder / "data", **{name: folder / name for name in ("notes", "cxr", "sound")}}


def encoders(places: dict[str, Path], **more: dict[str, Any]) -> dict[str, Any]:
    """One frozen, one with LoRA, one trained with a rate of its own."""
    made: dict[str, dict[str, Any]] = {
        "notes": {"train": "none", "tokens": 2},
        "cxr": {"train": "lora", "tokens": 4, "rank": 2, "lr": 0.02},
        "sound": {"train": "all", "lr": 0.001},
    }
    return {name: {"source": str(places[name]), **made[name], **more.get(name, {})} for name in made}


def recipe(places: dict[str, Path], storage: Path, more: dict[str, Any] | None = None, **changes: Any) -> RunConfig:
    own = encoders(places, **(more or {}))
    return config(str(places["data"]), storage, model__encoders=own, **changes)


EP = {"parallel__workers": 2, "parallel__expert_parallel": 2}


@pytest.mark.long
def test_a_stopped_run_continues_to_the_same_bits_and_is_evaluated_predicted_and_exported(
    places: dict[str, Path], tmp_path: Path
) -> None:
    whole = job(2, recipe(places, tmp_path / "whole", **EP))
    broken = recipe(places, tmp_path / "broken", **EP)
    assert job(2, broken, stop_at=3)["step"] == 3
    last = job(2, broken)
    assert last["metrics"] == whole["metrics"] and losses(tmp_path / "broken") == losses(tmp_path / "whole")
    said = dict(_backbone(whole["checkpoint"]))  # on the run's page
    how = {"notes": "nothing", "cxr": "LoRA of rank 2", "sound": "all weights"}
    assert all(said[f"encoder of {name}"].endswith(f"trained {what}") for name, what in how.items())
    expected, got = weights(tmp_path / "whole"), weights(tmp_path / "broken")
    assert expected.keys() == got.keys() and all(np.array_equal(expected[name], got[name]) for name in expected)
    # What is held: of the frozen one nothing, of LoRA its factors, of the trained one everything.
    names = [name.removesuffix(" master") for name in expected if name.endswith(" master")]
    inside = {group: [n for n in names if n.startswith(f"encoders.own_{group}.")] for group in ("cxr", "sound")}
    frozen = [name for name in names if name.startswith("encoders.own_notes.") and ".pretrained." in name]
    assert frozen == [] and any(name.startswith("encoders.own_notes.encoder.project.") for name in names)
    changed = [name for name in inside["cxr"] if ".pretrained." in name]
    assert len(changed) == 8 and all(".lora_" in name for name in changed), "two layers, two places, two factors"
    assert "encoders.own_sound.pretrained.model.encoder.layers.0.attention.q_proj.weight" in inside["sound"]
    about = open_checkpoint(str(tmp_path / "whole" / "run")).meta["encoders"]
    assert {name: one["family"] for name, one in about.items()} == {"notes": "bert", "cxr": "vit", "sound": "wav2vec2"}
    # One rank, another process: the same numbers.
    result = open_checkpoint(whole["checkpoint"])
    again = run(evaluation_config(result), FixedContext(0, 1))
    assert again["metrics"]["test/loss"] == pytest.approx(whole["metrics"]["test/loss"], rel=1e-5)
    export_model(whole["checkpoint"], str(tmp_path / "out"))
    model = load_model(str(tmp_path / "out"))
    predictor = predictor_of(Request(evaluation_config(result), "test"))
    table = predictor(predictor.stretches()[0])[0]
    state = predictor.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert table.num_rows == 4 and np.isfinite(table["died.logits"].to_numpy()).all()


@pytest.mark.long
def test_world_and_degree_change_nothing(places: dict[str, Path], tmp_path: Path) -> None:
    steady: dict[str, Any] = {"model__dropout": 0.0, "model__moe__noise": 0.0}
    still = {"sound": {"train": "lora"}}  # what is trained as a whole has dropout
    job(2, recipe(places, tmp_path / "two", still, **steady, **EP, parallel__zero_stage=2))
    job(1, recipe(places, tmp_path / "one", still, **steady))
    assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "two"), rel=1e-4)


def test_a_run_does_not_go_on_with_another_encoder(places: dict[str, Path], tmp_path: Path) -> None:
    begun = recipe(places, tmp_path)
    result = job(1, begun, stop_at=1)
    other = save_encoder(tmp_path / "other", "bert", seed=2)
    said = r"was trained with the encoder .*/notes of digest [0-9a-f]{12}, and .*/other has [0-9a-f]{12}: give the one"
    with pytest.raises(AssertionError, match=said):
        job(1, recipe(places, tmp_path, {"notes": {"source": str(other)}}))
    asked = evaluation_config(open_checkpoint(result["checkpoint"]))
    asked.model.encoders["notes"].source = str(other)
    with pytest.raises(ValueError, match=said):
        run(asked, FixedContext(0, 1))
    with pytest.raises(AssertionError, match=r"with model.encoders.notes.tokens=2, and this recipe has pooled"):
        job(1, recipe(places, tmp_path, {"notes": {"tokens": "pooled"}}))


@pytest.mark.long
def test_kept_features_change_no_bit_also_after_a_stop(places: dict[str, Path], tmp_path: Path) -> None:
    kept = {"notes": {"cache": True}, "sound": {"train": "none", "lr": None, "cache": True}}
    whole = recipe(places, tmp_path / "whole", kept, training__epochs=3)
    job(1, whole)
    job(1, recipe(places, tmp_path / "broken", kept, training__epochs=3), stop_at=4)
    job(1, recipe(places, tmp_path / "broken", kept, training__epochs=3))
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    plain = {"sound": {"train": "none", "lr": None}}
    job(1, recipe(places, tmp_path / "plain", plain, training__epochs=3))
    assert losses(tmp_path / "plain") == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)


@pytest.mark.long
def test_features_as_data_and_the_encoder_inside_give_the_same_losses(places: dict[str, Path], tmp_path: Path) -> None:
    """What `launch embed` writes, written here by hand: the picture's two vectors in the place of the picture."""
    from tests.trainer.pretrained import group_of
    from trainer.config.encoders import PretrainedConfig
    from trainer.models.pretrained.load import load_encoder

    frozen = PretrainedConfig(source=str(places["cxr"]), tokens=2)
    encoder = load_encoder(SCHEMA.modalities[2], frozen).eval()

    class Embedded(Ward):
        schema = DatasetSchema(
            "ward",
            tuple(ModalitySpec("cxr", "vector", shape=(64,)) if m.name == "cxr" else m for m in SCHEMA.modalities),
            SCHEMA.tasks,
        )

        def read(self, unit: Any, notes: Counter[str]) -> Iterator[Record]:
            for record in super().read(unit, notes):
                if "cxr" in record.values:
                    group = group_of("image", [torch.from_numpy(record.values["cxr"])])
                    record.values["cxr"] = encoder(group, encoder.look(group))[0].flatten().numpy()
                yield record

    pack(Embedded(SourceOptions()), str(tmp_path / "data"), chunk_records=4)
    assert open_manifest(str(tmp_path / "data")).schema.modalities[2].kind == "vector"
    own = {"cxr": {"source": str(places["cxr"]), "tokens": 2}}
    steps: dict[str, Any] = {"model__encoders": own, "training__epochs": 6}
    job(1, config(str(places["data"]), tmp_path / "inside", **steps))
    job(1, config(str(tmp_path / "data"), tmp_path / "embedded", **steps))
    expected = losses(tmp_path / "inside")
    assert len(expected) == 12 and losses(tmp_path / "embedded") == pytest.approx(expected, rel=1e-5)
    assert json.loads((tmp_path / "inside" / "run" / "metrics.jsonl").read_text().splitlines()[0])
