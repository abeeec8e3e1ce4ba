"""A host's weights on several ranks: each loads what it holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from data_shards.records.statistics import SplitStatistics
from parallel import create_mesh, init_distributed
from parallel.config import ParallelConfig
from tests.parallel.tables.runs import Case, Net
from tests.ranks import run_ranks
from trainer.models.mope.host.backbone import Host

pytestmark = pytest.mark.together


def _loaded(rank: int, world: int, weights: dict[str, np.ndarray]) -> tuple[dict[str, Any], list[list[float]]]:
    init_distributed("cpu", 60)
    mesh = create_mesh(ParallelConfig(workers=world, expert_parallel=2), Case().moe)
    net = Net(Case(), mesh.dispatcher(), seed=99)
    known = {name: torch.from_numpy(value) for name, value in weights.items()}
    Host(known, SplitStatistics(1, {}, {}), "", None, {}).put_into(net)
    ids_O = torch.tensor([40, 0, 21])
    logits = net(ids_O if rank == 0 else ids_O[:0])[0]
    return {name: p.detach().numpy() for name, p in net.named_parameters()}, logits.tolist()


def test_experts_and_rows_of_a_large_table_go_to_the_rank_that_holds_them() -> None:
    whole = Net(Case())
    weights = {name: p.detach().numpy() for name, p in whole.named_parameters()}
    (first, logits), (second, _) = run_ranks(_loaded, 2, weights)
    for name in ("tables.drugs.weight", "layer.experts.w1"):
        np.testing.assert_array_equal(np.concatenate([first[name], second[name]]), weights[name])
    assert len(first["tables.drugs.weight"]) == 20
    np.testing.assert_allclose(logits, whole(torch.tensor([40, 0, 21]))[0].tolist(), rtol=1e-5, atol=1e-6)
