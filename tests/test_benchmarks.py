"""Benchmarks that cannot be run everywhere still have to work where they can be."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch

from benchmarks.layer import LoopMoE
from benchmarks.on_gpu import layer, page, step
from benchmarks.on_gpu.clock import Taken, count_waits
from benchmarks.planted_times import CASES, Outcome, Trial, show, trials
from data_shards import create_source
from trainer.metrics.bootstrap.intervals import Interval

WITHOUT = """
import importlib.abc, runpy, sys

GONE = ("ray", "deepspeed", "mlflow", "webdataset", "torchmetrics")

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in GONE:
            raise ModuleNotFoundError(name + " is not installed here")

sys.meta_path.insert(0, Absent())
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in GONE else found(name, package)
sys.argv = ["gpu", "--device", "cpu", "--rounds", "1", *sys.argv[1:]]
runpy.run_module("benchmarks.gpu", run_name="__main__")
"""
CPU = torch.device("cpu")
STEPS = ("natural", "natural, recomputed", "dealt", "dealt, recomputed")
KINDS = ("ours", "ours dealt", "grouped_mm", "loop")


def gpu_benchmark(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_gpu_benchmark_needs_nothing_but_torch_and_runs_on_a_cpu() -> None:
    done = gpu_benchmark("--engine", "plain")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["benchmark"], result["device"], result["engine"], result["failed"]) == ("gpu", "cpu", "plain", {})
    assert set(result["ratios"]) == {f"mfu, {name}" for name in STEPS} | {f"{kind}, small" for kind in KINDS}
    assert all(value > 0 for value in result["ratios"].values())
    assert "engine plain; MFU target 30%" in done.stdout and "target 400" in done.stdout
    assert f"| {' | '.join(page.LAYER_COLUMNS)} |" in done.stdout.splitlines()


def test_without_deepspeed_another_engine_has_to_be_asked_for() -> None:
    done = gpu_benchmark()
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.strip() == (
        "error: DeepSpeed is not installed here; --engine plain runs the same passes with its own AdamW"
    )


def test_a_shape_of_ones_own_and_what_there_is_no_time_for() -> None:
    done = gpu_benchmark("--engine", "plain", "--thiek", "64,32,16,4,2", "--seconds", "0")
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["ratios"] == {}
    named = [*(f"{kind}, given" for kind in KINDS), *STEPS]
    assert result["failed"] == dict.fromkeys(named, "no time")
    assert "| given | 64,32,16,4,2 | loop | no time |  |  |  |  |  |" in done.stdout.splitlines()


def test_arithmetic_of_a_layer_is_that_of_two_matrices() -> None:
    shape = layer.SHAPES["protocol"]
    assert shape == (32768, 4096, 1024, 128, 8)
    assert layer.forward_flops(shape) == 4_398_046_511_104
    case = layer.LayerCase(
        "protocol", shape, "ours", Taken(0.01, 2**30, Counter(x=1)), Taken(0.04, 2**31, Counter(x=3))
    )
    assert [round(rate / 1e12, 1) for rate in case.rates] == [439.8, 293.2, 329.9]
    row = page.layer_row(case, 660e12)
    assert row[2:] == ["ours", "439.8", "293.2", "329.9", "50%", "2.00", "3"]


def test_a_step_in_a_row() -> None:
    taken = Taken(0.2, 3 * 2**30, Counter({"trainer/x.py:1": 2}))
    case = step.StepCase(step.BILLION, 10**9, 32768, 60e12, True, True, taken)
    assert page.step_row(case, 1000e12) == ["dealt, recomputed", "200", "300", "30.0%", "3.00", "2"]
    case.taken, case.failed = None, "out of memory"
    assert page.step_row(case, 1000e12) == ["dealt, recomputed", "out of memory", "", "", "", ""]
    waited = [taken, None, Taken(1, 0, Counter({"trainer/x.py:1": 1, "b.py:2": 7}))]
    assert page.where_waited(waited) == ["b.py:2 7", "trainer/x.py:1 2"]


def test_the_plain_peer_gives_what_the_loop_gives() -> None:
    torch.manual_seed(0)
    peer, loop = layer.GroupedMoE(32, 16, 4, 2).bfloat16(), LoopMoE(32, 16, 4, 2).bfloat16()
    with torch.no_grad():
        loop.gate.weight.copy_(peer.gate_DE.t())
        for e, (first, _, second) in enumerate(loop.experts):
            first.weight.copy_(peer.w1_EDF[e].t())
            second.weight.copy_(peer.w2_EFD[e].t())
            first.bias.zero_()
            second.bias.zero_()
    x = torch.randn(64, 32).bfloat16()
    torch.testing.assert_close(peer(x), loop(x), atol=0.03, rtol=0.03)


def test_weights_of_our_layer_are_drawn_and_its_gate_is_as_it_begins() -> None:
    drawn = dict(our := layer.our_layer((8, 64, 32, 4, 2), CPU, dealt=False).named_parameters())
    assert our and drawn["experts.w1"].std().item() == pytest.approx(64**-0.5, rel=0.05)
    assert drawn["experts.w2"].std().item() == pytest.approx(32**-0.5, rel=0.05)
    assert float(drawn["router.gate.log_temperature"].detach()) == 0 and not drawn["experts.w3"].any()


@pytest.mark.parametrize("dealt", [False, True])
def test_half_of_the_modalities_are_present_and_routing_is_natural_or_dealt(dealt: bool) -> None:
    model, batch, tokens, flops = step.built(CPU, step.SMALL, "plain")
    assert batch.present_BM.shape == (8, 8) and batch.present_BM.sum(1).tolist() == [4] * 8 and flops > 0
    assert tokens == 8 * (4 * 16 + 4)  # 16 bins of what is present, an indicator of what is not
    step.deal(model, dealt)
    counts = [stats.count_ME.sum(0).tolist() for stats in model(batch).routing]
    # 544 tokens x 2 over 4 experts.
    assert (counts == [[272.0] * 4] * 2) == dealt


def weights_after(engine: str, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """All weights, before and after so many steps."""
    model, batch, _, _ = step.built(CPU, step.SMALL, engine)
    before = torch.cat([p.detach().flatten().float() for p in model.parameters()])
    trains = step._engine(model, model.config.moe, CPU, engine)
    for _ in range(steps):
        step.one_step(trains, batch, model.config.moe)
    after = torch.cat([p.detach().flatten().float() for p in model.parameters()])
    trains.close()
    return before, after


def test_the_plain_engine_learns_as_the_engine_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    # Steps that bf16 can show; two of them, as the first is the gradient's sign only.
    monkeypatch.setattr(step, "LR", 0.02)
    (first, plain), (same, ours) = weights_after("plain", 2), weights_after("deepspeed", 2)
    assert torch.equal(first, same)
    moved, apart = (ours - first).norm(), (ours - plain).norm()
    assert moved > 1 and apart / moved < 0.05


def test_waits_are_counted_by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def call() -> None:
        for _ in range(3):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)

    found = count_waits(call)
    (place,) = found
    assert found.total() == 3 and place.startswith("tests/test_benchmarks.py:") and modes == ["warn", "default"]
    assert "called a sync" in Path(__file__).read_text("utf-8").splitlines()[int(place.split(":")[1]) - 1]


def test_planted_times_asks_for_every_label_and_its_controls_and_gives_shares_of_the_best() -> None:
    found = trials(["image"])
    assert len(found) == len(set(found)) == 2 * 5 + 2 * 3 + 2 * 2
    for trial in found:  # the source takes all of them
        source = create_source("planted_times", trial.options(8, 0) | dict(CASES[trial.label].options))
        assert source.schema.modalities[0].kind == trial.kind
    forms = {"plain": 0.9, "shuffled": 0.51, "late random": 0.91, "late label": 0.93}
    best = {"auroc": 0.95, "accuracy": 0.95}
    outcomes = {
        Trial("when", "text", form): Outcome(area, 0.5, best, Interval(area, 0.4, 1.0)) for form, area in forms.items()
    }
    assert show(outcomes) == pytest.approx(
        {"when, text": 0.9 / 0.95, "when, text, shuffled": 0.51, "when, text, late label - late random": 0.02}
    )
