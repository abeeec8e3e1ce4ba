"""Encoders from nothing: residual convolutions and log-mel beside patches by themselves, on real data.

    python -m benchmarks.encoders --work DIR --ptbxl DIR [--vowels DIR] [--easy-vqa DIR] [--sets ecg digits ...]

The plan, written before any test part was scored:

Sets       ecg: 300 recordings of PTB-XL at 100 Hz, NORM of at least 50 against the rest; five folds, fold f tests on
           strat_fold 2 f + 1 and 2 f + 2, validates on the next two and trains on the other six, so that each recording
           is tested once and no patient is in two parts. vowels: Japanese Vowels as aeon ships it (recorded speech as
           12 cepstra, 7 to 29 frames, 9 speakers), its own test part, every fifth training utterance validates.
           digits: scikit-learn's pictures of 8 x 8, alone; 60, 20 and 20 % by hash. easy_vqa: the shape of a picture at
           32 x 32, pictures that the first 8,000 questions are about, their own test part, a tenth validates.
Model      one block of width 32, four experts, nothing but the encoder differs. The hidden width of the experts makes
           up for parameters: that with which the whole model is nearest to the one with convolutions.
Settings   `SETS`, the first that were tried. Learning rate 0.002, three seeds, epoch by validation loss.
Linear     logistic regression, its C by validation loss. ecg: of each lead mean, deviation, least, largest and the
           logarithm of the power from 0.5 to 4, 8, 15, 30 and 50 Hz. vowels: of each channel the first four, and the
           length. Pictures: their pixels.
Compared   AUROC of ecg, accuracy of the others; mean over folds and seeds; 95 % of 1,000 draws of each test part's
           records, paired for differences. Intervals say what other test records would change, not other training ones.
Decided    a network or front becomes the default of its kind if its difference from patches is above 0 by its whole
           interval on ecg (signals) or on both sets of pictures, and nowhere below 0 by its whole interval. It stays as
           an option if it is above 0 by its whole interval somewhere. Otherwise it goes.

By this rule convolutions over signals and log-mel went. With them `SETS` had, as the plan was committed, for ecg
patches of 4 with strides 4 and 2, log-mel of steps of 10 samples, windows of 40 and 8 bands, and both (stride 2); for
vowels patches of 1 with stride 2. What is left of both sets is patches beside the linear model.

Runs are ordinary jobs in one process; one that is in DIR already is not repeated. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import ast
import csv
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from benchmarks.common import last_line, table
from data_shards import DatasetSchema, ModalitySpec, Record, TaskSpec, open_manifest, pack
from data_shards.sources.base import Source, SourceOptions, hashed_part
from data_shards.sources.easy_vqa import EasyVQA, EasyVQAOptions
from parallel import LocalDispatcher
from trainer.config.run_config import RunConfig
from trainer.metrics.bootstrap.intervals import draw_weights, interval
from trainer.metrics.bootstrap.measures import task_measures
from trainer.metrics.prediction_table import read_predictions
from trainer.models.fusemoe.model import FuseMoE

Array = np.ndarray
FOLDS, RATE, HIDDEN = 5, 0.002, 64
EDGES = (0.5, 4, 8, 15, 30, 50)  # Hz
RIDGES = (0.001, 0.01, 0.1, 1.0, 10.0)
MODEL: dict[str, Any] = {"dim": 32, "layers": 1, "bins": 4, "heads": 4}
SHAPES = ("circle", "rectangle", "triangle")
SPEAKERS = tuple("123456789")


@dataclass(frozen=True)
class Set:
    """One data set: the encoders that are compared on it, the first of which is that of patches by themselves."""

    name: str
    metric: str
    folds: int
    epochs: int
    batch: int
    kind: str
    encoders: dict[str, dict[str, Any]]


CONVOLUTIONS = {"network": "convolutions"}
SETS = {
    own.name: own
    for own in (
        Set("ecg", "auroc", FOLDS, 12, 16, "waveform", {"patches": {"patch": 16}}),
        Set("vowels", "accuracy", 1, 30, 16, "waveform", {"patches": {"patch": 2}}),
        Set("digits", "accuracy", 1, 15, 32, "image", {
            "patches": {"patch": 2}, "convolutions": {**CONVOLUTIONS, "patch": 2},
        }),
        Set("easy_vqa", "accuracy", 1, 4, 32, "image", {
            "patches": {"patch": 8}, "convolutions": {**CONVOLUTIONS, "patch": 8},
        }),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Examples:
    """All records of a set: its modality and task, values, labels, and the part of each in each fold."""

    modality: ModalitySpec
    task: TaskSpec
    values: list[Array]
    labels: list[int]
    parts: list[list[str]]


def ecgs(folder: Path) -> Examples:
    """Format 16 of WFDB: little-endian whole numbers, a thousand to the millivolt."""
    values, labels, parts = [], [], []
    for row in csv.DictReader((folder / "ptbxl_database.csv").open(encoding="utf-8")):
        path = folder / f"{row['filename_lr']}.dat"
        if path.is_file():
            values.append((np.fromfile(path, "<i2").reshape(-1, 12) / 1000).astype(np.float32))
            labels.append(int(ast.literal_eval(row["scp_codes"]).get("NORM", 0) >= 50))
            pair = (int(float(row["strat_fold"])) - 1) // 2
            parts.append([{0: "test", 1: "val"}.get((pair - fold) % FOLDS, "train") for fold in range(FOLDS)])
    modality = ModalitySpec("ecg", "waveform", shape=(12,), rate=100.0)
    return Examples(modality, TaskSpec("normal", "binary"), values, labels, parts)


def vowels(folder: Path) -> Examples:
    """Utterances of aeon's files: channels between colons, frames between commas, the speaker at the end."""
    values, labels, parts = [], [], []
    for part in ("TRAIN", "TEST"):
        text = (folder / f"JapaneseVowels_{part}.ts").read_text("utf-8").split("@data")[1]
        for number, line in enumerate(text.split()):
            *channels, speaker = line.split(":")
            values.append(np.array([channel.split(",") for channel in channels], np.float32).T)
            labels.append(SPEAKERS.index(speaker))
            parts.append([part.lower() if part == "TEST" or number % 5 else "val"])
    task = TaskSpec("speaker", "multiclass", classes=SPEAKERS)
    return Examples(ModalitySpec("vowel", "waveform", shape=(12,)), task, values, labels, parts)


