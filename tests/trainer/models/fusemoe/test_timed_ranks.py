"""A model over timed objects and codes trains the same on two ranks, experts spread, as on one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from parallel import Engine, MoEConfig, ParallelConfig, balance_losses, create_mesh, reduce_stats
from tests.ranks import run_ranks
from tests.trainer.models.timed_batch import MOMENTS, batch_of, build, records_of

RECORDS, STEPS = 8, 3


def _trained(rank: int, world: int, cut: int, changes: dict[str, Any]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Answers to all records after some steps, of which the first rank sees the first `cut` records of each."""
    moe = MoEConfig(experts=4, top_k=2)
    mesh = create_mesh(ParallelConfig(workers=world, expert_parallel=world), moe)
    changes = {**changes, "model__dropout": 0.0, "model__moe__noise": 0.0, "model__moe__bias_rate": 0.0}
    model = build(MOMENTS, dispatcher=mesh.dispatcher(), **changes)
    engine = Engine(model, mesh, lr=1e-2, weight_decay=0.01, no_decay=lambda name, _: "bias" in name, clip=1.0)
    engine.train()
    for step in range(STEPS):
        whole = records_of(RECORDS, seed=step, schema=MOMENTS)
        own = slice(0, cut) if rank == 0 else slice(cut, RECORDS)
        if world == 1:
            own = slice(0, RECORDS)
        moments = np.arange(RECORDS)[own] * 3.0
        output = engine(batch_of(whole[own], MOMENTS, moments.tolist()))
        total = sum(value.square().sum() for value in output.logits.values()) * (world / RECORDS)
        stats = reduce_stats(output.routing)
        total = total + world * sum(0.1 * value for value in balance_losses(stats, model.config.moe).values())
        engine.backward(total)
        engine.step()
    engine.eval()
    with torch.no_grad():
        answers = engine(batch_of(records_of(6, 99, MOMENTS), MOMENTS, [1.0] * 6)).logits["days"]
    kept = {name: p.detach().numpy().copy() for name, p in model.named_parameters() if ".moe.experts." not in name}
    return answers.numpy(), kept


@pytest.mark.parametrize("way", ["tokens", "utde"])
@pytest.mark.parametrize("cut", [3, 0])
def test_two_ranks_learn_what_one_learns(way: str, cut: int) -> None:
    """Also where a rank has no record."""
    changes = {"model__objects__irregularity": way, "model__codes__irregularity": way, "model__attention": "factorized"}
    (one, alone), *_ = run_ranks(_trained, 1, cut, changes)
    found = run_ranks(_trained, 2, cut, changes)
    for answers, kept in found:
        np.testing.assert_allclose(answers, one, rtol=0, atol=2e-4)
        for name, value in kept.items():
            if "attention" in name or "project.bias" in name:
                continue  # AdamW makes a step of the rounding of keys' biases, whose gradient is 0
            np.testing.assert_allclose(value, alone[name], rtol=0, atol=2e-4, err_msg=name)
