"""Prompt experts on two towers: nobody gets another sample's prompts, frozen is frozen, each part is what it says."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.trainer.towers import FAMILIES, SCHEMA, STATISTICS, batch, build, model, section
from trainer.config.mope import MopeConfig
from trainer.models.flops import parameter_share
from trainer.models.mope.prompts.importance import Importance
from trainer.models.mope.prompts.prompted_attention import prompted_attention
from trainer.models.mope.prompts.router import Router, orthonormal_keys, routing_entropy
from trainer.models.mope.towers.model import TowerModel
from trainer.models.mope.towers.sites import Flow
from trainer.models.pretrained.loading.backbone import BackboneError

PAIRS = [
    ("vit", "bert"),
    ("swin", "distilbert"),
    ("dinov2", "roberta"),
    ("clip_vision_model", "clip_text_model"),
    ("vit", "electra"),
]


def answers(network: TowerModel, records: Any) -> Tensor:
    network.eval()
    with torch.no_grad():
        return network(records).logits["answer"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(("image", "text"), PAIRS)
@pytest.mark.parametrize("prompted", ["image", "text", "both"])
def test_a_sample_is_answered_by_its_own_prompts(image: str, text: str, prompted: str) -> None:
    """Changing one record changes no other, in batches that do not divide Swin's windows; one by one is the same."""
    network = model(section(image, text, prompted=prompted, head_input="both", source_length=2))
    records = batch(5)
    before = answers(network, records)
    changed = batch(5)
    changed.groups["text"].bytes_O[: int(changed.groups["text"].offsets[1])] += 1  # type: ignore[attr-defined]
    changed.groups["image/3x16x16"].values_PCHW[0] //= 2  # type: ignore[attr-defined]
    after = answers(network, changed)
    assert (before[0] - after[0]).abs().max() > 1e-3
    assert (before[1:] - after[1:]).abs().max() < 1e-6
    alone = torch.cat([answers(network, batch_of(number)) for number in range(5)])
    assert torch.allclose(alone, before, atol=2e-5)


def batch_of(number: int) -> Any:
    """The record of this number of `batch`, alone."""
    whole = batch(number + 1)
    offsets = whole.groups["text"].offsets  # type: ignore[attr-defined]
    text = whole.groups["text"].bytes_O[int(offsets[number]) :].numpy().tobytes()  # type: ignore[attr-defined]
    return build({number: whole.groups["image/3x16x16"].values_PCHW[number]}, {number: text}, [number])  # type: ignore[attr-defined]


def test_answers_do_not_depend_on_the_order_of_records() -> None:
    """As with test files that are sorted by class: neighbours must not help."""
    network = model(section("swin", "bert"))
    whole = batch(6)
    pictures = dict(enumerate(whole.groups["image/3x16x16"].values_PCHW))  # type: ignore[attr-defined]
    offsets = whole.groups["text"].offsets.tolist()  # type: ignore[attr-defined]
    data = whole.groups["text"].bytes_O.numpy().tobytes()  # type: ignore[attr-defined]
    texts = {i: data[offsets[i] : offsets[i + 1]] for i in range(6)}
    by_class = answers(network, build(pictures, texts, [0, 3, 1, 4, 2, 5]))
    mixed = answers(network, build(pictures, texts, [5, 1, 0, 2, 4, 3]))
    assert torch.allclose(by_class[[0, 2, 4, 1, 3, 5]], mixed[[2, 1, 3, 5, 4, 0]], atol=1e-5)


@pytest.mark.parametrize(("image", "text"), [("vit", "bert"), ("swin", "bert")])
def test_a_closed_gate_is_the_identity_and_can_open(image: str, text: str) -> None:
    records = batch(4)
    plain = model(section(image, text, method="head"))
    gated = model(section(image, text, gate=True))
    gated.heads.load_state_dict(plain.heads.state_dict())
    assert torch.equal(answers(gated, records), answers(plain, records))
    gated.train()
    gated(records).logits["answer"].square().sum().backward()
    assert all(gate.grad is not None and gate.grad.abs().sum() > 0 for gate in gated.gates["image"].parameters())


