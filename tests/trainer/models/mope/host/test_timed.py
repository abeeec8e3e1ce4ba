"""Prompts on a host over timed objects and codes: a stream is a pair, however many objects it has."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from data_shards import Batch
from parallel import LocalDispatcher
from tests.trainer.models import timed_batch
from tests.trainer.models.timed_batch import SCHEMA, batch_of, records_of, statistics_of
from trainer.config.mope import MopeConfig
from trainer.models.mope.host.backbone import Host
from trainer.models.mope.host.model import PromptedFuseMoE
from trainer.models.mope.host.streams import pairs_of
from trainer.models.pretrained.loading.backbone import digest_of

RECORDS = records_of(6, seed=2)
SECTION: dict[str, Any] = {
    "host": "a run",
    "gate": True,
    "k": 3,
    "static_length": 2,
    "dynamic_length": 2,
    "context_dim": 8,
    "mapper_hidden": 8,
    "dropout": 0.0,
}


def prompted(way: str, attention: str, opened: bool, **changes: Any) -> PromptedFuseMoE:
    ways = {"model__objects__irregularity": way, "model__codes__irregularity": way, "model__moe__noise": 0.0}
    host = timed_batch.build(**ways, model__attention=attention)
    weights = {name: value.clone() for name, value in host.state_dict().items() if not name.startswith("heads.")}
    known = Host(weights, statistics_of(SCHEMA), digest_of(weights), None, {})
    section = MopeConfig.model_validate(SECTION | changes)
    made = PromptedFuseMoE(SCHEMA, ["died"], known.statistics, known, host.config, section, LocalDispatcher(), 0)
    with torch.no_grad():
        for block in made.blocks if opened else []:
            block.gate_MH.normal_()  # type: ignore[union-attr, operator]
            block.absent_MD.normal_()  # type: ignore[union-attr, operator]
    return made.eval()


def answers(model: PromptedFuseMoE, records: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(batch_of(records)).logits["died"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("attention", ["per_modality", "joint", "factorized"])
@pytest.mark.parametrize("way", ["tokens", "utde"])
def test_a_record_is_answered_by_its_own_prompts(way: str, attention: str) -> None:
    model = prompted(way, attention, opened=True, head_layers="all")
    whole = answers(model, RECORDS)
    alone = torch.cat([answers(model, [record]) for record in RECORDS])
    torch.testing.assert_close(alone, whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(answers(model, RECORDS[::-1]), whole.flip(0), rtol=0, atol=1e-5)
    # What is there without objects is a stream, what is not there is none.
    empty, absent = (
        answers(model, [{"age": RECORDS[0].get("age", torch.ones(3).numpy()), "note": []}]),
        answers(model, [{"age": RECORDS[0].get("age", torch.ones(3).numpy())}]),
    )
    assert (empty - absent).abs() > 1e-4


@pytest.mark.parametrize("way", ["tokens", "utde"])
def test_closed_gates_are_the_identity_and_prompts_learn(way: str) -> None:
    model = prompted(way, "factorized", opened=False)
    batch = batch_of(RECORDS)
    with torch.no_grad():
        assert torch.equal(model(batch).pooled_BX, model.backbone(batch).pooled_BX)
    model.train()
    model(batch).logits["died"].square().sum().backward()
    for block in model.blocks:
        gate: Any = block.gate_MH
        assert (gate.grad.abs().sum(1) > 0).equal(batch.present_BM.any(0)), "of every modality that somebody has"


def test_a_stream_is_a_pair_and_its_state_the_mean_of_its_tokens() -> None:
    model = prompted("tokens", "per_modality", opened=False)
    batch: Batch = batch_of(RECORDS)
    x_ND, layout = model.backbone.embed(batch)
    pairs = pairs_of(layout, batch)
    assert len(pairs.sample_Q) == int(batch.present_BM.sum())
    found = {
        (sample, modality) for sample, modality in zip(pairs.sample_Q.tolist(), pairs.modality_Q.tolist(), strict=True)
    }
    assert found == {tuple(place) for place in batch.present_BM.nonzero().tolist()}
    pooled_QD = pairs.pooled(x_ND)
    for place in range(len(pooled_QD)):
        own = (layout.sample_N == pairs.sample_Q[place]) & (layout.modality_N == pairs.modality_Q[place])
        own[layout.encoded :] = False
        torch.testing.assert_close(pooled_QD[place], x_ND[own].mean(0), rtol=1e-5, atol=1e-6)
