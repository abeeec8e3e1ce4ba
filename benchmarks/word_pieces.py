"""Word pieces learned from the training part beside bytes, in the text encoder from nothing, on real texts.

    python -m benchmarks.word_pieces --work DIR --easy-vqa DIR [--sets docstrings easy_vqa] [--parts val test]

The plan, written before anything was trained:

Sets       docstrings: the first 256 characters of docstrings of functions and classes of eight installed packages, each
           text once, a thousand of each package by hash; which package is it from? 70, 15 and 15 % by hash of the file.
           easy_vqa: question and picture (32 x 32) to the answer, the first 8,000 questions; its own test part, a tenth
           of the training pictures validates.
Pieces     byte-level BPE of the `tokenizers` package, at most 1,024 pieces with the 256 bytes, seen at least twice,
           learned from the texts of the training part; nothing is out of vocabulary. One piece is one position, where
           of bytes four are: the tables have as many rows.
Model      one block of width 32, four experts of hidden width 64 for bytes; of pieces that width with which the whole
           model is nearest in parameters. Pictures by convolutions, patches of 8. Nothing else differs.
Settings   `SETS`: first ten and six epochs, halved while the first run was in its fourth, for a training was to take no
           more than four minutes. Learning rate 0.002, three seeds, epoch by validation loss.
Linear     of docstrings: logistic regression on words and pairs of them (tf-idf), C by validation loss.
Compared   accuracy on val, mean over seeds; 95 % of 1,000 draws of its records, paired. The epoch is chosen on the same
           part, for both alike.
Decided    pieces become an option of a text modality if they are ahead by the whole interval on one set and nowhere
           behind by the whole interval. Otherwise they go. The test part is scored once, behind this, and decides
           nothing.
Beside     CPU seconds of training, and positions a text.

Runs are ordinary jobs in one process; one that is in DIR already is not repeated. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn

from benchmarks.common import last_line, table
from benchmarks.encoders import HIDDEN, MODEL, RATE, parameters
from data_shards import DatasetSchema, ModalitySpec, Record, StepLoader, TaskSpec, TextGroup, open_manifest, pack
from data_shards.sources.base import Source, SourceOptions, hashed_part
from data_shards.sources.easy_vqa import EasyVQA, EasyVQAOptions
from parallel.moe.segments import Segments
from trainer.checkpoints.evaluation_recipe import evaluation_config
from trainer.checkpoints.find import open_checkpoint
from trainer.config.run_config import RunConfig
from trainer.inference.predictor import Predictor
from trainer.inference.request import Request
from trainer.metrics.bootstrap.intervals import draw_weights, interval
from trainer.metrics.bootstrap.measures import task_measures
from trainer.models.encoders import build
from trainer.models.encoders.layout import GroupLayout, PresentPairs
from trainer.models.encoders.text import TextEncoder, TextLayout
from trainer.models.layers.attention import read_segments
from trainer.models.layers.embedding import Embedding
from trainer.models.layers.ragged import ragged

PACKAGES = ("numpy", "scipy", "sklearn", "pandas", "torch", "matplotlib", "sympy", "networkx")
EACH, SHORTEST, LONGEST = 1000, 40, 256  # docstrings of a package; characters
PIECES, POSITIONS = 1024, 128
RIDGES = (0.1, 1.0, 10.0, 100.0)
SETS = {  # the text, the task, epochs
    "docstrings": ("text", "package", 5),
    "easy_vqa": ("question", "answer", 3),
}


class Docstrings(Source):
    """One record a docstring."""

    schema = DatasetSchema(
        "docstrings", (ModalitySpec("text", "text"),), (TaskSpec("package", "multiclass", classes=PACKAGES),)
    )

    def units(self) -> Sequence[Any]:
        return range(len(PACKAGES))

    def read(self, unit: Any, notes: Counter[str]) -> Iterator[Record]:
        for number, (text, file) in enumerate(docstrings_of(PACKAGES[unit])):
            part = hashed_part(f"{PACKAGES[unit]}/{file}", (("train", 0.7), ("val", 0.15), ("test", 0.15)))
            yield Record(f"{PACKAGES[unit]}-{number:04d}", {"text": text}, {"package": float(unit)}, {"default": part})


def docstrings_of(package: str) -> list[tuple[str, str]]:
    """(text, file) of functions and classes of a package, but for those of its tests."""
    spec = find_spec(package)
    assert spec is not None and spec.origin is not None
    root = Path(spec.origin).parent
    found: dict[str, str] = {}
    for path in sorted(root.rglob("*.py")):
        file = path.relative_to(root).as_posix()
        for node in ast.walk(ast.parse(path.read_bytes())) if "test" not in file else ():
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                text = ast.get_docstring(node) or ""
                if len(text) >= SHORTEST:
                    found.setdefault(text[:LONGEST], file)
    return sorted(found.items(), key=lambda item: hashlib.sha256(item[0].encode()).digest())[:EACH]


def learned(texts: Sequence[str]) -> Tokenizer:
    """Byte-level BPE."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=PIECES, min_frequency=2, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


