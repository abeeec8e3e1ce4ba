"""Survival through whole runs of both job types: what they write, draw and predict, and what they refuse."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from matplotlib.figure import Figure

from data_shards import DatasetSchema, Record, TaskSpec, create_source, open_manifest, pack, summary
from data_shards.sources.planted import SCALE, SHAPE
from data_shards.sources.synthetic import Synthetic
from launch.datasets.tables import label_text
from tests.trainer.jobs.test_train import job
from tests.trainer.tiny import SCHEMA, Tiny, TinyOptions, config, predictor_of
from trainer.checkpoints.evaluation_recipe import evaluation_config
from trainer.checkpoints.find import open_checkpoint
from trainer.config.run_config import RunConfig
from trainer.figures.survival import curves_figure, survival_calibration_figure
from trainer.inference.request import Request
from trainer.metrics.censored import integrated_brier
from trainer.metrics.main_metric import choosing_mode, primary_metric
from trainer.metrics.prediction_table import read_predictions
from trainer.metrics.scores import task_metrics
from trainer.metrics.survival import median_time, risk, survival_at_edges
from trainer.metrics.survival_scores import followed
from trainer.models.layers.heads import target_scale

pytestmark = pytest.mark.together
LIFE = TaskSpec("life", "survival", edges=(1.0, 2.0, 4.0, 8.0), unit="days")
NAMES = {"concordance", "concordance_ipcw", "integrated_brier", "ece"}


class Lives(Tiny):
    """Tiny records with a lifetime that the hidden number shortens; every ninth has none, a third is censored."""

    schema = DatasetSchema("lives", SCHEMA.modalities, (*SCHEMA.tasks, LIFE))
    always_censored = False

    def read(self, unit: Any, notes: Counter[str]) -> Iterator[Record]:
        for record in super().read(unit, notes):
            rng = np.random.default_rng(unit + 1000)
            days = float(record.targets["days"] or 5.0)  # type: ignore[arg-type]
            life, seen = 10 * np.exp(-0.4 * days) * rng.exponential(), float(rng.random() > 1 / 3)
            record.targets["life"] = None if unit % 9 == 0 else np.array([life, seen * (not self.always_censored)])
            yield record


class Censored(Lives):
    always_censored = True


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, dict[str, Any]]:
    """A data set, and a run of all of its tasks on two ranks."""
    folder = tmp_path_factory.mktemp("lives")
    pack(Lives(TinyOptions(records=90)), str(folder / "data"), chunk_records=6)
    chosen = {"training__early_stopping": {"metric": "val/life/concordance"}, "parallel__workers": 2}
    return str(folder / "data"), folder / "run", job(2, config(str(folder / "data"), folder, **chosen))


def labels(table: pa.Table) -> torch.Tensor:
    rows = [[np.nan if value is None else value for value in row] for row in table["life.target"].to_pylist()]
    return torch.tensor(rows)


def test_a_run_measures_and_draws_what_it_predicted(lives: tuple[str, Path, dict[str, Any]]) -> None:
    _, run_dir, result = lives
    own = {name.rsplit("/", 1)[1]: value for name, value in result["metrics"].items() if "/life/" in name}
    assert own.keys() == NAMES
    tasks, kept = read_predictions(run_dir / "predictions" / "test.parquet")
    assert tasks[-1] == LIFE
    again = task_metrics(LIFE, kept.logits["life"], kept.targets["life"])
    assert own == pytest.approx(again, abs=1e-9)
    drawn = {path.name for path in (run_dir / "figures").glob("*life*")}
    assert drawn == {"survival_life.png", "calibration_life.png"}


def test_concordance_stands_for_a_run_and_each_measure_has_its_direction() -> None:
    assert primary_metric("test", dict.fromkeys([f"test/{name}" for name in NAMES], 0.0)) == "test/concordance"
    modes = {name: choosing_mode(f"val/{name}", None, "") for name in NAMES}
    assert modes == {"concordance": "max", "concordance_ipcw": "max", "integrated_brier": "min", "ece": "min"}


def test_two_ranks_evaluate_what_one_does(lives: tuple[str, Path, dict[str, Any]]) -> None:
    again = job(1, evaluation_config(open_checkpoint(str(lives[1]))))["metrics"]
    wanted = {name: value for name, value in lives[2]["metrics"].items() if "/life/" in name or name.endswith("loss")}
    assert {name: again[name] for name in wanted} == pytest.approx(wanted, rel=1e-4)


def predicted(run_dir: str, data: str, **changes: Any) -> pa.Table:
    recipe = evaluation_config(open_checkpoint(run_dir), data)
    predictor = predictor_of(Request(**{"config": recipe, **changes}))
    return pa.concat_tables([predictor(stretch)[0] for stretch in predictor.stretches()])


def test_predictions_say_curve_median_and_risk(lives: tuple[str, Path, dict[str, Any]]) -> None:
    data, run_dir, _ = lives
    table = predicted(str(run_dir), data, explain=True)
    logits = torch.tensor(table["life.logits"].to_pylist())
    assert logits.shape == (90, 4) and table["life.survival"].type == pa.list_(pa.float32(), 4)
    torch.testing.assert_close(torch.tensor(table["life.survival"].to_pylist()), survival_at_edges(logits).float())
    assert table["life.risk"].to_pylist() == pytest.approx(risk(LIFE, logits).tolist(), rel=1e-5)
    median = [np.nan if value is None else value for value in table["life.median"].to_pylist()]
    assert median == pytest.approx(median_time(LIFE, logits).tolist(), rel=1e-5, nan_ok=True)
    assert table["life.target"].to_pylist()[0] == [None, None] and table["life.target"].to_pylist()[1][1] in (0, 1)
    for shares in table["life.modality_share"].to_pylist():
        assert sum(share for share in shares.values() if share is not None) == pytest.approx(1, abs=1e-4)


def test_prompt_experts_on_a_host_learn_survival_too(lives: tuple[str, Path, dict[str, Any]], tmp_path: Path) -> None:
    data, run_dir, _ = lives
    mope = {"host": str(run_dir), "gate": True, "k": 3, "static_length": 1, "dynamic_length": 2, "context_dim": 8}
    tree = config(data, tmp_path).model_dump(mode="json") | {"job": "mope", "mope": {**mope, "mapper_hidden": 8}}
    tree["training"] |= {"tasks": ["life"], "epochs": 2, "early_stopping": {"metric": "val/integrated_brier"}}
    result = job(1, RunConfig.model_validate(tree))
    assert {name.removeprefix("test/") for name in result["metrics"]} == NAMES | {"loss", "records"}
    table = predicted(str(tmp_path / "run"), data, part="test")
    logits = torch.tensor(table["life.logits"].to_pylist())
    again = task_metrics(LIFE, logits, labels(table))
    assert {name: result["metrics"][f"test/{name}"] for name in NAMES} == pytest.approx(again, abs=1e-5)


def test_a_part_without_anything_seen_is_refused_in_training_and_told_by_inspect(tmp_path: Path) -> None:
    pack(Censored(TinyOptions(records=24)), str(tmp_path / "data"), chunk_records=6)
    with pytest.raises(
        Exception, match=r"none of the 13 records of part train of .* that have a time of life was seen"
    ):
        job(1, config(str(tmp_path / "data"), tmp_path))
    facts = summary(open_manifest(str(tmp_path / "data")))
    assert "split default: in part val life was seen for no record, all are censored" in facts["warnings"]


def test_inspect_counts_seen_and_censored_by_part(lives: tuple[str, Path, dict[str, Any]]) -> None:
    facts = summary(open_manifest(lives[0]))
    rows = {part: own["tasks"]["life"] for part, own in facts["splits"]["default"].items()}
    assert {part: row["labelled"] for part, row in rows.items()} == {"train": 50, "val": 15, "test": 15}
    records = list(Lives(TinyOptions(records=90)).records())
    for part, row in rows.items():
        life = [r.targets["life"] for r in records if r.splits["default"] == part and r.targets["life"] is not None]
        seen = [time for time, happened in life if happened]
        assert row["counts"] == {"seen": len(seen), "censored": len(life) - len(seen)}
        assert label_text(row).startswith(f"seen {len(seen)}, censored {len(life) - len(seen)}")
        assert row["times"]["seen"]["p50"] == pytest.approx(np.median(seen), rel=1e-6)
        assert row["beyond_last_edge"] == sum(time > 8 for time, _ in life)


def test_figures_show_thirds_and_times() -> None:
    rng = np.random.default_rng(0)
    logits = torch.tensor(rng.normal(size=(90, 4)))
    target = torch.tensor(np.stack([rng.exponential(4, 90), rng.integers(0, 2, 90)], axis=1))
    own = followed(LIFE, logits, target)
    figure: Figure = curves_figure(LIFE, own)
    axes, longer = figure.axes[0], int((own.time_B > 8).sum())
    assert len(axes.lines) == 6 and 0 < longer < 90
    assert axes.get_xlabel() == f"time [days]; {longer} of 90 were followed beyond the last edge"
    assert axes.get_xlim()[1] == pytest.approx(1.02 * 8)
    assert len(survival_calibration_figure(LIFE, own).axes[0].lines) == 1 + len(own.calibrations()) == 4


def best_curves(source: Synthetic, records: list[Record], edge_T: np.ndarray) -> np.ndarray:
    """(B, T) chance to live beyond each time, given all that a record shows: over classes and over the score."""
    node, weight = np.polynomial.hermite_e.hermegauss(40)
    rows = []
    for record in records:
        seen = source.evidence(record)
        a = 1 + seen.energy
        score_KN = (seen.cross_K / a)[:, None] + node / np.sqrt(a)
        live_KNT = np.exp(-((edge_T / SCALE) ** SHAPE) * np.exp(score_KN)[..., None])
        rows.append(np.einsum("k,n,knt->t", seen.class_posterior(), weight / weight.sum(), live_KNT))
    return np.array(rows)


@pytest.mark.long
def test_the_best_concordance_of_known_hazards_is_reached(tmp_path: Path) -> None:
    """At least .95 of what the best ranking has above chance, half of what the best curves gain over a life table."""
    options = {"records": 2500, "intervals": 12, "modalities": "vector:1", "noise": 0.7, "missing": 0.0, "classes": 2}
    source = create_source("synthetic", options)
    assert isinstance(source, Synthetic)
    pack(source, str(tmp_path / "data"))
    manifest = open_manifest(str(tmp_path / "data"))
    best = manifest.source["best_score"]["lifetime"]["concordance"]
    training = {"training__tasks": ["lifetime"], "training__epochs": 10, "training__batch_size": 64}
    model = {"model__moe": {"experts": 2, "top_k": 1, "hidden": 16}, "model__layers": 1, "optim__lr": 0.003}
    found = job(1, config(str(tmp_path / "data"), tmp_path, **training, **model))["metrics"]
    assert best > 0.65
    assert (found["test/concordance"] - 0.5) / (best - 0.5) >= 0.95, (found, best)
    (task,), kept = read_predictions(tmp_path / "run" / "predictions" / "test.parquet")
    logit_K = target_scale(manifest.statistics["default"], task)[0]
    life_table = task_metrics(task, torch.tensor(logit_K).expand(len(kept), -1), kept.targets["lifetime"])
    own = followed(task, kept.logits["lifetime"], kept.targets["lifetime"])
    tested = [record for record in source.records() if record.splits["default"] == "test"]
    curves = best_curves(source, tested, own.edge_T)
    least = float(integrated_brier(own.time_B, own.seen_B, curves, own.edge_T).mean())
    assert life_table["concordance"] == 0.5 and least < 0.9 * life_table["integrated_brier"]
    assert least < found["test/integrated_brier"] < (least + life_table["integrated_brier"]) / 2
