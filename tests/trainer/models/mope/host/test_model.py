"""Prompts on a frozen FuseMoE model: by whom a stream is prompted, what an absent modality can do, what is trained."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from data_shards import Batch
from data_shards.loading.collate import Collator
from data_shards.records.codec import encode_record
from data_shards.records.columns import Columns
from data_shards.records.decoder import Decoder
from data_shards.records.distributions.sketch import PROBABILITIES
from data_shards.records.statistics import ModalityStatistics, SplitStatistics
from parallel import LocalDispatcher
from tests.trainer.tiny import SCHEMA, Tiny, TinyOptions, config
from trainer.config.mope import MopeConfig
from trainer.config.sections import ModelConfig
from trainer.models.flops import parameter_share
from trainer.models.fusemoe.model import FuseMoE
from trainer.models.layers.grouped_linear import Blocks
from trainer.models.layers.missing import keep_modalities
from trainer.models.mope.host.alone_entropy import alone_entropy
from trainer.models.mope.host.backbone import Host
from trainer.models.mope.host.context import ContextBuilder
from trainer.models.mope.host.model import PromptedFuseMoE
from trainer.models.mope.host.prompts import PromptReader
from trainer.models.mope.host.streams import Pairs, pairs_of
from trainer.models.pretrained.loading.backbone import digest_of

MODALITIES = len(SCHEMA.modalities)
ATTENTIONS = ("joint", "per_modality", "factorized")
EVEN = tuple(18 * p - 9 for p in PROBABILITIES)
STATISTICS = SplitStatistics(
    48,
    {
        spec.name: ModalityStatistics(
            48, (48,) * spec.width, *((value,) * spec.width for value in (0.0, 1.0, -9.0, 9.0, EVEN))
        )
        for spec in SCHEMA.modalities
    },
)


@pytest.fixture(scope="module")
def records() -> list[Columns]:
    return tiny_records(12)


def tiny_records(number: int) -> list[Columns]:
    source, decode = Tiny(TinyOptions(records=number)), Decoder(SCHEMA)
    made = [record for unit in source.units() for record in source.read(unit, Counter())]
    return [decode.columns(encode_record(record, SCHEMA)) for record in made]


def batch(records: list[Columns], numbers: list[int] | None = None) -> Batch:
    numbers = list(range(len(records))) if numbers is None else numbers
    return Collator(SCHEMA)([records[number] for number in numbers], np.array(numbers, np.int64))


def architecture(attention: str = "joint", **changes: Any) -> ModelConfig:
    return config("data", Path("runs"), model__attention=attention, model__moe__noise=0.0, **changes).model


def section(**changes: Any) -> MopeConfig:
    tree = {"host": "a run", "gate": True, "k": 3, "static_length": 2, "dynamic_length": 2, "context_dim": 8}
    return MopeConfig.model_validate({**tree, "mapper_hidden": 8, "dropout": 0.0, **changes})


def prompted(
    attention: str = "joint", opened: bool = True, host_changes: dict[str, Any] | None = None, **changes: Any
) -> Any:
    """A frozen random host; gates are open unless the beginning is what is looked at."""
    torch.manual_seed(0)
    model = architecture(attention, **(host_changes or {}))
    host = FuseMoE(SCHEMA, [], STATISTICS, model, LocalDispatcher(), 0)
    weights = {name: value.clone() for name, value in host.state_dict().items()}
    known = Host(weights, STATISTICS, digest_of(weights), None, {})
    made = PromptedFuseMoE(SCHEMA, ["kind"], STATISTICS, known, model, section(**changes), LocalDispatcher(), 0)
    with torch.no_grad():
        for block in made.blocks if opened else []:
            block.gate_MH.normal_()
            block.absent_MD.normal_()
    return made


def answers(network: Any, records: Batch) -> Tensor:
    network.eval()
    with torch.no_grad():
        return network(records).logits["kind"]


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_sample_is_answered_by_its_own_prompts(records: list[Columns], attention: str) -> None:
    """Another record in one place changes no other answer; neither does the order, nor the size of the batch."""
    network = prompted(attention)
    before = answers(network, batch(records, [0, 1, 2, 3, 4]))
    after = answers(network, batch(records, [9, 1, 2, 3, 4]))
    assert (before[0] - after[0]).abs().max() > 1e-3
    assert (before[1:] - after[1:]).abs().max() < 1e-6
    alone = torch.cat([answers(network, batch(records, [number])) for number in range(5)])
    assert torch.allclose(alone, before, atol=1e-5)
    turned = answers(network, batch(records, [4, 2, 0, 3, 1]))
    assert torch.allclose(turned, before[[4, 2, 0, 3, 1]], atol=1e-5)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_a_host_may_know_whole_series_and_quantiles(records: list[Columns], attention: str) -> None:
    """A stream's state is the mean over its bins and the token of its statistics; prompts reach that one too."""
    changes = {"model__series__statistics": "token", "model__scale": "quantile", "model__vector__numbers": "piecewise"}
    network, closed = prompted(attention, host_changes=changes), prompted(attention, False, host_changes=changes)
    given = batch(records)
    with torch.no_grad():
        x_ND, layout = network.eval().backbone.embed(given)
    pairs, bins = pairs_of(layout, given), network.architecture.bins
    series = SCHEMA.numbers["lab"], SCHEMA.numbers["vital"]
    for pair in range(len(pairs.sample_Q)):
        if int(pairs.modality_Q[pair]) in series:
            own_N = (layout.sample_N == pairs.sample_Q[pair]) & (layout.modality_N == pairs.modality_Q[pair])
            assert int(own_N.sum()) == bins + 1
            torch.testing.assert_close(pairs.pooled(x_ND)[pair], x_ND[own_N].mean(0), rtol=0, atol=1e-6)
    alone = torch.cat([answers(network, batch(records, [number])) for number in range(12)])
    torch.testing.assert_close(alone, answers(network, given), rtol=0, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(closed.eval()(given).pooled_BX, closed.backbone(given).pooled_BX)
    assert (answers(network, given) - answers(closed, given)).abs().max() > 1e-3


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_closed_gates_are_the_identity_and_can_open(records: list[Columns], attention: str) -> None:
    network = prompted(attention, opened=False)
    network.train()
    output = network(batch(records))
    with torch.no_grad():
        assert torch.equal(output.pooled_BX, network.backbone.eval()(batch(records)).pooled_BX)
    output.logits["kind"].square().sum().backward()
    for block in network.blocks:
        gate = block.gate_MH.grad
        assert gate is not None and (gate.abs().sum(1) > 0).all(), "of every modality"


def test_other_modalities_reach_a_stream_through_its_prompts(records: list[Columns]) -> None:
    """Within per-modality attention a stream hears of others through the experts' router and through prompts only."""
    whole = batch(records)
    network = prompted("per_modality")
    network.eval()
    with torch.no_grad():
        x_ND, layout = network.backbone.embed(whole)
        pairs = pairs_of(layout, whole)
        pooled_QD = pairs.pooled(x_ND)
        first = network.context[0](pairs, pooled_QD)
        row = int((pairs.present_BM.sum(1) > 1).nonzero()[0])
        mine_Q = pairs.sample_Q == row
        one = int(mine_Q.nonzero()[0])
        pooled_QD[one] += torch.randn(16)
        second = network.context[0](pairs, pooled_QD)
    changed_Q = (first - second).abs().amax(1) > 1e-6
    expected_Q = mine_Q.clone()
    expected_Q[one] = False
    assert torch.equal(changed_Q, expected_Q), "the other streams of the record, and no stream of another record"


def test_what_is_absent_cannot_matter(records: list[Columns]) -> None:
    """Hidden contents may be anything; the learned row of an absent modality is met where it is absent, only."""
    network = prompted()
    keep_BM = torch.rand(12, MODALITIES, generator=torch.Generator().manual_seed(1)) > 0.4
    whole = batch(records)
    other = batch(records)
    for group in other.groups.values():
        for name, value in vars(group).items():
            if name.startswith("values_"):
                hidden_P = ~keep_BM[group.sample_P, group.modality_P]
                rows = hidden_P
                if hasattr(group, "offsets"):
                    rows = hidden_P.repeat_interleave(group.offsets.diff())
                value[rows] = value[rows] * 3 + 7
    assert not torch.equal(answers(network, whole), answers(network, other))
    seen, unlike = keep_modalities(whole, keep_BM), keep_modalities(other, keep_BM)
    assert torch.equal(answers(network, seen), answers(network, unlike))
    before = answers(network, seen)
    with torch.no_grad():
        network.blocks[0].absent_MD[2] += torch.randn(16)
    changed_B = (answers(network, seen) - before).abs().amax(1) > 1e-6
    assert torch.equal(changed_B, seen.present_BM.any(1) & ~seen.present_BM[:, 2]) and 0 < int(changed_B.sum()) < 12


def test_a_modality_that_is_alone_is_prompted_from_nothing_of_others(records: list[Columns]) -> None:
    """Finite, from the null context, without the mapped row; every other parameter of the mapper's way is unused."""
    network = prompted()
    lonely_BM = torch.zeros(12, MODALITIES, dtype=torch.bool)
    present_BM = batch(records).present_BM
    lonely_BM[torch.arange(12), present_BM.float().argmax(1)] = True
    lonely_BM[0] = present_BM[0]
    mixed = keep_modalities(batch(records), lonely_BM)
    alone_B = mixed.present_BM.sum(1) == 1
    assert alone_B.sum() == 11 and not alone_B[0]
    before = answers(network, mixed)
    assert torch.isfinite(before).all()

    def changed(parameter: Tensor) -> Tensor:
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter += 0.5
        differs_B = (answers(network, mixed) - before).abs().amax(1) > 1e-6
        with torch.no_grad():
            parameter.copy_(kept)
        return differs_B

    assert network.mapper is not None and network.context is not None
    assert torch.equal(changed(network.mapper[3].bias), ~alone_B)
    assert torch.equal(changed(network.context[0].identity_MX), ~alone_B)
    assert changed(network.context[0].null_MX)[alone_B].all()


def context_reference(builder: ContextBuilder, pairs: Pairs, pooled_QD: Tensor) -> Tensor:
    """One pair at a time: a softmax over the entries of the other present modalities and the null."""
    rows = []
    for host in range(len(pairs.sample_Q)):
        m = pairs.modality_Q[host]
        entries = [
            builder.entry(builder.norm(pooled_QD[other])) + builder.identity_MX[pairs.modality_Q[other]]
            for other in range(len(pairs.sample_Q))
            if pairs.sample_Q[other] == pairs.sample_Q[host] and other != host
        ]
        entries_YX = torch.stack([*entries, builder.null_MX[m]])
        rows.append((entries_YX @ builder.query_gate_MX[m]).softmax(0) @ entries_YX)
    return torch.stack(rows)


@torch.no_grad()
def test_contexts_are_pools_of_what_is_present_in_any_order_of_modalities(records: list[Columns]) -> None:
    network = prompted()
    whole = batch(records)
    x_ND, layout = network.backbone.embed(whole)
    pairs = pairs_of(layout, whole)
    pooled_QD = pairs.pooled(x_ND)
    builder: ContextBuilder = network.context[0]
    got = builder(pairs, pooled_QD)
    assert torch.allclose(got, context_reference(builder, pairs, pooled_QD), atol=1e-5)
    order_M = torch.randperm(MODALITIES, generator=torch.Generator().manual_seed(3))
    renamed = Pairs(
        pairs.sample_Q, order_M[pairs.modality_Q], pairs.tokens, pairs.blocks, pairs.present_BM[:, order_M.argsort()]
    )
    for parameter in (builder.identity_MX, builder.null_MX, builder.query_gate_MX):
        parameter.copy_(parameter[order_M.argsort()])
    assert torch.allclose(builder(renamed, pooled_QD), got, atol=1e-6)


@pytest.mark.parametrize("attention", ATTENTIONS)
@torch.no_grad()
def test_tokens_read_the_prompts_of_their_own_pair(records: list[Columns], attention: str) -> None:
    """Against one token, one head at a time."""
    network = prompted(attention)
    whole = batch(records)
    block: Any = network.backbone.blocks[0]
    x_ND, layout = network.backbone.embed(whole)
    pairs = pairs_of(layout, whole)
    reader, _ = network._prompts(0, block, x_ND, pairs, whole)
    inner = block.attention
    project = inner.over_time if attention == "factorized" else inner.project
    q_ND = torch.randn(layout.encoded, 16)
    got = reader(q_ND, project, 2)
    blocks = [number for numbers in network.backbone.layout.values() for number in numbers]
    for n in range(0, layout.encoded, 7):
        pair = next(
            q
            for q in range(len(pairs.sample_Q))
            if pairs.sample_Q[q] == layout.sample_N[n] and pairs.modality_Q[q] == layout.modality_N[n]
        )
        rows = reader.prompts_QPD[pair][reader.counts_QP[pair]]
        normed = block.attention_norm(rows)
        if attention == "per_modality":
            m = blocks.index(int(pairs.modality_Q[pair]))
            where = torch.zeros(len(blocks), dtype=torch.int64)
            where[m] = len(rows)
            qkv = project.reference(normed, Blocks.of(where))
        else:
            qkv = project(normed)
        _, key, value = qkv.chunk(3, 1)
        for head in range(2):
            part = slice(8 * head, 8 * head + 8)
            weight = (key[:, part] @ q_ND[n, part] / 8**0.5).softmax(0)
            read = weight @ value[:, part] * reader.gate_QH[pair, head].tanh()
            assert torch.allclose(got[n, part], read, atol=1e-5)
    assert isinstance(reader, PromptReader)


@torch.no_grad()
def test_a_head_can_read_every_stream_at_every_depth(records: list[Columns]) -> None:
    """Against one record, one modality, one depth at a time; what is absent is zero, whatever was recorded."""
    network = prompted(head_layers="all")
    keep_BM = torch.rand(12, MODALITIES, generator=torch.Generator().manual_seed(1)) > 0.4
    seen = keep_modalities(batch(records), keep_BM)
    got = answers(network, seen)
    x_ND, layout = network.backbone.embed(seen)
    pairs, depths = pairs_of(layout, seen), [x_ND]
    for number, block in enumerate(network.backbone.blocks):
        reader, _ = network._prompts(number, block, depths[-1], pairs, seen)
        depths.append(block(depths[-1], layout, reader)[0])
    unit = torch.nn.LayerNorm(16, elementwise_affine=False)
    for row in range(12):
        parts = list(network.backbone.pooling(depths[-1], layout)[row].split(16))
        for x_ND in depths:
            for m in range(MODALITIES):
                own_N = (layout.sample_N == row) & (layout.modality_N == m)
                parts.append(x_ND[own_N].mean(0) if seen.present_BM[row, m] else torch.zeros(16))
        expected = network.heads["kind"](torch.cat([unit(part) for part in parts]))
        assert torch.allclose(got[row], expected, atol=1e-5)


def test_all_layers_are_those_of_a_host() -> None:
    with pytest.raises(ValueError, match="head_layers=all reads the blocks of a FuseMoE model"):
        section(host=None, head_layers="all")


def test_only_what_is_declared_is_trained(records: list[Columns]) -> None:
    network = prompted()
    before = {name: value.clone() for name, value in network.backbone.state_dict().items()}
    network.train()
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.1)
    output = network(batch(records))
    (output.logits["kind"].square().sum() + sum(output.losses.values())).backward()
    for name, parameter in network.named_parameters():
        assert parameter.requires_grad is not name.startswith("backbone."), name
        assert (parameter.grad is None) is name.startswith("backbone."), name
    optimizer.step()
    assert all(torch.equal(before[name], value) for name, value in network.backbone.state_dict().items())
    assert not any(part.training for part in network.backbone.modules())
    learned = dict(network.named_parameters())
    kept = {name: value for name, value in network.state_dict().items() if name not in learned}
    assert not any(name.startswith("backbone.") for name in kept)
    for number in range(2):
        keys_MQK = kept[f"blocks.{number}.keys_MQK"]
        eye_MKK = torch.eye(3).expand(MODALITIES, 3, 3)
        assert torch.allclose(keys_MQK.transpose(1, 2) @ keys_MQK, eye_MKK, atol=1e-6)


