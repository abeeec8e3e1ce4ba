"""Which runs compare, what is said of them, and that page, terminal and JSON say the same; on made-up predictions."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_shards import TaskSpec
from launch.compare import compare as verb
from launch.compare.comparison import Comparison, compare, table_rows
from launch.compare.pairs import (
    DIFFER,
    NO_DIFFERENCE,
    NO_DIFFERENCE_SEEDS,
    NOT_BEYOND_SEEDS,
    NOT_TESTED,
    ON_THESE_RECORDS,
    SAME_GAP,
    SEEDS_ONLY,
)
from launch.compare.report import page
from launch.compare.tested import why_none
from trainer.metrics.prediction_table import write_predictions
from trainer.metrics.predictions import Predictions
from trainer.metrics.scores import part_metrics
from trainer.tracking.history import TrackedRun

TASK = TaskSpec("died", "binary")
RECORDS = 200
TRUTH = (np.arange(RECORDS) % 2).astype(np.float32)


@dataclass
class MadeUp(TrackedRun):
    """A run whose files lie in a folder."""

    files: dict[str, Path] = field(default_factory=dict)

    def artifact(self, path: str) -> Path | None:
        return self.files.get(path)

    def history(self, metric: str) -> list[tuple[int, float]]:
        return []


def said(right: float, seed: int = 0, records: int = RECORDS) -> np.ndarray:
    """Logits that are right for a share of the records."""
    hit = np.random.default_rng(seed).permutation(records) < round(right * records)
    return np.where(hit == (TRUTH[:records] == 1), 2.0, -2.0)


def run(
    folder: Path,
    name: str,
    logits: np.ndarray,
    truth: np.ndarray = TRUTH,
    task: TaskSpec = TASK,
    first: int = 0,
    keep: bool = True,
    metrics: dict[str, float] | None = None,
    **params: Any,
) -> MadeUp:
    predictions = Predictions(
        torch.arange(first, first + len(logits)),
        {task.name: torch.tensor(logits, dtype=torch.float32)[:, None]},
        {task.name: torch.tensor(truth[: len(logits)])[:, None]},
    )
    path = folder / f"{name}.parquet"
    write_predictions(path, [task], predictions)
    told = {"dataset.digest": "d", "data.split": "default", "training.tasks": "null", "training.seed": "0"}
    told |= {key.replace("__", "."): str(value) for key, value in params.items()}
    found = part_metrics("test", [task], predictions) | {"test/records": float(len(logits))}
    files = {"predictions/test.parquet": path} if keep else {}
    return MadeUp("", name, name, "FINISHED", 0, told, {**found, **(metrics or {})}, {}, files=files)


def texts(found: Comparison, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """The page without its markup, and what the terminal shows."""
    before, verb.people.width = verb.people.width, 400  # no cell in several lines
    verb._print(found)
    verb.people.width = before
    shown = re.sub(r"\s+", " ", re.sub(r"[│┃─━┏┓┗┛┡┩└┘├┤┼╇┳┻]", " ", capsys.readouterr().err))
    markup = re.sub(r"<(style|img)[^>]*>(?:.*?</style>)?", "", page(found), flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", markup)), shown


def words_of_a_verdict(text: str) -> list[str]:
    return [
        word for word in ("better", "differ ", "difference was found", "no difference", "Best", "best ") if word in text
    ]


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "data": ({"dataset__digest": "e"}, "on different data sets"),
    "split": ({"data__split": "other"}, "on different splits of the data"),
    "records": ({"first": 1}, "on different sets of records"),
    "fewer": ({"logits": said(0.6, records=150)}, "on different sets of records"),
    "labels": ({"truth": 1 - TRUTH}, "on different labels"),
    "task": ({"task": TaskSpec("left", "binary")}, "on different tasks"),
    "unkept task": ({"keep": False, "training__tasks": '["left"]'}, "on different tasks"),
    "unkept data": ({"keep": False, "dataset__digest": "e"}, "on different data sets"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_does_not_compare_gets_no_verdict_anywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    changes, reason = OTHERS[name]
    runs = [run(tmp_path, "a", said(0.9), gate="x")]
    runs.append(run(tmp_path, "b", **{"logits": said(0.6), "gate": "y", **changes}))
    found = compare(runs, "accuracy")
    assert not found.comparable and found.pairs == []
    assert found.notes[-1] == (
        f"Runs were measured {reason} (e.g. a and b): their values of test/accuracy do not compare."
    )
    assert found.finding == "No two variants compare, so none is better."
    for text in texts(found, capsys):
        assert "No two variants compare" in text and reason in text
        text = text.replace("so none is better", "").replace("different", "").replace("What differs", "")
        assert words_of_a_verdict(text) == [], text
    assert [row["metrics"]["test/accuracy"]["mean"] for row in table_rows(found)] == [
        pytest.approx(run.metrics["test/accuracy"]) for run in runs
    ], "as they came, not ranked"


def test_losses_of_other_weights_do_not_compare_and_other_metrics_do(tmp_path: Path) -> None:
    runs = [
        run(tmp_path, "a", said(0.9), metrics={"test/loss": 0.5}, training__task_weights__died=1.0),
        run(tmp_path, "b", said(0.6), metrics={"test/loss": 0.2}, training__task_weights__died=2.0),
    ]
    assert not compare(runs, "loss").comparable and "weighted differently" in compare(runs, "loss").notes[-1]
    assert compare(runs, "accuracy").comparable


def test_of_three_runs_those_that_compare_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [run(tmp_path, "a", said(0.6), gate="x"), run(tmp_path, "b", said(0.9), gate="y")]
    runs.append(run(tmp_path, "c", said(0.99), gate="z", dataset__digest="e"))
    found = compare(runs, "accuracy")
    assert not found.comparable and len(found.pairs) == 1
    assert found.finding.startswith("Only 1 of 3 pairs of variants compare, so none is best.")
    assert "gate=y is better than" in found.finding and "gate=z" not in found.finding
    assert all("none is best" in text for text in texts(found, capsys))


def seeds(folder: Path, label: str, shares: list[float], **params: Any) -> list[MadeUp]:
    # The same records are hard for every run.
    return [
        run(folder, f"{label}{seed}", said(share), gate=label, training__seed=seed, **params)
        for seed, share in enumerate(shares)
    ]


CASES: dict[str, tuple[list[float], list[float], dict[str, Any], str, str]] = {
    "one seed": ([0.9], [0.6], {}, ON_THESE_RECORDS, "a is better than b on these records; more seeds would say"),
    "all apart": ([0.9, 0.91, 0.9], [0.6, 0.6, 0.61], {}, DIFFER, "a is better than b."),
    "seeds vary": (
        [0.9, 0.6, 0.9],
        [0.6, 0.65, 0.7],
        {},
        NOT_BEYOND_SEEDS,
        "a is better than b on these records, not b",
    ),
    "same gap": ([0.9, 0.8], [0.7, 0.6], {}, SAME_GAP, "a is better than b on these records, by as much for every"),
    "no gap": ([0.75, 0.75], [0.75, 0.75], {}, NO_DIFFERENCE, "Between the two no difference was found."),
    "small": ([0.76], [0.755], {}, NO_DIFFERENCE, "Between the two no difference was found."),
    "unkept": ([0.9], [0.6], {"keep": False}, NOT_TESTED, "Between the two nothing could be tested."),
    "unkept seeds": (
        [0.9, 0.91, 0.9],
        [0.6, 0.6, 0.61],
        {"keep": False},
        SEEDS_ONLY,
        "a is better than b over seeds; ",
    ),
    "unkept equal": (
        [0.9, 0.6],
        [0.6, 0.9],
        {"keep": False},
        NO_DIFFERENCE_SEEDS,
        "no difference was found over seeds",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_said_follows_from_the_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    first, second, params, verdict, sentence = CASES[name]
    found = compare([*seeds(tmp_path, "b", second, **params), *seeds(tmp_path, "a", first, **params)], "accuracy")
    assert found.comparable and [pair.verdict for pair in found.pairs] == [verdict]
    sentence = sentence.replace("a is", "gate=a is").replace("than b", "than gate=b")
    assert sentence in found.finding
    for text in texts(found, capsys):
        assert sentence.split(" on these")[0] in text and verdict in text
        assert ("is better than" in text) == (
            verdict in (DIFFER, ON_THESE_RECORDS, NOT_BEYOND_SEEDS, SAME_GAP, SEEDS_ONLY)
        )
        assert "No two variants" not in text
        assert ("±" in text) == (len(first) > 1)


def test_of_a_metric_that_should_be_small_the_smaller_is_better(tmp_path: Path) -> None:
    found = compare([*seeds(tmp_path, "b", [0.6]), *seeds(tmp_path, "a", [0.9])], "brier")
    assert [variant.label for variant in found.variants] == ["gate=a", "gate=b"]
    assert "gate=a is better than gate=b" in found.finding and found.pairs[0].records.value < 0


def test_ties_and_single_variants_are_called_so(tmp_path: Path) -> None:
    tied = compare([*seeds(tmp_path, "a", [0.75]), *seeds(tmp_path, "b", [0.75])], "accuracy")
    assert tied.finding == (
        "2 variants have the same test/accuracy, 0.7500: gate=a, gate=b. Between the two no difference was found."
    )
    alone = compare(seeds(tmp_path, "a", [0.75]), "accuracy")
    assert alone.finding == "There is one variant, a0, with test/accuracy 0.7500." and alone.pairs == []
    assert "What differs" not in page(alone)
    several = compare(seeds(tmp_path, "a", [0.5, 0.75]), "accuracy")
    assert several.finding == "There is one variant, all runs, with test/accuracy 0.6250 ± 0.1768 over 2 runs."


def test_one_record_gives_no_interval_and_no_verdict_over_records(tmp_path: Path) -> None:
    truth = np.full(RECORDS, np.nan, np.float32)
    truth[0] = 1.0
    runs = [
        run(tmp_path, "a", np.full(RECORDS, 2.0), truth, gate="x"),
        run(tmp_path, "b", np.full(RECORDS, -2.0), truth, gate="y"),
    ]
    found = compare(runs, "accuracy")
    assert [variant.interval("test/accuracy") for variant in found.variants] == [None, None]
    assert [pair.verdict for pair in found.pairs] == [NOT_TESTED] and "better" not in found.finding
    assert sum("1 labelled test record, of which no interval can be made" in note for note in found.notes) == 2
    nothing = run(tmp_path, "c", np.full(2, 2.0), np.full(2, np.nan, np.float32), metrics={"test/accuracy": 0.5})
    assert compare([nothing], "accuracy").variants[0].interval("test/accuracy") is None


def test_metrics_that_are_no_numbers_or_not_in_every_run_are_named(tmp_path: Path) -> None:
    runs = [run(tmp_path, "a", said(0.9), gate="x"), run(tmp_path, "b", said(0.6), gate="y")]
    runs[0].metrics = {**runs[0].metrics, "test/auroc": math.nan, "test/skipped": 3.0}
    runs[1].metrics = {name: value for name, value in runs[1].metrics.items() if name != "test/f1"}
    found = compare(runs, "accuracy")
    assert "Left out, as not every run has a number for them: test/auroc (not in a), test/f1 (not in b)." in found.notes
    assert {"test/auroc", "test/f1", "test/records", "test/skipped"} & set(found.metrics) == set()
    with pytest.raises(ValueError, match=r"there is no metric test/auroc; there are test/accuracy, test/auprc"):
        compare(runs, "auroc")
    with pytest.raises(ValueError, match="there is no metric test/records"):
        compare(runs, "records")
    runs[0].metrics = {"test/y/mae": 1.0}
    with pytest.raises(ValueError, match="no test metric in common"):
        compare(runs)


def test_one_recipe_with_one_seed_is_one_seed(tmp_path: Path) -> None:
    twice = [run(tmp_path, f"a{i}", said(share), gate="x") for i, share in enumerate((0.9, 0.8))]
    found = compare([*twice, run(tmp_path, "b", said(0.6), gate="y")], "accuracy")
    assert "Runs a0, a1 are one recipe with one seed: over seeds they count once, as their mean." in found.notes
    assert found.pairs[0].shared_seeds == 1 and found.pairs[0].seeds_p is None


def test_the_last_line_says_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [run(tmp_path, "a", said(0.9), gate="x"), run(tmp_path, "b", said(0.6), gate="y", dataset__digest="e")]
    monkeypatch.setattr(verb, "find_runs", lambda *words: runs)
    verb.compare_runs(["a", "b"], None, "accuracy", str(tmp_path / "page.html"), None)
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["comparable"] is False and result["pairs"] == []
    assert result["finding"] == "No two variants compare, so none is better."
    assert result["finding"] in (tmp_path / "page.html").read_text()


def test_predictions_that_each_worker_kept_are_named():
    def run(**metrics):
        return TrackedRun("", "x", "x", "FINISHED", 0, {"training.gathered_samples": "1000"}, metrics, {})

    assert why_none(run(**{"test/records": 1000.0})) == why_none(run()) == "kept no test predictions"
    words = why_none(run(**{"test/records": 10.0, "test/moments": 1001.0}))
    assert words.startswith("tested 1,001 samples, more than training.gathered_samples (1,000)")
    assert "predictions/test, a file of each worker" in words
