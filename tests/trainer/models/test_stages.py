"""What models tell of their stages: early enough to send meanwhile, on every rank in one order, and never too early."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from benchmarks.common import plain_statistics, presence, random_batch, series_schema
from parallel import Engine, LocalDispatcher, MoEConfig, ParallelConfig, create_mesh, init_distributed
from parallel.engine.stages import stages_of
from tests.ranks import run_ranks
from tests.trainer.models.mope.host.test_model import batch, prompted, tiny_records
from trainer.config.sections import ModelConfig
from trainer.models.fusemoe.model import FuseMoE

pytestmark = pytest.mark.together
BLOCKS = 12
Event = tuple[str, int, int]


def _record(events: list[Event]) -> None:
    for name in ("reduce_scatter_tensor", "all_to_all_single"):
        original = getattr(dist, name)

        def noted(*args: Any, name: str = name, original: Any = original, **kwargs: Any) -> Any:
            elements = args[1].numel() if name == "reduce_scatter_tensor" else 0
            events.append((name, elements, dist.get_world_size(kwargs.get("group"))))
            return original(*args, **kwargs)

        setattr(dist, name, noted)


def _backward(rank: int, world: int, recompute: bool) -> list[Event]:
    """What is sent in a backward pass of a FuseMoE model; rank 1 has no records, and its loss depends on nothing."""
    init_distributed("cpu", 60)
    events: list[Event] = []
    _record(events)
    moe = MoEConfig(experts=4, top_k=2, hidden=32, dropout=0.1)
    config = ModelConfig(dim=16, layers=BLOCKS, heads=2, bins=2, attention="factorized", moe=moe, dropout=0.1)
    mesh = create_mesh(ParallelConfig(workers=world, expert_parallel=2), moe)
    schema = series_schema(2)
    model = FuseMoE(schema, list(schema.task_names), plain_statistics(schema), config, mesh.dispatcher(), 0)
    model.recompute = recompute
    engine = Engine(model, mesh, lr=1e-3)

    def watch(module: torch.nn.Module, args: Any) -> None:
        if torch._C._current_graph_task_id() == -1:
            args[0].register_hook(lambda gradient: events.append(("first block done", 0, 0)))

    model.blocks[0].register_forward_pre_hook(watch)
    output = engine(random_batch(schema, presence(0 if rank == 1 else 6, 2, 2)))
    loss = sum((logits.square().mean() for logits in output.logits.values()), torch.zeros(()))
    events.clear()
    engine.backward(torch.zeros(()) if rank == 1 else loss)
    return events


@pytest.mark.parametrize("recompute", [False, True])
def test_fusion_blocks_are_sent_while_those_before_compute(recompute: bool) -> None:
    ranks = run_ranks(_backward, 4, recompute)
    assert all(events == ranks[0] for events in ranks[1:]), "one order on all ranks, between all exchanges"
    done = [i for i, event in enumerate(ranks[0]) if event[0] == "first block done"]
    assert len(done) == 1
    sent = [event[1] if event[0] == "reduce_scatter_tensor" else 0 for event in ranks[0]]
    assert sum(sent[: done[0]]) / sum(sent) >= 0.85


def test_heads_and_pooling_are_behind_the_blocks_and_encoders_are_the_rest() -> None:
    moe = MoEConfig(experts=4, top_k=2, hidden=8)
    config = ModelConfig(dim=8, layers=2, heads=2, bins=2, moe=moe)
    schema = series_schema(2)
    model = FuseMoE(schema, list(schema.task_names), plain_statistics(schema), config, LocalDispatcher(), 0)
    parts = [{name.split(".")[0] for name, _ in stage.parameters} for stage in stages_of(model)]
    assert parts == [{"encoders", "modality", "bin", "missing"}, {"blocks"}, {"blocks"}, {"pooling", "heads"}]


METHODS: list[dict[str, Any]] = [
    {},
    {"head_layers": "all"},
    {"method": "static"},
    {"method": "mapped"},
    {"method": "lora"},
    {"method": "full"},
    {"method": "head", "head_layers": "all"},
]


def _prompted(rank: int, world: int) -> list[tuple[int, list[np.ndarray[Any, Any]], list[np.ndarray[Any, Any]]]]:
    """Weights after two steps, with gradients sent stage by stage and all at the end."""
    init_distributed("cpu", 60)
    records = tiny_records(8)
    mesh = create_mesh(ParallelConfig(workers=world), MoEConfig(experts=4, top_k=2))
    found = []
    for changes in METHODS:
        ways = []
        for staged in (True, False):
            model = prompted(opened=False, **changes)
            for block in model.blocks:  # prompts behind a closed gate have no gradient
                torch.nn.init.constant_(block.gate_MH, 0.5)
            number = len(stages_of(model))
            if not staged:
                model.stages = list
            engine = Engine(model, mesh, lr=1e-2, clip=1.0)
            for step in range(2):
                torch.manual_seed(step)
                output = engine(batch(records, [4 * rank + i for i in range(4)]))
                loss = sum((logits.square().mean() for logits in output.logits.values()), torch.zeros(()))
                engine.backward(loss + sum(output.losses.values()))
                assert engine.step()
            ways.append([p.detach().numpy().copy() for p in model.parameters() if p.requires_grad])
            engine.close()
        found.append((number, *ways))
    return found


def test_prompts_travel_with_their_block() -> None:
    """Every way of fine-tuning a host: no parameter's gradient comes after its stage was sent."""
    for number, staged, whole in run_ranks(_prompted, 2)[0]:
        assert number == 2 + 2, "the rest, two blocks, the heads"
        for a, b in zip(staged, whole, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
