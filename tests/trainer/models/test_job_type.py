"""A type of job from outside of the project goes through every command; our own types stand in one registry."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pyarrow.parquet
import pytest
import yaml

from launch.plan.cost import CostModel, Layout
from launch.plan.statistics import stated_statistics
from parallel import LocalDispatcher
from tests.launch.commands import ROOT, environment, last_json, logged, python
from tests.trainer.tiny import SCHEMA, config, packed
from trainer.config import job_types
from trainer.config.errors import RecipeError
from trainer.config.recipe import load_recipe
from trainer.config.run_config import RunConfig
from trainer.models.job_type import JobType, job_type
from trainer.worker.devices import find_device

OUTSIDE = ROOT / "tests" / "outside"
STEPS = 8


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the package were installed, in this process."""
    monkeypatch.syspath_prepend(str(OUTSIDE))
    job_types.find_job_type.cache_clear()
    yield
    job_types.find_job_type.cache_clear()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of the type from outside, with data."""
    folder = tmp_path_factory.mktemp("outside")
    packed(folder / "data")
    tree = {
        "job": "presence",
        "presence": {"width": 5},
        "data": {"url": str(folder / "data")},
        "training": {"batch_size": 8, "epochs": 9, "max_steps": STEPS, "storage": str(folder / "runs"), "log_every": 1},
        "optim": {"lr": 0.05, "schedule": "constant", "warmup": 0},
        "tracking": {"mlflow": False},
    }
    (folder / "presence.yaml").write_text(yaml.safe_dump(tree))
    return folder


def command(*words: object) -> dict[str, object]:
    return last_json(python("-m", *map(str, words), env=environment(PYTHONPATH=str(OUTSIDE))))


@pytest.mark.long
def test_it_trains_resumes_evaluates_predicts_and_is_planned(place: Path) -> None:
    recipe, names = place / "presence.yaml", ("train/loss", "train/grad_norm")
    whole = command("trainer", recipe, "name=whole")
    command("trainer", recipe, "name=cut", f"training.max_steps={STEPS // 2}")
    cut = command("trainer", recipe, "name=cut")
    losses = logged(place / "runs" / "whole", *names)
    assert sorted(losses) == list(range(1, STEPS + 1)) and len({loss for loss, _ in losses.values()}) == STEPS
    assert logged(place / "runs" / "cut", *names) == losses, "a run that was cut goes on to the last bit"
    assert cut["metrics"] == whole["metrics"] and "test/died/auroc" in whole["metrics"]

    found = command("launch", "evaluate", place / "runs" / "whole")
    assert found["metrics"] == pytest.approx(whole["metrics"], abs=1e-6)
    table = place / "predictions.parquet"
    done = command("launch", "predict", place / "runs" / "whole", "--out", table)
    assert done["records"] == 48 == pyarrow.parquet.read_table(table).num_rows

    weights, heads = 5 * len(SCHEMA.modalities), sum(task.dim for task in SCHEMA.tasks)
    plan = command("launch", "plan", recipe, "--gpus", 1)
    assert plan["parameters"]["trained"] == weights + 5 + 6 * heads and plan["parameters"]["frozen"] == 0
    assert plan["flops"] == 8 * 6 * (weights + 5 * heads)


def test_its_section_is_checked_like_any_other(place: Path, installed: None) -> None:
    recipe = str(place / "presence.yaml")
    assert load_recipe(recipe, ["presence.width=7"]).presence.width == 7  # type: ignore[attr-defined]
    with pytest.raises(RecipeError, match=r"unknown key presence.with; did you mean presence.width\?"):
        load_recipe(recipe, ["presence.with=7"])
    with pytest.raises(RecipeError, match=r"presence.width=0 is out of range"):
        load_recipe(recipe, ["presence.width=0"])
    with pytest.raises(RecipeError, match="unknown key presence"):
        load_recipe("digits", ["presence.width=7"])
    run = load_recipe(recipe, ["presence.width=9"])
    assert pickle.loads(pickle.dumps(run)) == run  # noqa: S301 (our own bytes): so it travels to other processes
    assert "presence" in job_types.known_job_types()


def test_a_type_that_is_not_installed_is_named(place: Path) -> None:
    with pytest.raises(RecipeError, match="job='presence' is no type of job; there are fusemoe, mope, tower, evaluate"):
        load_recipe(str(place / "presence.yaml"))
    done = python("-m", "trainer", str(place / "presence.yaml"))
    assert done.returncode == 2 and done.stderr.count("\n") == 1


def test_every_type_has_the_name_it_is_registered_under() -> None:
    for name in job_types.JOB_TYPES:
        assert isinstance(job_type(name), JobType) and job_type(name).name == name


def test_a_record_costs_what_the_plan_of_one_worker_says(tmp_path: Path) -> None:
    """The plan of a FuseMoE model has a cost model of its own; both must see the same arithmetic and activations."""
    run = config("nowhere", tmp_path, training__batch_size=1, model__dropout=0)
    statistics, job = stated_statistics(SCHEMA, 0.7), job_type(run.job)
    tasks = list(SCHEMA.task_names)
    network = job.build(run, SCHEMA, tasks, statistics, LocalDispatcher())
    each = job.cost(run, SCHEMA, statistics, network)
    model, layout = CostModel(run, SCHEMA, statistics, find_device("h100")), Layout(1, 1, 1, 1, False)
    assert each.flops == pytest.approx(model.cost(layout).flops)
    assert each.activations * 4 == pytest.approx(sum(model.kept(layout).stages))


def test_runs_of_earlier_versions_are_read() -> None:
    """A stored recipe spells every section, also those that its job does not have."""
    stored = json.loads(load_recipe("digits").model_dump_json())
    assert stored["mope"] is None and RunConfig.of(stored).job == "fusemoe"
