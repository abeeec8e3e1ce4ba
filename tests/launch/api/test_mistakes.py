"""What a beginner does wrong with the Python interface: one sentence each, of our own classes."""

from __future__ import annotations

import pandas as pd
import pytest

import fleximoe
from tests.launch.api.ward import SMALL, notes, stays, vitals

SCHEMA = fleximoe.DatasetSchema("x", (fleximoe.ModalitySpec("a", "vector", shape=(1,)),), ())
SERIES = {"kind": "series", "file": "vital", "time": "hour", "columns": ["value"]}
PACK = {"records": stays(), "tasks": "died", "out": "OUT"}

PACKING = {
    "a frame without its name": (((stays(), "OUT"), {}), "a data frame is given by name: pack(records="),
    "no place": (((), {"records": stays(), "tasks": "died"}), "say where to: out='data/NAME'"),
    "no task": (((), {"records": stays(), "out": "OUT"}), "say what is to be predicted: tasks='COLUMN'"),
    "a task that is no column": (((), PACK | {"tasks": "dead"}), "there is no column 'dead' to predict; records.parq"),
    "an unknown source": ((("digit", "OUT"), {}), "unknown source 'digit'; sources are cmu_mosei"),
    "an unknown option": ((("synthetic", "OUT"), {"options": {"record": 5}}), "source synthetic, option record: "),
    "no schema": ((([], "OUT"), {}), "records need schema=: the DatasetSchema"),
    "no records": ((([{"a": 1}], "OUT"), {"schema": SCHEMA}), "element 0 of the records is a dict, and a fleximoe.Re"),
    "a place that is taken": (((), PACK | {"out": "PACKED"}), "already holds a packed data set; choose another folder"),
    "a table that is a list": (((), PACK | {"vitals": [1, 2]}), "vitals is a list, and a data frame (pandas, polars)"),
    "columns without names": (
        ((), PACK | {"vitals": pd.DataFrame([[1, 2]])}),
        "data frame vitals: names of columns are text, and one is 0; rename it",
    ),
    "no row": (((), PACK | {"records": stays().head(0)}), "data frame records has no row"),
    "cells of two types": (
        ((), PACK | {"records": stays().assign(age=[1, "x"] * 30)}),
        "data frame records: cells of one column are of one type",
    ),
    "no common key": (
        ((), PACK | {"records": stays().rename(columns={"stay": "name"}), "vitals": vitals()}),
        "no column of records is also one of vitals: say with key='COLUMN'",
    ),
    "a kind for a section": (
        ((), PACK | {"modalities": {"numbers": "vector"}}),
        "modalities['numbers'] is 'vector', and a section as in a mapping is wanted",
    ),
    "another name of a frame": (
        ((), PACK | {"vitals": vitals(), "modalities": {"hr": SERIES}}),
        "file: 'vital' is no data frame that was given; there are records, vitals",
    ),
    "an entry that there is not": (
        ((), PACK | {"modalities": {"numbers": {"kind": "vector", "column": "age", "colour": 1}}}),
        "modalities.numbers.colour: there is no such entry",
    ),
    "a column as a table": (
        ((), PACK | {"records": stays().age}),
        "records is a Series, and a data frame (pandas, polars",
    ),
    "two columns of a name": (
        ((), PACK | {"records": pd.concat([stays(), stays()[["age"]]], axis=1)}),
        "data frame records has two columns called 'age'; give them different names",
    ),
    "labels instead of their name": (
        ((), PACK | {"tasks": stays().died}),
        "tasks= takes names of columns of records, and not a Series of values",
    ),
    "labels of one class": (
        ((), PACK | {"records": stays().assign(died=1)}),
        "column 'died' cannot be learned as it is: it holds one value",
    ),
    "a record twice": (
        ((), PACK | {"records": pd.concat([stays(), stays().head(1)]), "vitals": vitals()}),
        "column 'stay' cannot name the records, as a cell of it is in several rows of records; drop the rows",
    ),
    "a key that is empty": (
        ((), PACK | {"records": stays().assign(stay=stays().stay.where(stays().age > 41)), "vitals": vitals()}),
        "column 'stay' cannot name the records: 12 of its cells in records are empty",
    ),
    "keys that are written otherwise": (
        ((), PACK | {"records": stays().assign(stay=stays().stay.str.upper()), "vitals": vitals()}),
        "column 'stay' is in records and in vitals, but they have hardly a cell in common",
    ),
    "dates without a beginning": (
        ((), PACK | {"vitals": vitals().assign(hour=pd.Timestamp("2024-01-01"))}),
        "data frame vitals would be left out: its column 'hour' holds dates, and no date of records says",
    ),
    "an infinite number": (
        ((), PACK | {"records": stays().assign(age=float("inf"))}),
        "modality numbers: holds NaN or infinity in age",
    ),
    "options of frames without frames": ((("digits", "OUT"), {"tasks": "digit"}), "tasks= is for data frames"),
}
FITTING = {
    "data that are not packed": (((stays(),), {}), "a DataFrame is not packed data: pack it first"),
    "no data": (((None,), {}), "nothing to learn from: give the packed data"),
    "no packed data there": ((("OUT/nothing",), {}), "OUT/nothing is not a packed data set"),
    "a key without its section": ((("PACKED",), {"epochs": 5}), "unknown key epochs; did you mean training.epochs?"),
    "a word for a number": (
        (("PACKED",), {"training": {"epochs": "many"}}),
        "training.epochs='many' is of the wrong type",
    ),
    "a recipe that there is not": ((("PACKED", "digit"), {}), "unknown recipe 'digit', did you mean digits?"),
    "a value that is none": ((("PACKED",), {"training": {"epochs": print}}), "is no value of a recipe: numbers, text"),
    "a split that there is not": ((("PACKED",), {"data": {"split": "fold1"}}), "has no split 'fold1'; it has default"),
}
ASKING = {
    "a column that is missing": (
        lambda r: r.predict(stays().drop(columns="age")),
        "has no column 'age'",
    ),
    "a table that is none": (lambda r: r.predict(stays(), vital=vitals()), "vital= is none of the tables that the mod"),
    "a table beside packed data": (
        lambda r: r.predict(r.recipe["data"]["url"], notes=notes()),
        "belong to a frame of ",
    ),
    "a record as a row": (
        lambda r: r.predict(stays().iloc[0]),
        "records is a Series, and a data frame (pandas, polars) or a table of pyarrow is wanted",
    ),
    "records as a list": (lambda r: r.predict([{"age": 4.0}]), "records is a list, and a data frame"),
    "records without their key": (
        lambda r: r.predict(stays().drop(columns="stay"), vitals=vitals()),
        "records has no column 'stay', which says whose the rows of vitals are; add it",
    ),
    "words for a number": (
        lambda r: r.predict(stays().assign(age="old")),
        "data frame records, row 1: column 'age': 'old' is no number",
    ),
    "a part of new records": (
        lambda r: r.predict(stays(), part="test"),
        "part='test' is of packed data: new records belong to no part",
    ),
    "a channel that is new": (
        lambda r: r.predict(stays(), vitals=vitals().assign(what="BP")),
        "have a 'what' that no modality lists, e.g. 'BP'",
    ),
    "no export": (lambda r: fleximoe.load(r.url), "holds no exported model: make one with `checkpoint export`"),
    "no temperature": (lambda r: r.predict(calibrated=True), "has no temperatures: fit them with"),
    "a run that there is not": (lambda r: fleximoe.open_run("nothing", storage=r.url), "there is no run at "),
    "one run compared": (lambda r: fleximoe.compare(r), "compare takes a list of runs"),
    "a run that MLflow has not": (lambda r: fleximoe.compare([r]), "is not in MLflow"),
    "a part that there is not": (lambda r: r.evaluate("tst", progress=False), "has no part 'tst'"),
}