def digits() -> Examples:
    """scikit-learn's."""
    found = load_digits()
    values = [picture[None].astype(np.float32) for picture in found.images]
    shares = (("train", 0.6), ("val", 0.2), ("test", 0.2))
    parts = [[hashed_part(f"digit {number}", shares)] for number in range(len(values))]
    task = TaskSpec("digit", "multiclass", classes=tuple("0123456789"))
    modality = ModalitySpec("picture", "image", shape=(1, 8, 8), dtype="float32")
    return Examples(modality, task, values, found.target.tolist(), parts)


def shapes(folder: Path) -> Examples:
    """Each picture once, if a question gives its shape away."""
    source = EasyVQA(EasyVQAOptions(path=str(folder), size=32, records=8000))
    seen: dict[str, Record] = {}
    for unit in source.units():
        for record in source.read(unit, Counter()):
            if record.targets["shape"] is not None:
                seen.setdefault(str(record.group), record)
    values = [np.asarray(record.values["image"]) for record in seen.values()]
    labels = [int(record.targets["shape"]) for record in seen.values()]  # type: ignore[arg-type]
    parts = [[record.splits["default"]] for record in seen.values()]
    modality = ModalitySpec("picture", "image", shape=(3, 32, 32), dtype="uint8")
    return Examples(modality, TaskSpec("shape", "multiclass", classes=SHAPES), values, labels, parts)


