"""What a person sees while training: one line per logged step, and the same numbers for the tracker.

Sums stay on the device between two lines; ranks exchange them only when a line is due, so the hot loop never waits
for a number that nobody reads.
"""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from data_shards import Batch
from parallel import RoutingStats
from trainer.models.flops import Counter
from trainer.session import Session
from trainer.worker.collectives import sum_over_ranks

NOT_PARTS = {"loss", "lr", "grad_norm", "epoch", "samples_seen", "tokens_seen"}


@dataclass
class Meter:
    """Sums since the last line: loss parts (device), records, tokens, arithmetic, seconds waited for data.

    `counter` counts the arithmetic of batches and `peak` is what all workers together could do, in FLOP/s.
    """

    device: torch.device
    counter: Counter
    world: int
    peak: float
    steps: int = 0
    records: int = 0
    waited: float = 0.0
    parts: dict[str, Tensor] = field(default_factory=dict)
    tokens: Tensor | None = None
    counts: list[Tensor] | None = None
    features: Tensor | None = None
    since: float = field(default_factory=time.perf_counter)

    def add_losses(self, parts: dict[str, Tensor]) -> None:
        """This rank's share of each part of the loss of one micro-batch."""
        for name, value in parts.items():
            self.parts[name] = self.parts.get(name, torch.zeros((), device=self.device)) + value.detach()

    def add_batch(self, batch: Batch) -> None:
        """What this rank's next micro-batch asks for."""
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

    def read(self) -> tuple[dict[str, float], list[Tensor]]:
        """Collective: means since the last call, the expert counts (M, E) per layer, and a fresh start."""
        # Sorted, so that ranks add up the same parts whatever order they met them in.
        names = sorted(self.parts)
        values = torch.stack([self.parts[name] for name in names]).double().to(self.device)
        width = len(self.counter.features)
        asked = torch.zeros(width, dtype=torch.float64, device=self.device) if self.features is None else self.features
        # Only these are this rank's own; tokens and counts of the routing are sums over ranks already.
        shared = sum_over_ranks(torch.cat([values, asked]))
        means = (shared[: len(names)] / max(1, self.steps)).tolist()
        seconds = time.perf_counter() - self.since
        tokens = float(self.tokens) if self.tokens is not None else 0.0
        flops = self.counter.step_flops(shared[len(names) :]) / seconds
        metrics = {f"train/{name}": value for name, value in zip(names, means, strict=True)}
        metrics |= {
            "perf/samples_per_s": self.records / seconds,
            "perf/tokens_per_s": tokens / seconds,
            "perf/step_s": seconds / max(1, self.steps),
            "perf/loader_share": self.waited / seconds,
            "perf/tflops": flops / self.world / 1e12,
            "perf/mfu": flops / self.peak,
            "perf/memory_gib": memory_gib(self.device),
        }
        counts = [count.cpu() for count in self.counts or []]
        self.steps, self.records, self.waited, self.parts = 0, 0, 0.0, {}
        self.tokens = self.counts = self.features = None
        self.since = time.perf_counter()
        return metrics, counts


def meter_of(session: Session) -> Meter:
    """A fresh meter of a job's steps."""
    counter = session.job.counter(session.config, session.schema, session.tasks, session.engine.module)
    return Meter(session.device, counter, session.context.world, session.peak * session.context.world)


def memory_gib(device: torch.device) -> float:
    """Most memory used so far: of the device on a GPU, of this process on a CPU, in GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def routing_metrics(counts: list[Tensor]) -> dict[str, float]:
    """Health of the routing, few keys: worst layer's load ratio, dead experts, evenness, modality specialisation.

    `moe/load_ratio`: tokens of the fullest expert over the mean. `moe/dead_share`: experts without any token.
    `moe/evenness`: exp(entropy of the load) / E, 1 = uniform. `moe/specialisation`: mutual information of modality and
    expert over the entropy of modality, 0 = experts do not tell modalities apart, 1 = each serves one only.
    """
    ratios, dead, even, special = [], [], [], []
    for count_ME in counts:
        joint_ME = count_ME.double() / count_ME.sum().clamp_min(1)
        load_E, modality_M = joint_ME.sum(0), joint_ME.sum(1)
        experts = len(load_E)
        ratios.append(float(load_E.max() * experts))
        dead.append(float((load_E == 0).double().mean()))
        even.append(float(_entropy(load_E).exp() / experts))
        shared = _entropy(load_E) + _entropy(modality_M) - _entropy(joint_ME.flatten())
        special.append(float(shared / _entropy(modality_M).clamp_min(1e-9)))
    if not counts:
        return {}
    return {
        "moe/load_ratio": max(ratios),
        "moe/dead_share": max(dead),
        "moe/evenness": min(even),
        "moe/specialisation": sum(special) / len(special),
    }


def _entropy(p: Tensor) -> Tensor:
    return -(p * p.clamp_min(1e-30).log()).sum()


def step_line(step: int, total: int, epoch: int, metrics: dict[str, float]) -> str:
    """One step as one line."""
    parts = " ".join(
        f"{name.removeprefix('train/')} {value:.4g}"
        for name, value in sorted(metrics.items())
        if name.startswith("train/") and name.removeprefix("train/") not in NOT_PARTS
    )
    return (
        f"step {step}/{total} epoch {epoch} loss {metrics['train/loss']:.4f} ({parts}) lr {metrics['train/lr']:.2e} "
        f"norm {metrics['train/grad_norm']:.3g} | {metrics['perf/samples_per_s']:.0f} samples/s "
        f"{metrics['perf/tokens_per_s']:.0f} tokens/s {metrics['perf/tflops']:.3g} TFLOP/s "
        f"MFU {metrics['perf/mfu']:.0%} data {metrics['perf/loader_share']:.0%} | "
        f"load max/mean {metrics.get('moe/load_ratio', 0):.2f} dead {metrics.get('moe/dead_share', 0):.0%} | "
        f"{metrics['perf/memory_gib']:.2f} GiB"
    )
