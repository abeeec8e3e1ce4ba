"""Recipes: every shipped one loads, and every mistake is one sentence that says what would be right."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.config.errors import RecipeError, all_keys
from trainer.config.paths import absolute_paths
from trainer.config.recipe import apply_overrides, known_recipes, load_recipe
from trainer.config.run_config import RunConfig
from trainer.models.job_type import job_type


def test_shipped_recipes_are_the_known_ones():
    assert {"digits", "synthetic_small", "icu_physionet2012"} <= set(known_recipes())


@pytest.mark.parametrize("name", known_recipes())
def test_every_shipped_recipe_loads_and_says_how_to_use_it(name):
    config = load_recipe(name)
    assert config.name.startswith(f"{name}-")
    text = (Path(__file__).parents[3] / "launch" / "recipes" / f"{name}.yaml").read_text()
    verb = job_type(config.job).verb
    assert f"python -m launch {verb} {name}" in text and "python -m launch pack" in text


def test_overrides_are_yaml_and_the_last_one_wins():
    config = load_recipe(
        "digits", ["optim.lr=1e-3", "training.tasks=[a, b]", "training.max_steps=null", "optim.lr=2e-3", "name=17"]
    )
    assert (config.optim.lr, config.training.tasks, config.training.max_steps) == (2e-3, ["a", "b"], None)
    assert config.name == "17" and config.run_dir == "runs/17"


def test_a_whole_section_and_a_free_mapping_can_be_given():
    config = load_recipe("digits", ["training.task_weights={digit: 2.0}", "data.storage_options.anon=true"])
    assert config.training.task_weights == {"digit": 2.0} and config.data.storage_options == {"anon": True}


@pytest.mark.parametrize(
    ("override", "near"),
    [
        ("model.moe.expert=3", "model.moe.experts"),
        ("lr=1", "optim.lr"),
        ("experts=4", "model.moe.experts"),
        ("modle.dim=3", "model.dim"),
        ("parallel.expert_paralel=2", "parallel.expert_parallel"),
        ("training.batchsize=2", "training.batch_size"),
    ],
)
def test_unknown_key_names_the_nearest(override, near):
    with pytest.raises(RecipeError, match=rf"unknown key .*; did you mean {near}\?$"):
        load_recipe("digits", [override])


def test_every_key_finds_itself_without_its_first_letter():
    # The nearest key is searched over the whole tree, so a slip in any key must lead back to that key or its namesake.
    for key in all_keys(RunConfig):
        section, _, name = key.rpartition(".")
        if len(name) < 5:
            continue
        with pytest.raises(RecipeError) as error:
            load_recipe("digits", [f"{section}.{name[1:]}=1" if section else f"{name[1:]}=1"])
        assert name in str(error.value).split("did you mean ")[-1], key


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("optim.lr=abc", "optim.lr='abc' is of the wrong type: optim.lr takes a number (peak learning rate)"),
        ("training.batch_size=2.5", "training.batch_size=2.5 is of the wrong type: training.batch_size takes a whole"),
        ("training.batch_size=0", "training.batch_size=0 is out of range: it should be greater than or equal to 1"),
        (
            "model.pooling=max",
            "model.pooling='max' is of the wrong type: model.pooling takes one of attention, mean, last",
        ),
        ("optim=3", "optim takes a section with keys lr, betas"),
        ("training.eval_every=never", "training.eval_every takes epoch or a whole number"),
        ("optim.betas=[0.9]", "optim.betas"),
        ("data.url=null", "data.url=None is of the wrong type: data.url takes text"),
        ("model.heads=5", "model.heads=5"),
        ("name=a/b", "use letters, digits, dots, dashes and underscores"),
        ("tracking.uri=mlruns", "sqlite:///mlflow.db"),
        ("tracking.uri=http://me:secret@host:5000", "MLFLOW_TRACKING_PASSWORD"),
        ("optim", "has no value: write section.key=value"),
        ("optim.lr.x=1", "optim.lr is a value and has no keys of its own"),
        ("optim.lr=[1", "is not valid YAML"),
    ],
)
def test_wrong_value_is_one_sentence_with_key_value_and_what_it_takes(override, sentence):
    with pytest.raises(RecipeError) as error:
        load_recipe("digits", [override])
    assert sentence in str(error.value) and "\n" not in str(error.value)
    assert "secret" not in str(error.value)


def test_unknown_recipes_list_the_known_ones(tmp_path):
    with pytest.raises(RecipeError, match=r"unknown recipe 'digit', did you mean digits\?; shipped recipes: .*digits"):
        load_recipe("digit")
    with pytest.raises(RecipeError, match="does not exist; shipped recipes"):
        load_recipe(str(tmp_path / "mine.yaml"))


def test_a_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("data:\n  url: s3://bucket/x\nmodel:\n  dimm: 3\n")
    with pytest.raises(RecipeError, match=r"mine.yaml: unknown key model.dimm; did you mean model.dim\?"):
        load_recipe(str(path))
    path.write_text("model: {dim: 32}\n")
    with pytest.raises(RecipeError, match="data is missing"):
        load_recipe(str(path))
    path.write_text("- just\n- a list\n")
    with pytest.raises(RecipeError, match="must be a mapping of sections"):
        load_recipe(str(path))
    path.write_text("data: {url: s3://bucket/x}\n")
    assert load_recipe(str(path)).data.url == "s3://bucket/x"


@pytest.mark.parametrize(
    ("weight", "shown"), [("-1", "-1.0"), ("-1e-9", "-1e-09"), (".inf", "inf"), ("-.inf", "-inf"), (".nan", "nan")]
)
def test_a_weight_of_a_task_is_finite_and_not_negative(weight, shown):
    sentence = (
        f"training.task_weights.digit={shown} trains away from the labels or to no number: "
        "a weight is finite and at least 0"
    )
    with pytest.raises(RecipeError) as caught:
        load_recipe("digits", [f"training.task_weights={{digit: {weight}}}"])
    assert sentence in str(caught.value)
    config = load_recipe("digits", ["training.task_weights={digit: 0, other: 0.5}"])
    assert [config.training.task_weight(task) for task in ("digit", "other", "third")] == [0.0, 0.5, 1.0]


def test_overriding_a_loaded_run_changes_only_what_is_said():
    config = load_recipe("digits", ["name=x"])
    changed = apply_overrides(config, ["parallel.workers=4"])
    assert changed.parallel.workers == 4
    assert changed.model_copy(update={"parallel": config.parallel}) == config


def test_relative_paths_become_absolute_and_urls_stay(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = absolute_paths(load_recipe("digits", ["name=x"]), Path("/a"))
    assert (config.data.url, config.training.storage) == ("/a/data/digits", "/a/runs")
    assert (config.tracking.uri, config.tracking.spool) == ("sqlite:////a/mlflow.db", "/a/runs/x/mlflow_spool")
    remote = absolute_paths(
        load_recipe("digits", ["name=x", "training.storage=s3://b/runs/", "data.url=s3://b/d"]), Path("/a")
    )
    assert (remote.run_dir, remote.data.url, remote.tracking.spool) == (
        "s3://b/runs/x",
        "s3://b/d",
        "/a/mlflow_spool/x",
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker:5000")
    assert absolute_paths(load_recipe("digits"), Path("/a")).tracking.uri == "http://tracker:5000"
    assert (
        absolute_paths(load_recipe("digits", ["tracking.uri=sqlite:///x.db"]), Path("/a")).tracking.uri
        == "sqlite:////a/x.db"
    )


def test_a_key_twice_is_refused_in_a_recipe_and_in_an_override(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("data: {url: d}\noptim: {lr: 1e-3}\ntraining: {epochs: 2}\noptim: {lr: 1e-4}\n")
    with pytest.raises(RecipeError, match=rf"recipe {path}: key optim is given twice, in line 2 and in line 4"):
        load_recipe(str(path))
    with pytest.raises(RecipeError, match=r"key lr is given twice, in line 1 at columns 2 and 12"):
        load_recipe("digits", ["optim={lr: 1e-3, lr: 1e-4}"])


def test_numbers_and_words_of_a_recipe_are_what_is_written(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("data: {url: d}\noptim: {lr: 1e-3}\ntraining: {epochs: 012, compile: no}\nname: 0x10\n")
    config = load_recipe(str(path), ["tracking.tags={day: 2024-01-01, on: yes, version: 1.10}"])
    assert (config.optim.lr, config.training.epochs) == (0.001, 12)
    assert config.training.compile is False and config.name == "0x10"
    assert config.tracking.tags == {"day": "2024-01-01", "on": "yes", "version": "1.10"}