def test_parameters_are_what_the_formula_says() -> None:
    dim, layers, heads, k, static, rows, query, context, hidden = 16, 2, 2, 3, 2, 2, 10, 8, 8
    block = MODALITIES * (heads + static * dim + dim + k * rows * dim + 2 * dim + (query - 2) * context)
    pool = 2 * dim + (dim + 1) * context + 3 * MODALITIES * context
    mapper = (context + 1) * hidden + 2 * hidden + (hidden + 1) * dim
    head = 3 * (dim * architecture().latents + 1)
    expected = layers * (block + pool) + mapper + head
    assert parameter_share(prompted())["trained"] == expected
    every_layer = 3 * (layers + 1) * MODALITIES * dim
    assert parameter_share(prompted(head_layers="all"))["trained"] == expected + every_layer


def test_an_evaluation_repeats_and_training_has_noise(records: list[Columns]) -> None:
    network = prompted(noise=0.5)
    network.train()
    assert not torch.equal(network(batch(records)).logits["kind"], network(batch(records)).logits["kind"])
    assert torch.equal(answers(network, batch(records)), answers(network, batch(records)))


def test_balance_is_asked_where_there_is_a_context_and_decision_where_there_is_none(records: list[Columns]) -> None:
    network = prompted(importance={"weight": 1.0, "cut": 0.0}, alone_entropy=1.0)
    network.train()
    lonely_BM = torch.zeros(12, MODALITIES, dtype=torch.bool)
    lonely_BM[torch.arange(12), batch(records).present_BM.float().argmax(1)] = True
    assert network.importance is not None
    start = network.importance.mean_LK.clone()
    losses = network(keep_modalities(batch(records), lonely_BM)).losses
    assert torch.equal(network.importance.mean_LK, start), "nobody has a context"
    assert losses["importance"] == 0 and losses["alone_entropy"] != 0
    losses["alone_entropy"].backward()
    assert all(block.intra_MDQ.grad is not None for block in network.blocks)
    together_BM = batch(records).present_BM & (batch(records).present_BM.sum(1) > 1)[:, None]
    losses = network(keep_modalities(batch(records), together_BM)).losses
    assert losses["importance"] > 0 and losses["alone_entropy"] == 0
    assert not torch.equal(network.importance.mean_LK, start)


def test_alone_entropy_is_lowest_where_decisions_are_sure_and_differ() -> None:
    everyone, uniform = [torch.ones(4)], torch.full((4, 2), 0.5)
    same, apart = torch.eye(2)[[0, 0, 0, 0]], torch.eye(2)[[0, 1, 0, 1]]
    assert alone_entropy([uniform], everyone).abs() < 1e-6 and alone_entropy([same], everyone).abs() < 1e-6
    assert alone_entropy([apart], everyone) == pytest.approx(-np.log(2), abs=1e-6)
    assert alone_entropy([apart], [torch.tensor([1.0, 0, 1, 0])]).abs() < 1e-6, "those that are not alone do not count"
    assert alone_entropy([apart], [torch.zeros(4)]) == 0
