"""Is an exported model the model? `python -m benchmarks.portable [--physionet2012 DIR] [--only NAME]`.

Three data sets: digits, the first stays of PhysioNet 2012 (left out without its folder) by the architecture of the
shipped recipe, and made-up records with pictures, codes at times and codes with values. A small model of each is
trained for an epoch, exported in every form, and asked about 200 records of the data, whose modalities are hidden by
every pattern in turn (at most 64), in batches of 25 and one by one. Printed: the largest difference of a logit from the
model of the run's checkpoint, and the CPU seconds and MB of each export.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import fleximoe
from benchmarks.common import table
from data_shards import Batch, StepLoader, open_manifest
from trainer.checkpoints.find import open_checkpoint
from trainer.config.run_config import RunConfig
from trainer.inference.export import checkpoint_model
from trainer.inference.portable.graph.model import inputs_of
from trainer.models.layers.missing import keep_modalities

RECORDS, PATTERNS, BATCH, STAYS = 200, 64, 25, 400
NAMES = ("digits", "made-up", "physionet2012")
SMALL: dict[str, Any] = {"dim": 32, "layers": 2, "heads": 4, "bins": 8, "moe": {"experts": 8, "top_k": 2}}
ICU = SMALL | {"attention": "factorized", "scale": "quantile", "series": {"statistics": "token"}}
ICU["moe"] = {"experts": 8, "top_k": 2, "gate": "laplace", "router": "per_modality"}
HORIZON = 10.0


def made_up(number: int) -> Iterator[fleximoe.Record]:
    """A picture, codes at times, codes with values and a few numbers; each is missing now and then."""
    rng = np.random.default_rng(0)
    for n in range(number):
        times = np.sort(rng.uniform(0, HORIZON, int(rng.integers(0, 6)))).astype(np.float32)
        drugs = [f"drug{rng.integers(12)}" for _ in times]
        tests = [f"test{rng.integers(8)}" for _ in range(int(rng.integers(0, 5)))]
        values: dict[str, Any] = {
            "scan": rng.integers(0, 256, (1, 16, 16)).astype(np.uint8),
            "drugs": fleximoe.Codes(drugs, times),
            "tests": fleximoe.Codes(tests, None, rng.normal(size=len(tests)).astype(np.float32)),
            "about": rng.normal(size=4).astype(np.float32),
        }
        kept = {name: value for name, value in values.items() if rng.random() < 0.8}
        yield fleximoe.Record(f"r{n}", kept or {"about": values["about"]}, {"sick": float(n % 2)})


MADE_UP = fleximoe.DatasetSchema(
    "made-up",
    (
        fleximoe.ModalitySpec("scan", "image", shape=(1, 16, 16), dtype="uint8"),
        fleximoe.ModalitySpec("drugs", "codes", timed=True, horizon=HORIZON),
        fleximoe.ModalitySpec("tests", "codes", valued=True),
        fleximoe.ModalitySpec("about", "vector", shape=(4,)),
    ),
    (fleximoe.TaskSpec("sick", "binary"),),
)


def first_stays(source: str, place: Path) -> str:
    """A folder with a part of the challenge's first set."""
    folder = place / "source"
    (folder / "set-a").mkdir(parents=True)
    with tarfile.open(Path(source, "set-a.tar.gz")) as files:
        texts = (member for member in files if member.name.endswith(".txt"))
        for member in itertools.islice(texts, STAYS):
            text = files.extractfile(member)
            assert text is not None
            (folder / "set-a" / Path(member.name).name).write_bytes(text.read())
    shutil.copy(Path(source, "Outcomes-a.txt"), folder)
    return str(folder)


def batches(run: fleximoe.Run) -> Iterator[Batch]:
    """200 records of the run's data, hidden by every pattern in turn, together and each alone."""
    data = RunConfig.of(run.recipe).data
    loader = StepLoader(open_manifest(data.url), data, "train", 1, shuffle=False)
    patterns: Any = None
    batch: Batch
    for step in itertools.islice(loader.steps(0), RECORDS):
        (batch,) = step.micro_batches
        if patterns is None:
            every = list(itertools.product((True, False), repeat=batch.present_BM.shape[1]))
            patterns = itertools.cycle(every[:: max(1, len(every) // PATTERNS)])
        yield keep_modalities(batch, torch.tensor([next(patterns)]))
    loader.close()
    loader = StepLoader(open_manifest(data.url), data, "train", BATCH, shuffle=False)
    for step in itertools.islice(loader.steps(0), RECORDS // BATCH):
        (batch,) = step.micro_batches
        yield keep_modalities(batch, torch.tensor([next(patterns) for _ in range(len(batch))]))
    loader.close()


def difference(run: fleximoe.Run, said: Callable[[Batch], Any]) -> float:
    """The largest one of a logit."""
    model, worst = checkpoint_model(open_checkpoint(run.url)), 0.0
    for batch in batches(run):
        with torch.no_grad():
            expected, found = model(batch).logits, said(batch)
        gaps = [(torch.as_tensor(found[task]) - own).abs().nan_to_num(torch.inf) for task, own in expected.items()]
        worst = max(worst, *(float(gap.max()) for gap in gaps))
    return worst


def rows_of(name: str, run: fleximoe.Run, place: Path) -> Iterator[list[str]]:
    """One row a form."""
    for form in ("safetensors", "pt2", "onnx"):
        started = time.process_time()
        report = run.export(str(place / form), format=form)
        spent = time.process_time() - started
        loaded = fleximoe.load(place / form)
        if form == "safetensors":
            worst = difference(run, lambda batch, own=loaded: own.model(batch).logits)
        else:
            worst = difference(run, lambda batch, own=loaded: own(inputs_of(batch)))
        yield [name, form, f"{worst:.2g}", f"{spent:.0f}", f"{report['bytes'] / 1e6:.1f}"]


def trained(data: fleximoe.Data, model: dict[str, Any], place: Path, **more: Any) -> fleximoe.Run:
    """For an epoch."""
    training = {"epochs": 1, "batch_size": 32, "storage": str(place / "runs"), **more}
    return fleximoe.fit(data, model=model, training=training, tracking={"mlflow": False}, name="run", progress=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--physionet2012", help="folder of the challenge's files")
    parser.add_argument("--only", choices=NAMES, help="one of the data sets")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name in NAMES if options.only is None else (options.only,):
            place = Path(folder, name)
            if name == "digits":
                run = trained(fleximoe.pack("digits", place / "data"), SMALL, place)
            elif name == "made-up":
                made = fleximoe.pack(made_up(300), place / "data", schema=MADE_UP)
                run = trained(made, SMALL, place)
            elif options.physionet2012 is None:
                continue
            else:
                icu = fleximoe.pack(
                    "physionet2012", place / "data", options={"path": first_stays(options.physionet2012, place)}
                )
                run = trained(icu, ICU, place, tasks=["in_hospital_death"])
            found += rows_of(name, run, place)
            print(*found[-3:], sep="\n", flush=True)
    table(["data", "form", "largest difference of a logit", "CPU s of the export", "MB"], found)


if __name__ == "__main__":
    main()