class Packed(Source):
    """Examples as records, with a split for each fold."""

    def __init__(self, name: str, examples: Examples) -> None:
        super().__init__(SourceOptions())
        self.examples = examples
        self.schema = DatasetSchema(name, (examples.modality,), (examples.task,))

    def units(self) -> Sequence[Any]:
        return [0]

    def read(self, unit: Any, notes: Counter[str]) -> Iterator[Record]:
        own = self.examples
        for number, (value, label, parts) in enumerate(zip(own.values, own.labels, own.parts, strict=True)):
            splits = {f"fold{fold}": part for fold, part in enumerate(parts)}
            yield Record(f"r{number:06d}", {own.modality.name: value}, {own.task.name: float(label)}, splits)


def recipe(own: Set, encoder: str, hidden: int, work: Path, fold: int, seed: int) -> RunConfig:
    """Of one run."""
    training: dict[str, Any] = {"epochs": own.epochs, "batch_size": own.batch, "seed": seed, "eval_batch_size": 64}
    training |= {"storage": str(work / "runs"), "log_every": 1000}
    model = {**MODEL, own.kind: own.encoders[encoder], "moe": {"experts": 4, "top_k": 2, "hidden": hidden}}
    name = f"{own.name}_{encoder.replace(', ', '_')}_{fold}_{seed}"
    tree = {"name": name, "data": {"url": str(work / "data" / own.name), "split": f"fold{fold}", "workers": 0}}
    tree |= {"model": model, "optim": {"lr": RATE}, "training": training, "tracking": {"mlflow": False}}
    return RunConfig.model_validate(tree)


def parameters(config: RunConfig) -> int:
    """Numbers in the whole model."""
    manifest = open_manifest(config.data.url)
    tasks = config.training.tasks or [task.name for task in manifest.schema.tasks]
    statistics = manifest.statistics[config.data.split]
    model = FuseMoE(manifest.schema, tasks, statistics, config.model, LocalDispatcher(), 0)
    return sum(parameter.numel() for parameter in model.parameters())


def hidden_of(own: Set, encoder: str, work: Path) -> tuple[int, int]:
    """Hidden width of the experts, and parameters: nearest to those of convolutions with `HIDDEN`."""
    wanted = parameters(recipe(own, list(own.encoders)[-1], HIDDEN, work, 0, 0))
    found = {hidden: parameters(recipe(own, encoder, hidden, work, 0, 0)) for hidden in range(16, 257, 8)}
    hidden = min(found, key=lambda number: abs(found[number] - wanted))
    return hidden, found[hidden]


def trained(config: RunConfig) -> Path:
    """The folder of a run that has ended."""
    from trainer.jobs.job import run
    from trainer.worker.context import SingleContext

    folder = Path(config.training.storage) / config.name
    if not (folder / "result.json").is_file():
        run(config, SingleContext())
        print(f"{config.name} has run", flush=True)
    return folder


def simple_features(own: Set, examples: Examples) -> Array:
    """What the linear model sees of each record."""
    if own.kind == "image":
        return np.stack([value.astype(float).ravel() for value in examples.values])
    rows = []
    for value in examples.values:
        parts = [value.mean(0), value.std(0), value.min(0), value.max(0)]
        if examples.modality.rate:
            power = np.abs(np.fft.rfft(value - value.mean(0), axis=0)) ** 2 / len(value)
            hertz = np.fft.rfftfreq(len(value), 1 / examples.modality.rate)
            bands = pairwise(EDGES)
            parts += [np.log(power[(hertz >= low) & (hertz < high)].mean(0) + 1e-9) for low, high in bands]
        rows.append(np.concatenate([*parts, [len(value)]]))
    return np.stack(rows).astype(float)


