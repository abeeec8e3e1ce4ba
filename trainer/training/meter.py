"""What a person sees while training: one line per logged step, and the same numbers for the tracker.

Sums stay on the device between two lines; ranks exchange them only when a line is due, so the hot loop never waits
for a number that nobody reads.
"""

from __future__ import annotations

import resource
import time
from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor

from data_shards import Batch
from parallel import RoutingStats
from trainer.models.flops import Counter as FlopCounter
from trainer.session import Session
from trainer.worker.collectives import sum_over_ranks

NOT_PARTS = {"loss", "lr", "grad_norm", "epoch", "samples_seen", "tokens_seen"}


@dataclass
class Meter:
    """Sums since the last line: loss parts (device), samples, tokens, arithmetic, seconds waited for data.

    A part of the loss is a mean over the steps that had it: a step without a label of a task says nothing of it.
    `weights` are the tasks' in the loss; `counter` counts the arithmetic of batches and `peak` is what all workers
    together could do, in FLOP/s.
    """

    device: torch.device
    counter: FlopCounter
    world: int
    peak: float
    weights: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    samples: int = 0
    waited: float = 0.0
    parts: dict[str, Tensor] = field(default_factory=dict)
    had: Counter[str] = field(default_factory=Counter)
    tokens: Tensor | None = None
    counts: list[Tensor] | None = None
    features: Tensor | None = None
    since: float = field(default_factory=time.perf_counter)
    _step_parts: dict[str, Tensor] = field(default_factory=dict)

    def add_losses(self, parts: dict[str, Tensor]) -> None:
        """This rank's share of each part of the loss of one micro-batch."""
        for name, value in parts.items():
            self._step_parts[name] = self._step_parts.get(name, torch.zeros((), device=self.device)) + value.detach()

    def end_step(self, samples: int, accepted: bool = True) -> None:
        """An optimiser step was made, on so many samples of all ranks; the losses of one that was refused count not.

        A sample is a record, or a moment of a record.
        """
        self.steps += 1
        self.samples += samples
        if accepted:
            self.had.update(self._step_parts.keys())
            for name, value in self._step_parts.items():
                self.parts[name] = self.parts[name] + value if name in self.parts else value
        self._step_parts = {}

    def add_batch(self, batch: Batch) -> None:
        """What this rank's next micro-batch, still on the CPU, asks for."""
        features = self.counter.measure(batch)
        self.features = features if self.features is None else self.features + features

    def add_routing(self, stats: list[RoutingStats]) -> None:
        """Global routing statistics of one micro-batch."""
        if not stats:  # a model without sparse experts
            return
        counts = [layer.count_ME for layer in stats]
        self.counts = counts if self.counts is None else [a + b for a, b in zip(self.counts, counts, strict=True)]
        tokens = stats[0].tokens_M.sum()
        self.tokens = tokens if self.tokens is None else self.tokens + tokens

    def read(self) -> tuple[dict[str, float], list[Tensor], int]:
        """Collective: means since the last call, the expert counts (M, E) per layer on the CPU, the tokens that a layer
        served over all ranks, and a fresh start.

        What was never there has no figure. Ranks have met the same parts, as labels are counted over all of them.
        """
        # Sorted, so that ranks add up the same parts whatever order they met them in.
        names = sorted(self.parts)
        values, tokens, counts = self._from_device(names)
        width = len(self.counter.features)
        asked = torch.zeros(width, dtype=torch.float64) if self.features is None else self.features
        # Only these are this rank's own; tokens and counts of the routing are sums over ranks already.
        shared = sum_over_ranks(torch.cat([values, asked]))
        sums = dict(zip(names, shared[: len(names)].tolist(), strict=True))
        seconds = time.perf_counter() - self.since
        flops = self.counter.step_flops(shared[len(names) :]) / seconds
        metrics = {f"train/{name}": value for name, value in self._means(sums).items()}
        if self.tokens is not None:
            metrics["perf/tokens_per_s"] = tokens / seconds
        metrics |= {
            "perf/samples_per_s": self.samples / seconds,
            "perf/step_s": seconds / max(1, self.steps),
            "perf/loader_share": self.waited / seconds,
            "perf/tflops": flops / self.world / 1e12,
            "perf/mfu": flops / self.peak,
            "perf/memory_gib": memory_gib(self.device),
        }
        self.steps, self.samples, self.waited, self.parts, self.had = 0, 0, 0.0, {}, Counter()
        self.tokens = self.counts = self.features = None
        self.since = time.perf_counter()
        return metrics, counts, tokens

    def _from_device(self, names: list[str]) -> tuple[Tensor, int, list[Tensor]]:
        """Parts, tokens and counts, in one copy: the host waits for the device once."""
        counts = self.counts or []
        kept = [self.parts[name] for name in names] + ([] if self.tokens is None else [self.tokens]) + counts
        if not kept:
            return torch.zeros(0, dtype=torch.float64), 0, []
        flat = torch.cat([value.double().flatten() for value in kept]).cpu()
        values, rest = flat[: len(names)], flat[len(names) :]
        tokens = 0 if self.tokens is None else round(float(rest[0]))
        each = rest[len(rest) - sum(count.numel() for count in counts) :].split([count.numel() for count in counts])
        return values, tokens, [one.view_as(count).to(count.dtype) for one, count in zip(each, counts, strict=True)]

    def _means(self, sums: dict[str, float]) -> dict[str, float]:
        """Each part over the steps that had it; the loss is the sum of the parts as they are weighted."""
        means = {name: value / self.had[name] for name, value in sums.items()}
        if len({self.had[name] for name in sums}) > 1 and "loss" in means:
            means["loss"] = sum(self.weights.get(name, 1.0) * mean for name, mean in means.items() if name != "loss")
        return means


