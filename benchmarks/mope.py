"""What prompts on frozen backbones are worth, against what they are compared with.

    python -m benchmarks.mope towers  --work DIR --data data/easy_vqa      # the two towers, each trained alone
    python -m benchmarks.mope one_tower --cases image ...                  # one of them
    python -m benchmarks.mope vqa     --work DIR --data data/easy_vqa [--seeds 0 1 2]
    python -m benchmarks.mope scaling --work DIR --data data/easy_vqa      # experts against length, with a figure
    python -m benchmarks.mope icu     --work DIR --data data/physionet2012 [--host RUN]
    python -m benchmarks.mope cost

vqa      accuracy on easy-VQA's test pictures; static prompts and LoRA have as many parameters as MoPE; shuffled =
         prompts made from another record's question
scaling  accuracy by trained parameters: k experts of fixed length, against static prompts of growing length
icu      a model trained for in-hospital death, tuned for stays of more than a week: MoPE, all parameters, the head on
         every layer, the head on the pooled vector only, ...
cost     seconds and peak memory of a step on the same random towers, small and larger; `cached`: with mope.cache, the
         vectors of the tower that is not prompted are known from the second epoch on

Runs are ordinary jobs in one process; a run that is in DIR already is not repeated, so a benchmark continues where it
was stopped.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import last_line, table
from data_shards import Batch, DatasetSchema, Group, ImageGroup, ModalitySpec, TaskSpec, TextGroup, open_manifest
from data_shards.paths import absolute_url
from data_shards.records.statistics import ModalityStatistics, SplitStatistics
from trainer.config.recipe import load_recipe
from trainer.config.run_config import RunConfig

# width, layers, picture's side, patch, bytes of a text
SIZES = {"small": (256, 6, 64, 8, 40), "large": (384, 12, 112, 16, 96)}


def measured(config: RunConfig) -> dict[str, Any]:
    """Metrics of a finished run; from its folder if it has been run."""
    from trainer.jobs.job import run
    from trainer.worker.context import SingleContext

    done = Path(config.run_dir) / "measured.json"
    if done.is_file():
        return dict(json.loads(done.read_text()))
    start = time.process_time()
    result = run(config, SingleContext())
    facts = {**result["metrics"], "cpu_s": time.process_time() - start, "steps": result["step"]}
    facts |= logged(Path(config.run_dir), "parameters/trained", "parameters/total", "best/val/auroc")
    done.write_text(json.dumps(facts))
    print(f"{config.name}: {json.dumps(facts)}", flush=True)
    return facts


def logged(run: Path, *names: str) -> dict[str, float]:
    """Last logged values of metrics."""
    found: dict[str, float] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        metrics = json.loads(line).get("metrics", {})
        found |= {name: metrics[name] for name in names if name in metrics}
    return found


def recipe(name: str, chosen: argparse.Namespace, run: str, *changes: str) -> RunConfig:
    return load_recipe(
        name,
        [
            f"name={run}",
            f"data.url={chosen.data}",
            f"training.storage={chosen.work}",
            "tracking.mlflow=false",
            "parallel.workers=1",
            "parallel.expert_parallel=1",
            "training.log_every=50",
            *changes,
        ],
    )


def towers(chosen: argparse.Namespace, only: list[str] | None = None) -> tuple[str, str]:
    """Both towers of easy-VQA, each trained on one modality."""
    for kind in only or ("image", "text"):
        measured(recipe(f"easy_vqa_{kind}", chosen, f"easy_vqa_{kind}"))
    return f"{chosen.work}/easy_vqa_image", f"{chosen.work}/easy_vqa_text"


def vqa_run(chosen: argparse.Namespace, name: str, seed: int, *changes: str) -> dict[str, Any]:
    image, text = towers(chosen)
    sources = (f"mope.image.source={image}", f"mope.text.source={text}")
    steps = (f"training.max_steps={chosen.steps}", f"training.eval_every={chosen.steps}")
    return measured(
        recipe("mope_easy_vqa", chosen, f"{name}-{seed}", f"training.seed={seed}", *sources, *steps, *changes)
    )


def vqa(chosen: argparse.Namespace) -> None:
    """MoPE and what it is compared with, over seeds."""
    towers(chosen)
    prompts = prompt_parameters(chosen)
    layers, width = 4, 64
    cases: dict[str, tuple[str, ...]] = {
        "mope": (),
        "late_fusion": ("mope.method=late_fusion",),
        "static": ("mope.method=static", f"mope.static_length={round(prompts / (layers * width))}"),
        "lora": ("mope.method=lora", f"mope.lora_match={prompts}"),
        "shuffled": ("mope.context=shuffled",),
        "head": ("mope.method=head", "mope.head_input=host"),
        "late_fusion_mlp": ("mope.method=late_fusion", f"mope.head_hidden={round(prompts / (2 * width + 13))}"),
        "mope_no_static": ("mope.method=mope_no_static",),
        "mapped": ("mope.method=mapped",),
        "dynamic": ("mope.method=dynamic",),
    }
    rows: dict[str, list[dict[str, Any]]] = {}
    for seed in chosen.seeds:
        for name in chosen.cases or list(cases)[:7]:
            rows.setdefault(name, []).append(vqa_run(chosen, name, seed, *cases[name]))
    report("mope vqa", rows, "test/accuracy", {"seeds": chosen.seeds})


def prompt_parameters(chosen: argparse.Namespace) -> int:
    """What MoPE trains beside the head, at the settings of the recipe."""
    from trainer.models.mope.towers.model import TowerModel

    manifest, found = open_manifest(chosen.data), recipe("mope_easy_vqa", chosen, "count").mope
    assert found is not None
    for kind in ("image", "text"):
        section = recipe(f"easy_vqa_{kind}", chosen, "count").mope
        setattr(found, kind, getattr(section, kind))
    with torch.device("meta"):
        model = TowerModel(manifest.schema, ["answer"], manifest.statistics["default"], found, 0)
    return sum(p.numel() for name, p in model.named_parameters() if p.requires_grad and not name.startswith("heads."))


def scaling(chosen: argparse.Namespace) -> None:
    """Experts at fixed length, against length without experts."""
    points: dict[str, list[tuple[float, float]]] = {"experts": [], "length": []}
    rows: dict[str, list[dict[str, Any]]] = {}
    for k in (1, 2, 4, 8, 16):
        name = f"k{k}"
        rows[name] = [vqa_run(chosen, name, seed, f"mope.k={k}", "mope.method=dynamic") for seed in chosen.seeds]
        points["experts"].append(mean_point(rows[name]))
    for length in (6, 12, 24, 48, 96):
        name = f"length{length}"
        rows[name] = [
            vqa_run(chosen, name, seed, "mope.method=static", f"mope.static_length={length}") for seed in chosen.seeds
        ]
        points["length"].append(mean_point(rows[name]))
    scaling_figure(points, Path(chosen.work) / "expert_scaling.png")
    sizes, scores = zip(*points["length"], strict=True)
    # Length at as many parameters as the experts have, between two measured lengths; beyond the longest, the longest.
    gains = [round(score - float(np.interp(size, sizes, scores)), 4) for size, score in points["experts"]]
    report("mope scaling", rows, "test/accuracy", {"seeds": chosen.seeds, "points": points, "gain_at_equal": gains})


def mean_point(runs: list[dict[str, Any]]) -> tuple[float, float]:
    return runs[0]["parameters/trained"], sum(run["test/accuracy"] for run in runs) / len(runs)


def scaling_figure(points: dict[str, list[tuple[float, float]]], path: Path) -> None:
    """Accuracy by trained parameters, a line each."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.4))
    axes = figure.add_subplot()
    labels = {"experts": "k = 1, 2, 4, 8, 16 experts of 4 rows", "length": "6 to 96 rows, no experts"}
    for name, line in points.items():
        axes.plot([x for x, _ in line], [y for _, y in line], marker="o", label=labels[name])
    axes.set(xlabel="trained parameters, head included", ylabel="test accuracy, easy-VQA")
    axes.legend(loc="lower center", bbox_to_anchor=(0.45, 1), ncols=2, fontsize="small", frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def icu(chosen: argparse.Namespace) -> None:
    """A model for in-hospital death, tuned for long stays."""
    host = chosen.host
    if host is None:
        measured(recipe("icu_physionet2012", chosen, "icu"))
        host = f"{chosen.work}/icu"
    changes = {
        "mope": (),
        "head": ("mope.method=head", "mope.gate=false"),
        "head_last": ("mope.method=head", "mope.gate=false", "mope.head_layers=last"),
        "mope_last": ("mope.head_layers=last",),
        "static": ("mope.method=static",),
        "full": ("mope.method=full", "mope.gate=false", "mope.head_layers=last", "optim.lr=0.0005"),
        "full_all": ("mope.method=full", "mope.gate=false", "optim.lr=0.0005"),
        "shuffled": ("mope.context=shuffled",),
    }
    rows: dict[str, list[dict[str, Any]]] = {}
    for name in chosen.cases or ["mope", "full", "head"]:
        for seed in chosen.seeds:
            settings = (
                f"mope.host={host}",
                f"training.seed={seed}",
                f"training.epochs={chosen.epochs}",
                *changes[name],
            )
            rows.setdefault(name, []).append(measured(recipe("mope_icu", chosen, f"icu-{name}-{seed}", *settings)))
    validation = {name: sum(run["best/val/auroc"] for run in runs) / len(runs) for name, runs in rows.items()}
    report("mope icu", rows, "test/auroc", {"seeds": chosen.seeds, "validation": validation})


def report(name: str, rows: dict[str, list[dict[str, Any]]], metric: str, more: dict[str, Any]) -> None:
    """Mean and spread of a metric, parameters, CPU seconds of a run."""
    lines, means = [], {}
    for case, runs in rows.items():
        values = [run[metric] for run in runs]
        means[case] = sum(values) / len(values)
        trained = runs[0].get("parameters/trained", runs[0].get("parameters/total", 0))
        seconds = sum(run["cpu_s"] for run in runs) / len(runs)
        lines.append([case, means[case], max(values) - min(values), int(trained), seconds])
    table(("case", metric, "max - min", "trained", "CPU s"), lines)
    sizes = {str(line[0]): line[3] for line in lines}
    last_line(name, {}, metric=metric, means={k: round(v, 4) for k, v in means.items()}, trained=sizes, **more)


def cost(chosen: argparse.Namespace) -> None:
    """Seconds and peak memory of a step at two sizes, each method in a process of its own, twice, in turns."""
    lines: list[list[Any]] = []
    ratios: dict[str, float] = {}
    seconds: dict[str, float] = {}
    for size in SIZES:
        found: dict[str, dict[str, Any]] = {}
        for method in 2 * tuple(chosen.cases or ("mope", "mope_cached", "full", "lora", "head", "head_cached")):
            command = [sys.executable, "-m", "benchmarks.mope", "one_step", "--cases", method, size]
            facts = json.loads(subprocess.check_output(command, text=True).splitlines()[-1])
            before = found.get(method, facts)
            found[method] = facts | {name: min(before[name], facts[name]) for name in ("step_s", "memory_mib")}
        lines += [
            [size, name, facts["step_s"], facts["memory_mib"], facts["trained"], facts["frozen"]]
            for name, facts in found.items()
        ]
        for name in ("mope", "mope_cached"):
            if {name, "full"} <= set(found):
                ratios[f"{size}: time {name}/full"] = found[name]["step_s"] / found["full"]["step_s"]
                ratios[f"{size}: memory {name}/full"] = found[name]["memory_mib"] / found["full"]["memory_mib"]
        seconds |= {f"{size} {name}": facts["step_s"] for name, facts in found.items()}
    table(("towers", "method", "CPU s a step", "MiB above the model", "trained", "frozen"), lines)
    last_line("mope cost", ratios, **seconds)


def cost_model(method: str, size: str) -> Any:
    """A method on random towers; `..._cached`: what the text tower says about the records is known."""
    from trainer.config.mope import MopeConfig
    from trainer.models.mope.towers.model import TowerModel

    width, layers, side, patch, length = SIZES[size]
    inside = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": width // 64}
    inside["intermediate_size"] = 4 * width
    tree = {
        "method": method.removesuffix("_cached"),
        "image": {"family": "vit", "config": {**inside, "image_size": side, "patch_size": patch}},
        "text": {"family": "bert", "config": {**inside, "vocab_size": 260, "max_position_embeddings": 128}},
        "head_input": "both",  # or nothing would run the text tower but MoPE, and "full" would be half of the work
    }
    schema = DatasetSchema(
        "pairs",
        (ModalitySpec("image", "image", shape=(3, side, side), dtype="uint8"), ModalitySpec("text", "text")),
        (TaskSpec("answer", "multiclass", classes=tuple("abc")),),
    )
    plain = ModalityStatistics(1, (1,) * 3, (128.0,) * 3, (64.0,) * 3, (0.0,) * 3, (255.0,) * 3)
    words = ModalityStatistics(1, (1,), (float(length),), (1.0,), (1.0,), (128.0,))
    statistics = SplitStatistics(1, {"image": plain, "text": words})
    return TowerModel(schema, ["answer"], statistics, MopeConfig.model_validate(tree), 0).train()


def one_step(chosen: argparse.Namespace) -> None:
    """One method at one size: CPU seconds of the fastest of some steps, and the most memory they take above the model.

    The fastest, because whatever else a machine does makes steps slower and never faster.
    """
    method, size = chosen.cases
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = cost_model(method, size)
    _, _, side, _, length = SIZES[size]
    records = made_up(16, side, length)
    if method.endswith("_cached"):
        model.prepare([records], len(records))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    before, seconds = resident_mib(), []
    forget_peak()
    for _ in range(6):
        start = time.process_time()
        output = model(records)
        loss = torch.nn.functional.cross_entropy(output.logits["answer"], records.targets["answer"][:, 0].long())
        sum(output.losses.values(), loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.process_time() - start)
    facts = {
        "step_s": min(seconds[1:]),
        "memory_mib": peak_mib() - before,
        "trained": sum(p.numel() for p in trained),
        "frozen": sum(p.numel() for p in model.parameters() if not p.requires_grad),
    }
    print(json.dumps(facts))


def made_up(records: int, side: int, length: int = 40) -> Batch:
    """Random pictures and texts."""
    rows = torch.arange(records)
    picture = ImageGroup(rows * 0, rows, torch.randint(0, 256, (records, 3, side, side), dtype=torch.uint8))
    data = torch.randint(97, 123, (records * length,), dtype=torch.uint8)
    text = TextGroup(rows * 0 + 1, rows, torch.arange(records + 1) * length, data)
    groups: dict[str, Group] = {f"image/3x{side}x{side}": picture, "text": text}
    target = {"answer": torch.randint(0, 3, (records, 1)).float()}
    return Batch([str(row) for row in rows], rows, torch.ones(records, 2, dtype=torch.bool), target, groups)


def forget_peak() -> None:
    """The most memory used so far is now what is in use: what building a model took for a moment is not a step's."""
    Path("/proc/self/clear_refs").write_text("5")


def resident_mib() -> float:
    """Memory that this process occupies now."""
    return _status("VmRSS")


def peak_mib() -> float:
    """Most memory that this process has used since `forget_peak`."""
    return _status("VmHWM")


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["towers", "one_tower", "vqa", "scaling", "icu", "cost", "one_step"])
    parser.add_argument("--work", default="runs/benchmark_mope", help="folder of the runs")
    parser.add_argument("--data", default="data/easy_vqa", help="packed data set")
    parser.add_argument("--host", default=None, help="icu: a run to prompt instead of training one")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--cases", nargs="+", default=None, help="only these")
    parser.add_argument("--steps", type=int, default=400, help="vqa, scaling: optimiser steps of a run")
    parser.add_argument("--epochs", type=int, default=6, help="icu: epochs of a run")
    chosen = parser.parse_args()
    chosen.work, chosen.data = absolute_url(chosen.work), absolute_url(chosen.data)
    chosen.host = absolute_url(chosen.host) if chosen.host else None
    jobs: dict[str, Callable[[argparse.Namespace], Any]] = {
        "towers": towers,
        "one_tower": lambda arguments: towers(arguments, arguments.cases),
        "vqa": vqa,
        "scaling": scaling,
        "icu": icu,
        "cost": cost,
        "one_step": one_step,
    }
    jobs[chosen.what](chosen)


if __name__ == "__main__":
    from trainer.worker.console import show_logs

    show_logs(debug=False)
    main()
