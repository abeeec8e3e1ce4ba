"""Made-up records whose label depends on times: what they show, and that their best score is what they say."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from data_shards import create_source
from data_shards.records.check import validate
from data_shards.records.codec import encode_record
from data_shards.records.columns import cut
from data_shards.records.decoder import Decoder
from data_shards.records.record import Codes, Objects, Record
from data_shards.sources.planted import WORDS, auroc
from data_shards.sources.planted_times import DAY, PlantedTimes


def made(**options: Any) -> tuple[PlantedTimes, list[Record], Counter[str]]:
    source, notes = create_source("planted_times", options), Counter[str]()
    assert isinstance(source, PlantedTimes)
    records = [record for unit in source.units() for record in source.read(unit, notes)]
    for record in records:
        validate(source.schema, record)
    return source, records, notes


def classes(source: PlantedTimes, value: Any) -> list[int]:
    """Of each object: read from what is stored, by the nearest template."""
    if isinstance(value, Codes):
        return [int(code[1:]) for code in value.codes]
    assert isinstance(value, Objects)
    if source.kind == "text":
        return [WORDS.index(word) for word in value.values]
    flat = source.templates.reshape(len(source.templates), -1)
    return [int(np.square(flat - np.ravel(own)).sum(axis=1).argmin()) for own in value.values]


def times_of(source: PlantedTimes, record: Record) -> dict[int, list[float]]:
    """Class -> its times, at most those before the moment."""
    value: Any = record.values["events"]
    times = value.times_N if isinstance(value, Objects) else value.times_O
    found: dict[int, list[float]] = {}
    for own, time in zip(classes(source, value), times.tolist(), strict=True):
        if time <= DAY:
            found.setdefault(own, []).append(time)
    return found


def answers(source: PlantedTimes, records: list[Record]) -> list[bool]:
    """What each record shows, by the rule as the module's text has it."""
    found = []
    for record in records:
        if source.o.label == "pair":
            found.append({"c0", "c1"} <= set(record.values["events"].codes))  # type: ignore[union-attr]
            continue
        times = times_of(source, record)
        (first,) = times[0]
        if source.o.label == "order":
            found.append(first < times[1][0])
        else:
            found.append(first >= (DAY / 2 if source.o.label == "when" else 0.75 * DAY))
    return found


CASES = [
    {"label": "when"},
    {"label": "order", "kind": "vector"},
    {"label": "when", "kind": "image"},
    {"label": "order", "kind": "waveform"},
    {"label": "order", "kind": "codes", "late": "label"},
    {"label": "window", "late": "random"},
    {"label": "pair", "codes": 100_000},
]


def name_of(options: dict[str, Any]) -> str:
    return "-".join(map(str, options.values()))


@pytest.mark.parametrize("options", CASES, ids=name_of)
def test_the_best_score_is_that_of_the_rule(options: dict[str, Any]) -> None:
    source, records, notes = made(records=1500, **options)
    label = np.array([float(np.squeeze(record.targets["answer"])) for record in records])
    right = np.array(answers(source, records)) == (label == 1)
    assert abs(right.mean() - 0.95) < 0.02 and abs(label.mean() - 0.5) < 0.05
    assert notes["labels_flipped"] == (~right).sum()
    test = [n for n, record in enumerate(records) if record.splits["default"] == "test"]
    best = source.report(notes)["best_score"]["answer"]
    shown = np.array(answers(source, records), float)
    assert best == {"accuracy": right[test].mean(), "auroc": auroc(shown[test], label[test])}


@pytest.mark.parametrize("options", CASES, ids=name_of)
def test_shuffled_nothing_is_left_of_the_rule(options: dict[str, Any]) -> None:
    source, records, notes = made(records=1500, shuffle=True, **options)
    label = np.array([float(np.squeeze(record.targets["answer"])) for record in records])
    assert abs((np.array(answers(source, records)) == (label == 1)).mean() - 0.5) < 0.05
    best = source.report(notes)["best_score"]["answer"]
    assert best["auroc"] == 0.5 and 0.5 <= best["accuracy"] < 0.56


@pytest.mark.parametrize("label", ["when", "order", "window"])
def test_without_times_nothing_is_left_either(label: str) -> None:
    """How many objects of each class there are tells nothing: the best count separates as chance does."""
    source, records, _ = made(records=1500, label=label, objects=2.0, codes=6)
    answer = np.array([float(record.targets["answer"]) for record in records])  # type: ignore[arg-type]
    counts = np.array([np.bincount(classes(source, r.values["events"]), minlength=8) for r in records])
    assert max(abs(auroc(counts[:, own], answer) - 0.5) for own in range(8)) < 0.05
    assert abs(auroc(counts.sum(axis=1), answer) - 0.5) < 0.05


def test_of_a_pair_one_code_alone_is_not_enough() -> None:
    _, records, _ = made(records=3000, label="pair", flip=0)
    answer = np.array([float(record.targets["answer"]) for record in records])  # type: ignore[arg-type]
    codes = [record.values["events"].codes for record in records]  # type: ignore[union-attr]
    alone = auroc(np.array([float("c0" in own) for own in codes]), answer)
    assert 0.72 < alone < 0.78 and abs(auroc(np.array([float(len(own)) for own in codes]), answer) - 0.5) < 0.03


def test_the_hours_of_a_day_have_labels_of_their_own() -> None:
    source, records, notes = made(records=400, label="hourly", codes=20)
    right = []
    for record in records:
        asked = np.array(times_of(source, record).get(0, []), np.float32)
        moments, label = np.asarray(record.moments), np.asarray(record.targets["answer"])
        assert moments.tolist() == list(range(2, 25))
        shown = [bool(((asked > t - 2) & (asked <= t)).any()) for t in moments.tolist()]
        right += (np.array(shown) == (label == 1)).tolist()
    share = np.concatenate([np.asarray(record.targets["answer"]) for record in records]).mean()
    assert abs(np.mean(right) - 0.95) < 0.01 and abs(share - 0.5) < 0.05
    assert abs(source.report(notes)["best_score"]["answer"]["accuracy"] - 0.95) < 0.02


@pytest.mark.parametrize("late", ["label", "random"])
def test_what_comes_after_the_moment_gives_the_label_away_and_is_not_seen(late: str) -> None:
    source, records, _ = made(records=600, label="when", late=late)
    told = []
    for record in records:
        value: Any = record.values["events"]
        (last,) = [word for word, time in zip(value.values, value.times_N.tolist(), strict=True) if time > DAY]
        told.append(WORDS.index(last) == 7)
        assert record.moments is not None and record.moments.tolist() == [DAY]
    label = np.array([float(np.squeeze(record.targets["answer"])) for record in records])
    agree = (np.array(told) == (label == 1)).mean()
    assert agree == 1 if late == "label" else abs(agree - 0.5) < 0.06
    columns = Decoder(source.schema).columns(encode_record(records[0], source.schema), records[0].key)
    seen = cut(columns, source.schema, 0)
    assert len(seen.text_times_X) == len(columns.text_times_X) - 1 and seen.text_times_X.max() <= DAY


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"label": "pair", "kind": "image"}, "label=pair is one of codes, not of objects of kind image"),
        ({"label": "hourly", "late": "label"}, "late is for when, order and window, not for hourly"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        create_source("planted_times", options)
