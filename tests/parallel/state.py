"""Reading and writing an engine's state through its fragments, as a checkpoint would: plain arrays, no engine types."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from parallel import Engine

PARTS = ("master", "exp_avg", "exp_avg_sq")


def read_state(engine: Engine) -> list[dict[str, Any]]:
    """This rank's fragments as arrays."""
    return [
        {
            "name": f.name,
            "shape": f.shape,
            "start": f.start,
            **{part: getattr(f, part).numpy().copy() for part in PARTS},
        }
        for f in engine.fragments()
    ]


def assemble(ranks: list[list[dict[str, Any]]]) -> dict[str, dict[str, np.ndarray]]:
    """Full parameters from the fragments of all ranks; every element must be there exactly once."""
    full: dict[str, dict[str, np.ndarray]] = {}
    seen: dict[str, np.ndarray] = {}
    for fragment in (fragment for rank in ranks for fragment in rank):
        name, shape = fragment["name"], fragment["shape"]
        if name not in full:
            full[name] = {part: np.full(int(np.prod(shape)), np.nan, np.float32) for part in PARTS}
            seen[name] = np.zeros(int(np.prod(shape)), np.int64)
        for part in PARTS:
            full[name][part][fragment["start"] : fragment["start"] + len(fragment[part])] = fragment[part]
        seen[name][fragment["start"] : fragment["start"] + len(fragment["master"])] += 1
    for name, count in seen.items():
        assert (count == 1).all(), f"{name}: elements owned {sorted(set(count.tolist()))} times"
    shapes = {fragment["name"]: fragment["shape"] for rank in ranks for fragment in rank}
    return {name: {part: parts[part].reshape(shapes[name]) for part in PARTS} for name, parts in full.items()}


def write_state(engine: Engine, state: dict[str, dict[str, np.ndarray]], step: int) -> None:
    """Put full parameters into an engine of any topology."""
    for fragment in engine.fragments():
        for part in PARTS:
            values = torch.from_numpy(state[fragment.name][part]).reshape(-1)
            getattr(fragment, part).copy_(values[fragment.start : fragment.start + fragment.numel])
    engine.optimizer_step = step
    engine.after_restore()