@dataclass(frozen=True)
class PieceLayout(TextLayout):
    """The piece of each position, too."""

    piece_R: Tensor


class PieceEncoder(TextEncoder):
    """The text encoder with a row for each piece."""

    def __init__(self, tokenizer: Tokenizer, positions: int, config: Any, dim: int, blocks: int) -> None:
        super().__init__(positions, config.model_copy(update={"stride": 1}), dim, blocks)
        self.tokenizer = tokenizer
        self.byte = Embedding(tokenizer.get_vocab_size(), dim)
        nn.init.normal_(self.byte.weight)

    def lay_out(self, group: TextGroup, block_P: Tensor, blocks: int, present: PresentPairs | None) -> PieceLayout:
        data, offsets = group.bytes_O.numpy().tobytes(), group.offsets.tolist()
        texts = [data[start:end].decode() for start, end in pairwise(offsets)]
        ids = [encoded.ids for encoded in self.tokenizer.encode_batch(texts)]
        pair_R = torch.repeat_interleave(torch.tensor([len(own) for own in ids], dtype=torch.int64))
        piece_R = torch.tensor([piece for own in ids for piece in own], dtype=torch.int64)
        return PieceLayout(Segments.of(pair_R, len(ids), ascending=True), ragged(pair_R, len(ids)), piece_R)

    def forward(self, group: TextGroup, layout: GroupLayout) -> Tensor:
        texts = layout.own
        assert isinstance(texts, PieceLayout)
        pair_R, count_P = texts.by_pair.segment_N, texts.by_pair.counts
        place_R = torch.arange(len(pair_R)) - (count_P.cumsum(0) - count_P).long()[pair_R]
        x_RD = self.byte(texts.piece_R) + self.position(place_R.clamp_max(self.position.num_embeddings - 1))
        for layer in self.layers:
            x_RD = layer(x_RD, texts.sequences)
        x_RD, query_PTD = self.norm(x_RD), layout.pairs.segments.spread(self.query_MTD)
        return query_PTD + read_segments(x_RD, self.value(x_RD), texts.by_pair, query_PTD)


def recipe(name: str, units: str, hidden: int, work: Path, seed: int) -> RunConfig:
    """Of one run."""
    _, task, epochs = SETS[name]
    training: dict[str, Any] = {"epochs": epochs, "batch_size": 32, "seed": seed, "eval_batch_size": 64}
    training |= {"storage": str(work / "runs"), "log_every": 1000, "tasks": [task]}
    model = {**MODEL, "text": {"positions": POSITIONS}, "image": {"network": "convolutions", "patch": 8}}
    model |= {"moe": {"experts": 4, "top_k": 2, "hidden": hidden}}
    tree = {"name": f"{name}_{units}_{seed}", "data": {"url": str(work / "data" / name), "workers": 0}}
    tree |= {"model": model, "optim": {"lr": RATE}, "training": training, "tracking": {"mlflow": False}}
    return RunConfig.model_validate(tree)


def texts_of(config: RunConfig, part: str) -> tuple[list[str], list[float]]:
    """Texts and labels of a part of the packed data, in their order."""
    modality, task, _ = SETS[Path(config.data.url).name]
    manifest = open_manifest(config.data.url)
    number, texts, labels = manifest.schema.numbers[modality], list[str](), list[float]()
    loader = StepLoader(manifest, config.data, part, 256, 0, 1, shuffle=False, schema=manifest.schema)
    for batch in (batch for step in loader.steps(0) for batch in step.micro_batches):
        group = batch.groups["text"]
        assert isinstance(group, TextGroup) and group.modality_P.unique().tolist() == [number]
        assert group.sample_P.tolist() == list(range(len(batch))), "every record has its text"
        data = group.bytes_O.numpy().tobytes()
        texts += [data[start:end].decode() for start, end in pairwise(group.offsets.tolist())]
        labels += batch.targets[task][:, 0].tolist()
    return texts, labels


def trained(config: RunConfig) -> tuple[Path, float]:
    """The folder of a run that has ended, and its CPU seconds; 0 if it was there already."""
    from trainer.jobs.job import run
    from trainer.worker.context import SingleContext

    folder, start = Path(config.training.storage) / config.name, time.process_time()
    if (folder / "result.json").is_file():
        return folder, 0.0
    run(config, SingleContext())
    seconds = time.process_time() - start
    print(f"{config.name} has run in {seconds:.0f} s", flush=True)
    return folder, seconds


def answers(folder: Path, task: str, part: str) -> tuple[Tensor, Tensor]:
    """Logits (B, C) and targets (B, 1) of a part, by the run's best checkpoint."""
    checkpoint = open_checkpoint(str(folder))
    predictor = Predictor(Request(evaluation_config(checkpoint, part=part), part), checkpoint)
    found = [predictor(stretch)[0] for stretch in predictor.stretches()]
    logits = [row for one in found for row in one[f"{task}.logits"].to_pylist()]
    targets = [row for one in found for row in one[f"{task}.target"].to_pylist()]
    return torch.tensor(logits), torch.tensor(targets, dtype=torch.float32).reshape(len(targets), -1)


