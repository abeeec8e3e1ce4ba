"""A model over timed objects and codes trains the same on two ranks, experts spread, as on one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from data_shards import DatasetSchema
from parallel import Engine, MoEConfig, ParallelConfig, balance_losses, create_mesh, reduce_stats
from tests.ranks import run_ranks
from tests.trainer.models.timed_batch import MOMENTS, batch_of, build, records_of

RECORDS, STEPS = 8, 3
MANY = 20_000  # codes of a table that is spread


def schema_of(codes: int) -> DatasetSchema:
    """With so many drugs."""
    modalities = [replace(spec, codes=codes) if spec.name == "drug" else spec for spec in MOMENTS.modalities]
    return replace(MOMENTS, modalities=tuple(modalities))


def _trained(rank: int, world: int, cut: int, codes: int, changes: dict[str, Any]) -> tuple[np.ndarray, list[Any]]:
    """Answers to all records after some steps, of which the first rank sees the first `cut` records of each."""
    moe = MoEConfig(experts=4, top_k=2)
    schema = schema_of(codes)
    mesh = create_mesh(ParallelConfig(workers=world, expert_parallel=world), moe)
    changes = {**changes, "model__dropout": 0.0, "model__moe__noise": 0.0, "model__moe__bias_rate": 0.0}
    model = build(schema, dispatcher=mesh.dispatcher(), **changes)
    # Of small gradients AdamW makes small steps: it is not to enlarge their rounding.
    engine = Engine(
        model, mesh, lr=0.05, eps=1e-2, weight_decay=0.01, no_decay=lambda name, _: "bias" in name, clip=1.0
    )
    engine.train()
    for step in range(STEPS):
        whole = records_of(RECORDS, seed=step, schema=schema)
        own = slice(0, cut) if rank == 0 else slice(cut, RECORDS)
        if world == 1:
            own = slice(0, RECORDS)
        moments = np.arange(RECORDS)[own] * 3.0
        output = engine(batch_of(whole[own], schema, moments.tolist()))
        total = sum(value.square().sum() for value in output.logits.values()) * (world / RECORDS)
        stats = reduce_stats(output.routing)
        total = total + world * sum(0.1 * value for value in balance_losses(stats, model.config.moe).values())
        engine.backward(total)
        engine.step()
    engine.eval()
    with torch.no_grad():
        answers = engine(batch_of(records_of(6, 99, schema), schema, [1.0] * 6)).logits["days"]
    kept = [(part.name, part.shape, part.start, part.master.numpy().copy()) for part in engine.fragments()]
    return answers.numpy(), kept


@pytest.mark.parametrize("way", ["tokens", "utde"])
@pytest.mark.parametrize(("cut", "codes"), [(3, 12), (0, 12), (3, MANY), (0, MANY)])
def test_two_ranks_learn_what_one_learns(way: str, cut: int, codes: int) -> None:
    """Also where a rank has no record, and where a table is spread."""
    changes = {"model__objects__irregularity": way, "model__codes__irregularity": way, "model__attention": "factorized"}
    (one, alone), *_ = run_ranks(_trained, 1, cut, codes, changes)
    found = run_ranks(_trained, 2, cut, codes, changes)
    for answers, _ in found:
        np.testing.assert_allclose(answers, one, rtol=0, atol=1e-4)
    expected, got = _parameters(alone), _parameters([part for _, kept in found for part in kept])
    assert list(expected) == list(got) and got["encoders.timed_codes.embedding.table.weight"].shape == (codes + 7, 16)
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=0, atol=1e-4, err_msg=name)


def _parameters(parts: list[Any]) -> dict[str, np.ndarray]:
    """Whole ones, from the pieces of all ranks."""
    found: dict[str, np.ndarray] = {}
    for name, shape, start, values in sorted(parts, key=lambda part: part[:3]):
        flat = found.setdefault(name, np.full(shape, np.nan, np.float32)).reshape(-1)
        flat[start : start + len(values)] = values
    return found