def filled(value, places):
    if isinstance(value, str):
        for name, place in places.items():
            value = value.replace(name, place)
    return value


def refused(call, sentence):
    with pytest.raises(fleximoe.InputError) as found:
        call()
    text = str(found.value)
    assert sentence in text and "\n" not in text and isinstance(found.value, fleximoe.FleximoeError | ValueError)


@pytest.mark.parametrize("case", PACKING)
def test_packing(case, data, tmp_path):
    (args, kwargs), sentence = PACKING[case]
    places = {"OUT": str(tmp_path / "out"), "PACKED": data.url}
    kwargs = {key: filled(value, places) for key, value in kwargs.items()}
    refused(lambda: fleximoe.pack(*(filled(a, places) for a in args), **kwargs), filled(sentence, places))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("case", FITTING)
def test_fitting(case, data, tmp_path):
    (args, kwargs), sentence = FITTING[case]
    places = {"OUT": str(tmp_path), "PACKED": data.url}
    settings = {**SMALL, **kwargs}
    settings["training"] = {"storage": tmp_path / "runs", **kwargs.get("training", {})}
    args = [filled(a, places) for a in args]
    refused(lambda: fleximoe.fit(*args, **settings, progress=False), filled(sentence, places))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("case", ASKING)
def test_asking(case, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    call, sentence = ASKING[case]
    refused(lambda: call(run), sentence)


def test_there_are_as_many_as_promised_and_a_wrong_name_says_what_there_is():
    assert len(PACKING) + len(FITTING) + len(ASKING) >= 18
    with pytest.raises(AttributeError, match=r"no attribute 'predict'; it has .*fit, load, open_run, pack"):
        fleximoe.predict  # noqa: B018


def test_what_is_no_mistake_for_sure_is_said(tmp_path, caplog):
    """A key that is not called one, and a column that gives the label away."""
    frame = stays().assign(stay=range(1, 61), outcome=["well" if died else "badly" for died in stays().died])
    data = fleximoe.pack(records=frame, tasks="died", out=tmp_path / "d")
    assert "records: column 'stay' counts the rows, so it names them and is no feature" in data.guesses
    words = "column 'outcome' says the same in every row: leave it out unless it is known beforehand"
    assert f"tasks.died: {words}" in data.guesses and words in caplog.text


def test_whole_numbers_stay_whole_where_a_cell_is_empty(tmp_path, run):
    """pandas makes floats of them: neither keys nor classes change."""
    events = vitals().assign(stay=[int(key[1:]) if key != "x" else 99 for key in vitals().stay])
    frame = stays().assign(stay=[float(key[1:]) for key in stays().stay], died=stays().died.where(stays().age > 41))
    data = fleximoe.pack(records=frame, vitals=events, tasks="died", out=tmp_path / "d")
    assert "tasks.died: binary: two classes" in data.guesses and data.report["observations"] == 240


def test_a_run_that_was_deleted_says_so(tmp_path, run):
    gone = fleximoe.Run(str(tmp_path / "gone"))
    assert gone.state == "gone" and "gone" in repr(gone) and "gone" in gone._repr_html_()
    refused(lambda: gone.metrics, "there is no run at ")


def test_unknown_categories_are_said(run, caplog):
    new = stays().drop(columns="died").head(3)
    plain, other = run.predict(new), run.predict(new.assign(sex="x"))
    assert "3 cells of categories are codes or categories that the training data did not have" in caplog.text
    assert not (plain["died.probability"] == other["died.probability"]).all()