def linear_logits(config: RunConfig, part: str) -> Tensor:
    """(B, C) of a part, of the model on words."""
    (train, label), (val, wanted) = texts_of(config, "train"), texts_of(config, "val")
    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    x, x_val = words.fit_transform(train), words.transform(val)
    fitted = [LogisticRegression(C=ridge, max_iter=1000).fit(x, label) for ridge in RIDGES]
    losses = [log_loss(wanted, model.predict_proba(x_val), labels=model.classes_) for model in fitted]
    best = fitted[int(np.argmin(losses))]
    return torch.as_tensor(best.decision_function(words.transform(texts_of(config, part)[0])))


def compare(name: str, source: Source, work: Path, seeds: Sequence[int], parts: Sequence[str]) -> dict[str, float]:
    """Train, score, print."""
    task = SETS[name][1]
    data = work / "data" / name
    if not (data / "manifest.json").is_file():
        pack(source, str(data), chunk_records=64)
    schema = open_manifest(str(data)).schema
    texts = texts_of(recipe(name, "bytes", HIDDEN, work, 0), "train")[0]
    tokenizer = learned(texts)
    lengths = {"bytes": float(np.mean([-(-len(text.encode()) // 4) for text in texts]))}
    lengths["pieces"] = float(np.mean([len(tokenizer.encode(text).ids) for text in texts]))

    def pieces(*arguments: Any) -> PieceEncoder:
        return PieceEncoder(tokenizer, *arguments)

    wanted, drawn, sizes, spent = 0, {part: {} for part in parts}, {}, {}  # type: ignore[var-annotated]
    for units in ("bytes", "pieces"):
        with mock.patch.object(build, "TextEncoder", TextEncoder if units == "bytes" else pieces):
            found = {width: parameters(recipe(name, units, width, work, 0)) for width in range(16, 257, 4)}
            wanted = wanted or found[HIDDEN]
            hidden = min(found, key=lambda width: abs(found[width] - wanted))
            sizes[units] = found[hidden]
            for seed in seeds:
                folder, seconds = trained(recipe(name, units, hidden, work, seed))
                spent.setdefault(units, []).append(seconds)
                for part in parts:
                    logits_BC, truth = answers(folder, task, part)
                    measures = task_measures(schema.task(task), logits_BC, truth)
                    drawn[part].setdefault(units, []).append(measures["accuracy"](draw_weights(len(truth))))
    figures = {}
    for part in parts:
        if name == "docstrings":
            plain = recipe(name, "bytes", HIDDEN, work, 0)
            logits_BC, truth = linear_logits(plain, part), torch.tensor(texts_of(plain, part)[1])[:, None]
            measures = task_measures(schema.task(task), logits_BC, truth)
            drawn[part]["linear"] = [measures["accuracy"](draw_weights(len(truth)))]
        means = {units: np.mean(values, axis=0) for units, values in drawn[part].items()}
        lines = []
        for units, mean_R in means.items():
            value, base = interval(mean_R), interval(mean_R - means["bytes"])
            assert value is not None and base is not None
            against = "" if units == "bytes" else f"{base.value:+.4f} ({base.low:+.4f} to {base.high:+.4f})"
            shown = f"{value.value:.4f} ({value.low:.4f} to {value.high:.4f})"
            each = ", ".join(f"{one[0]:.4f}" for one in drawn[part][units])
            seconds = f"{np.mean(spent[units]):.0f}" if units in spent else ""
            length = f"{lengths[units]:.1f}" if units in lengths else ""
            lines.append((units, sizes.get(units, ""), length, seconds, shown, against, each))
            figures[f"{name}, {part}, {units}"] = value.value
        print(f"{name}, {part}: accuracy; {tokenizer.get_vocab_size()} pieces")
        table(("units", "parameters", "positions", "CPU s", "95 %", "- bytes", "each seed"), lines)
    return figures


def main() -> None:
    """Parse and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for data and runs, which are kept")
    parser.add_argument("--easy-vqa", type=Path, help="folder of easy-VQA")
    parser.add_argument("--sets", nargs="+", choices=tuple(SETS), default=list(SETS))
    parser.add_argument("--parts", nargs="+", choices=("val", "test"), default=["val"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, float] = {}
    for name in chosen.sets:
        options = EasyVQAOptions(path=str(chosen.easy_vqa), size=32, records=8000) if name == "easy_vqa" else None
        source = EasyVQA(options) if options else Docstrings(SourceOptions())
        figures |= compare(name, source, chosen.work.absolute(), chosen.seeds, chosen.parts)
    last_line("word_pieces", figures, seeds=chosen.seeds)


if __name__ == "__main__":
    main()