def meter_of(session: Session) -> Meter:
    """A fresh meter of a job's steps."""
    counter = session.job.counter(session.config, session.schema, session.tasks, session.engine.module)
    weights = {task.name: session.config.training.task_weight(task.name) for task in session.tasks}
    return Meter(session.device, counter, session.context.world, session.peak * session.context.world, weights)


def memory_gib(device: torch.device) -> float:
    """Most memory used so far: of the device on a GPU, of this process on a CPU, in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def routing_metrics(counts: list[Tensor]) -> dict[str, float]:
    """Health of the routing, few keys: worst layer's load ratio, dead experts, evenness, modality specialisation.

    `moe/load_ratio`: tokens of the fullest expert over the mean. `moe/dead_share`: experts without any token.
    `moe/evenness`: exp(entropy of the load) / E, 1 = uniform. `moe/specialisation`: mutual information of modality and
    expert over the entropy of modality, 0 = experts do not tell modalities apart, 1 = each serves one only. Layers that
    no token met have no figures, and of one modality alone there is no specialisation.
    """
    ratios, dead, even, special = [], [], [], []
    for count_ME in (count_ME for count_ME in counts if count_ME.any()):
        joint_ME = count_ME.double() / count_ME.sum()
        load_E, modality_M = joint_ME.sum(0), joint_ME.sum(1)
        experts = len(load_E)
        ratios.append(float(load_E.max() * experts))
        dead.append(float((load_E == 0).double().mean()))
        even.append(float(_entropy(load_E).exp() / experts))
        shared = _entropy(load_E) + _entropy(modality_M) - _entropy(joint_ME.flatten())
        if int((modality_M > 0).sum()) > 1:
            special.append(float(shared / _entropy(modality_M)))
    if not ratios:
        return {}
    found = {"moe/load_ratio": max(ratios), "moe/dead_share": max(dead), "moe/evenness": min(even)}
    return found | ({"moe/specialisation": sum(special) / len(special)} if special else {})


def _entropy(p: Tensor) -> Tensor:
    return -(p * p.clamp_min(1e-30).log()).sum()


def step_line(step: int, total: int, epoch: int, metrics: dict[str, float]) -> str:
    """One step as one line; what has no figure is left out, and a loss of nothing is a dash."""
    parts = " ".join(
        f"{name.removeprefix('train/')} {value:.4g}"
        for name, value in sorted(metrics.items())
        if name.startswith("train/") and name.removeprefix("train/") not in NOT_PARTS
    )
    loss = f"{metrics['train/loss']:.4f}" if "train/loss" in metrics else "-"
    tokens = f"{metrics['perf/tokens_per_s']:.0f} tokens/s " if "perf/tokens_per_s" in metrics else ""
    routing = ""
    if "moe/load_ratio" in metrics:
        routing = f"load max/mean {metrics['moe/load_ratio']:.2f} dead {metrics['moe/dead_share']:.0%} | "
    return (
        f"step {step}/{total} epoch {epoch} loss {loss} ({parts}) lr {metrics['train/lr']:.2e} "
        f"norm {metrics['train/grad_norm']:.3g} | {metrics['perf/samples_per_s']:.0f} samples/s "
        f"{tokens}{metrics['perf/tflops']:.3g} TFLOP/s "
        f"MFU {metrics['perf/mfu']:.0%} data {metrics['perf/loader_share']:.0%} | "
        f"{routing}{metrics['perf/memory_gib']:.2f} GiB"
    )