def linear_logits(own: Set, examples: Examples, fold: int) -> torch.Tensor:
    """(B, C) of the test part."""
    x, y = simple_features(own, examples), np.array(examples.labels)
    part = np.array([parts[fold] for parts in examples.parts])
    spread = x[part == "train"].std(0)
    x = ((x - x[part == "train"].mean(0)) / np.where(spread > 0, spread, 1)).clip(-10, 10)
    fitted = [
        LogisticRegression(C=ridge, max_iter=2000).fit(x[part == "train"], y[part == "train"]) for ridge in RIDGES
    ]
    losses = [
        log_loss(y[part == "val"], model.predict_proba(x[part == "val"]), labels=model.classes_) for model in fitted
    ]
    logits = fitted[int(np.argmin(losses))].decision_function(x[part == "test"])
    return torch.as_tensor(logits.reshape(len(logits), -1))


def compare(own: Set, examples: Examples, work: Path, seeds: Sequence[int]) -> dict[str, float]:
    """Train, score, print."""
    data = work / "data" / own.name
    if not (data / "manifest.json").is_file():
        pack(Packed(own.name, examples), str(data), chunk_records=64)
    sizes = {encoder: hidden_of(own, encoder, work) for encoder in own.encoders}
    drawn: dict[str, list[Array]] = {}
    for fold in range(own.folds):
        rows = [number for number, parts in enumerate(examples.parts) if parts[fold] == "test"]
        truth = torch.tensor(examples.labels)[rows, None].float()
        weights = draw_weights(len(rows), seed=fold)

        def score(logits_BC: torch.Tensor, truth: torch.Tensor = truth, weights: Array = weights) -> Array:
            return task_measures(examples.task, logits_BC, truth)[own.metric](weights)

        drawn.setdefault("linear", []).append(score(linear_logits(own, examples, fold)))
        for encoder in own.encoders:
            for seed in seeds:
                run = trained(recipe(own, encoder, sizes[encoder][0], work, fold, seed))
                (task,), kept = read_predictions(run / "predictions" / "test.parquet")
                assert kept.index_B.tolist() == rows, "the same records in the same order"
                drawn.setdefault(encoder, []).append(score(kept.logits[task.name]))
    means = {name: np.mean(values, axis=0) for name, values in drawn.items()}
    lines, figures = [], {}
    for name, mean_R in means.items():
        value, base = interval(mean_R), interval(mean_R - means["patches"])
        assert value is not None and base is not None
        by_seed = ", ".join(
            f"{np.mean([one[0] for one in drawn[name][s :: len(seeds)]]):.4f}" for s in range(len(seeds))
        )
        against = "" if name == "patches" else f"{base.value:+.4f} ({base.low:+.4f} to {base.high:+.4f})"
        shown = f"{value.value:.4f} ({value.low:.4f} to {value.high:.4f})"
        lines.append((name, sizes[name][1] if name in sizes else "", shown, against, by_seed if name in sizes else ""))
        figures[f"{own.name}, {name}"] = value.value
    print(f"{own.name}: {own.metric}")
    table(("encoder", "parameters", "95 %", "- patches", "each seed"), lines)
    return figures


def main() -> None:
    """Parse and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for data and runs, which are kept")
    parser.add_argument("--ptbxl", type=Path, help="folder with ptbxl_database.csv and records100/")
    parser.add_argument("--vowels", type=Path, help="folder with JapaneseVowels_TRAIN.ts and _TEST.ts")
    parser.add_argument("--easy-vqa", type=Path, help="folder of easy-VQA")
    parser.add_argument("--sets", nargs="+", choices=tuple(SETS), default=list(SETS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    work = chosen.work.absolute()
    load: dict[str, Callable[[], Examples]] = {
        "ecg": lambda: ecgs(chosen.ptbxl), "vowels": lambda: vowels(chosen.vowels), "digits": digits,
        "easy_vqa": lambda: shapes(chosen.easy_vqa),
    }  # fmt: skip
    figures: dict[str, float] = {}
    for name in chosen.sets:
        figures |= compare(SETS[name], load[name](), work, chosen.seeds)
    last_line("encoders", figures, seeds=chosen.seeds)


if __name__ == "__main__":
    main()