@pytest.mark.parametrize(("image", "text"), PAIRS[:2])
def test_only_what_is_declared_is_trained(image: str, text: str) -> None:
    network = model(section(image, text, source_length=2))
    network.train()
    output = network(batch(4))
    (output.logits["answer"].square().sum() + output.losses["importance"]).backward()
    for name, parameter in network.named_parameters():
        assert parameter.requires_grad is not name.startswith("towers."), name
        assert (parameter.grad is None) is name.startswith("towers."), name
    assert not any(part.training for tower in network.towers.values() for part in tower.modules())
    for name, keys_QK in network.named_buffers():
        if name.endswith("keys_QK"):
            assert not keys_QK.requires_grad and name in network.state_dict()
            assert torch.allclose(keys_QK.T @ keys_QK, torch.eye(keys_QK.shape[1]), atol=1e-6)


def test_more_experts_than_keys_are_refused() -> None:
    with pytest.raises(ValueError, match=r"11 prompt experts need 11 orthogonal routing keys.* only 10 dimensions"):
        orthonormal_keys(10, 11, torch.Generator())
    with pytest.raises(ValueError, match=r"mope.k=16 .* raise mope.cross_dim to 14 or lower mope.k"):
        section(k=16)


def swin_b_and_bert(**changes: Any) -> TowerModel:
    """The two-tower preset of the paper's figure, as shapes only."""
    swin = {"image_size": 224, "embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]}
    from data_shards import DatasetSchema, ModalitySpec, TaskSpec

    genres = TaskSpec("genres", "multilabel", classes=tuple(f"g{i}" for i in range(23)))
    picture = ModalitySpec("image", "image", shape=(3, 224, 224), dtype="uint8")
    schema = DatasetSchema("films", (picture, SCHEMA.modalities[1]), (genres,))
    tree: dict[str, Any] = {
        "image": {"family": "swin", "config": {**swin, "window_size": 7}},
        "text": {"family": "bert", "readout": "cls"},
        "source_length": 4,
        "skip_first": True,
        "shallow_prompt": True,
        **changes,
    }
    with torch.device("meta"):
        return TowerModel(schema, ["genres"], STATISTICS, MopeConfig.model_validate(tree), 0)


def released_layout(k: int, length: int = 6, source_length: int = 4, classes: int = 23) -> tuple[int, int]:
    """Parameters of the released code's two-tower model: (allocated, used), piece by piece."""
    depths, widths, context, hidden = (2, 2, 18, 2), (128, 256, 512, 1024), 768, 384
    trunk = context * hidden + hidden + 2 * hidden
    mapper = trunk + sum(hidden * width + width for width in widths)
    head, source = widths[-1] * classes + classes, 12 * source_length * context
    shallow = (2 * length + 1) * widths[0]

    def blocks(numbers: tuple[int, ...]) -> int:
        return sum(
            n * ((k + 1) * length * width + (width * 2 + 2) + (context * 8 + 8))
            for n, width in zip(numbers, widths, strict=True)
        )

    dead = 2 * 12 * source_length * context + context * classes + classes
    used = blocks(tuple(depth - 1 for depth in depths)) + shallow + mapper + head + source
    return blocks(depths) + shallow + mapper + head + source + dead, used


def test_parameters_are_what_the_formula_says() -> None:
    assert released_layout(4) == (1_721_502, 1_544_031)
    assert released_layout(16) == (2_587_806, 2_272_095)
    share = parameter_share(swin_b_and_bert())
    assert share["frozen"] == 196_225_464
    assert share["trained"] == released_layout(4)[1]
    assert share["share"] == pytest.approx(0.008, abs=0.001)
    wide = parameter_share(swin_b_and_bert(k=16, cross_dim=14))["trained"]
    assert wide == released_layout(16)[1] + 20 * 6 * 769, "keys that stay orthogonal need six more dimensions"


@pytest.mark.parametrize("family", ["vit", "clip_vision_model", "dinov2", "bert", "distilbert"])
def test_a_prefix_of_keys_and_values_equals_tokens(family: str) -> None:
    """On one layer, for the content tokens."""
    picture = family in ("vit", "clip_vision_model", "dinov2")
    network = model(section(family if picture else "vit", "bert" if picture else family))
    tower = network._towers()["image" if picture else "text"]
    site = tower.sites[0]
    prompts_BPD = torch.randn(3, 4, site.width)
    hidden_BND = torch.randn(3, 6, site.width)

    class Fixed(nn.Module):
        def forward(self, *args: Any) -> tuple[Tensor, None]:
            return prompts_BPD, None

    results = []
    for as_tokens in (False, True):
        site.prompts, site.flow, site.as_tokens = Fixed(), Flow(torch.zeros(3, 1), None), as_tokens
        mask = torch.zeros(3, 1, 6, 6)
        mask[1, :, :, 4:] = torch.finfo(torch.float32).min
        with torch.no_grad():
            output = site.layer.eval()(hidden_BND, attention_mask=mask)
        results.append(output[0] if isinstance(output, tuple) else output)
    assert results[0].shape == hidden_BND.shape
    assert torch.allclose(*results, atol=1e-5)


def swin_block_reference(layer: Any, x_BND: Tensor, prompts_BPD: Tensor, side: int) -> Tensor:
    """One Swin block with prompts as tokens of every window, as the released code has it, one window at a time.

    Prompts stand before the window's tokens, without position bias or shift mask. Window w belongs to sample
    w // windows: the order that the released code gets wrong.
    """
    attention, width, shift = layer.attention, layer.window_size, layer.shift_size
    normed = layer.layernorm_before(x_BND).view(len(x_BND), side, side, -1)
    normed = torch.roll(normed, (-shift, -shift), (1, 2))
    bias = attention.relative_position_bias()[0]
    masks = layer.get_attn_mask(side, side, torch.float32, x_BND.device)
    result = torch.zeros_like(normed)
    rows, heads = prompts_BPD.shape[1], attention.num_attention_heads
    for sample in range(len(x_BND)):
        prompt = layer.layernorm_before(prompts_BPD[sample])
        for window in range((side // width) ** 2):
            top, left = width * (window // (side // width)), width * (window % (side // width))
            place = (slice(top, top + width), slice(left, left + width))
            tokens = torch.cat([prompt, normed[sample][place].flatten(0, 1)])
            q, k, v = (
                p(tokens).unflatten(1, (heads, -1)).transpose(0, 1)
                for p in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            score = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
            added = bias if masks is None else bias + masks[window]
            score = score + functional.pad(added, (rows, 0, rows, 0))
            out = attention.o_proj((score.softmax(-1) @ v).transpose(0, 1).flatten(1))
            result[sample][place] = out[rows:].view(width, width, -1)
    result = torch.roll(result, (shift, shift), (1, 2)).flatten(1, 2)
    hidden = x_BND + result
    return hidden + layer.mlp(layer.layernorm_after(hidden))  # type: ignore[no-any-return]


@pytest.mark.parametrize("number", [0, 1], ids=["plain windows", "shifted windows"])
def test_a_prompted_swin_block_is_the_released_block_with_its_windows_in_order(number: int) -> None:
    network = model(section("swin", "bert"))
    site = network._towers()["image"].sites[number]
    prompts_BPD, x_BND = torch.randn(3, 4, site.width), torch.randn(3, 64, site.width)

    class Fixed(nn.Module):
        def forward(self, *args: Any) -> tuple[Tensor, None]:
            return prompts_BPD, None

    site.prompts, site.flow = Fixed(), Flow(torch.zeros(3, 1), None)
    with torch.no_grad():
        site.attention.relative_position_bias.relative_position_bias_table.normal_()
        ours = site.layer.eval()(x_BND, (8, 8))[0]
        assert torch.allclose(ours, swin_block_reference(site.layer, x_BND, prompts_BPD, 8), atol=1e-4)
        wrong = swin_block_reference(site.layer, x_BND, prompts_BPD.roll(1, 0), 8)
    assert (ours - wrong).abs().max() > 1e-2


def test_importance_is_zero_where_experts_share_and_never_punishes_little() -> None:
    loss = Importance(1, 4, cut=0.1, ema=0.0)
    even = torch.tensor([[0.26, 0.25, 0.25, 0.24]], requires_grad=True)
    value = loss([even], [torch.ones(1)])
    value.backward()
    assert value == 0 and torch.equal(even.grad, torch.zeros_like(even)) if even.grad is not None else False
    one_sided = torch.tensor([[0.97, 0.01, 0.01, 0.01]], requires_grad=True)
    loss([one_sided], [torch.ones(1)]).backward()
    assert one_sided.grad is not None and one_sided.grad[0, 0] > one_sided.grad[0, 1]


def test_one_sample_a_step_is_judged_by_the_past() -> None:
    """Confident routing of single samples that take turns is balanced, whatever each of them says."""
    loss = Importance(1, 2, cut=0.1, ema=0.9)
    values = [float(loss([torch.eye(2)[[step % 2]]], [torch.ones(1)])) for step in range(40)]
    assert values[0] == 1.0, "nothing is known before the first sample"
    assert max(values[20:]) == 0.0
    assert loss.steps_1 == 40
    kept = loss.mean_LK.clone()
    loss([torch.ones(0, 2)], [torch.ones(0)])
    assert torch.equal(loss.mean_LK, kept), "a step without samples leaves the past as it is"
    loss.eval()
    loss([torch.eye(2)[[0]]], [torch.ones(1)])
    assert torch.equal(loss.mean_LK, kept)


def test_noise_is_for_training_only() -> None:
    torch.manual_seed(0)
    router = Router(4, 6, 3, torch.Generator().manual_seed(0), noise=0.5)
    inputs = torch.randn(5, 4), torch.randn(5, 6)
    noisy, quiet = router(*inputs)
    assert not torch.equal(noisy, quiet)
    router.eval()
    first, second = router(*inputs), router(*inputs)
    assert torch.equal(first[0], second[0]) and torch.equal(first[0], first[1])
    assert torch.allclose(first[0], quiet)
    entropy = routing_entropy(torch.tensor([[1.0, 0, 0], [1 / 3, 1 / 3, 1 / 3]]))
    assert entropy.tolist() == pytest.approx([0.0, 1.0], abs=1e-6)
    network = model(section())
    assert torch.equal(answers(network, batch(3)), answers(network, batch(3)))


def test_gated_attention_over_prompts_has_a_softmax_of_its_own() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(4, 2, 5, 3) for _ in range(3))
    key, value = torch.randn(2, 2, 3, 3), torch.randn(2, 2, 3, 3)  # two windows a sample
    gate = torch.tensor([0.5, -1.0])
    got = prompted_attention(q, k, v, (key, value), None, 0.7, gate)
    for row in range(4):
        for head in range(2):
            content = (q[row, head] @ k[row, head].T * 0.7).softmax(-1) @ v[row, head]
            prompts = (q[row, head] @ key[row // 2, head].T * 0.7).softmax(-1) @ value[row // 2, head]
            assert torch.allclose(got[row, head], content + gate[head].tanh() * prompts, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "parts"),
    [
        ("head", set()),
        ("late_fusion", set()),
        ("static", {"static"}),
        ("mapped", {"mapper"}),
        ("dynamic", {"experts", "router"}),
        ("mope_no_static", {"experts", "router", "mapper"}),
        ("mope", {"static", "experts", "router", "mapper"}),
        ("lora", {"lora"}),
        ("full", {"towers"}),
    ],
)
def test_each_method_trains_what_it_is_named_for(method: str, parts: set[str]) -> None:
    network = model(section(method=method, head_input="both"))
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    words = {"static": "static_SD", "experts": "experts_KLD", "router": "router", "mapper": "mappers", "lora": "lora_"}
    found = {part for part, word in words.items() if any(word in name for name in trained)}
    if any(name.startswith("towers.") and "lora_" not in name for name in trained):
        found.add("towers")
    assert found == parts
    output = network(batch(3))
    assert output.logits["answer"].shape == (3, 3)


def test_lora_takes_the_rank_that_matches_a_number_of_parameters() -> None:
    network = model(section(method="lora", lora_match=1000))
    trained = sum(p.numel() for n, p in network.named_parameters() if "lora_" in n)
    each = 2 * 2 * 2 * (16 + 16)  # towers, layers, queries and values
    assert trained == each * round(1000 / each)


def test_shuffled_context_prompts_with_another_record() -> None:
    paired, shuffled = (model(section(context=kind)) for kind in ("paired", "shuffled"))
    shuffled.load_state_dict(paired.state_dict())
    records = batch(6)
    assert (answers(paired, records) - answers(shuffled, records)).abs().amin(0).max() > 0
    vectors = torch.arange(6.0)[:, None]
    other = shuffled._in_context(records, vectors)[:, 0]
    assert sorted(other.tolist()) == list(range(6)) and not (other == vectors[:, 0]).any()


def test_records_without_a_modality_are_refused_or_learned() -> None:
    lonely = batch(4, without={"image": {2}, "text": {0}})
    with pytest.raises(ValueError, match=r"record r2 has no picture, which the image tower reads.*missing=learned"):
        answers(model(section()), lonely)
    network = model(section(missing="learned", head_input="both"))
    first = answers(network, lonely)
    assert torch.isfinite(first).all()
    assert torch.allclose(answers(network, batch(4))[[1, 3]], first[[1, 3]], atol=1e-5)
    nothing = batch(2, without={"image": {0, 1}, "text": {0, 1}})
    assert torch.isfinite(answers(network, nothing)).all()
    network.train()
    empty = network(batch(0))
    assert empty.logits["answer"].shape == (0, 3) and "importance" in empty.losses


def test_a_host_that_is_missing_is_generated_from_what_the_other_one_says() -> None:
    network = model(section(missing="generated"))
    lonely = batch(4, without={"image": {1, 2}, "text": {2}})
    learned = answers(network, lonely)
    assert torch.allclose(learned[1], learned[2], atol=1e-6), "at the start all get the learned vector"
    network.train()
    network(lonely).logits["answer"].square().sum().backward()
    generator: Any = network.generators["image"]
    assert list(network.generators) == ["image"] and generator.weight.grad.abs().sum() > 0
    with torch.no_grad():
        generator.weight.normal_()
        network.missing["text"].normal_()
    made = answers(network, lonely)
    assert torch.allclose(made[[0, 3]], learned[[0, 3]], atol=1e-5) and not torch.allclose(made[1], made[2], atol=1e-3)
    other_text = batch(4, without={"image": {1, 2}, "text": {2}})
    words = other_text.groups["text"]
    words.bytes_O[int(words.offsets[1]) : int(words.offsets[2])] += 1  # type: ignore[attr-defined]
    changed_B = (answers(network, other_text) - made).abs().amax(1) > 1e-5
    assert changed_B.tolist() == [False, True, False, False]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"text": None, "method": "late_fusion"}, r"late_fusion reads two towers, and there is no section mope.text"),
        ({"text": None}, r"mope.method=mope makes prompts from another tower, and there is no section mope.text"),
        ({"image": {"source": "/no/such/folder"}}, r"tower image: folder /no/such/folder does not exist"),
        ({"image": {}}, r"tower image has neither mope.image.source nor mope.image.family"),
        ({"image": {"family": "bert", "config": FAMILIES["bert"]}}, r"tower image: family 'bert' is none of vit, swin"),
        (
            {"image": {"family": "vit", "config": {**FAMILIES["vit"], "image_size": 8}}},
            r"takes pictures of \(3, 8, 8\) .* has \(3, 16, 16\): pack the data at that size",
        ),
        (
            {"image": {"family": "vit", "modality": "x"}},
            r"has no modality of kind image called x; it has image",
        ),
        ({"text": {"family": "bert", "config": {"vocab_size": 30}}}, r"vocabulary of 30 tokens, and bytes need 259"),
        ({"image": {"family": "swin", "config": FAMILIES["swin"]}, "insertion": "tokens"}, r"not for swin's windows"),
    ],
)
def test_what_cannot_be_built_says_why(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BackboneError, match=sentence):
        model(MopeConfig.model_validate({**section().model_dump(), **changes}))
