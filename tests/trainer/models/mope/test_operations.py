"""A step of fine-tuning as a GPU would run it in bf16: nothing is added by index, and hardly anything is asked."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests import varlen_on_cpu  # noqa: F401
from tests.gpu_branch import Watch, gpu_branch
from tests.trainer.models.mope.host.test_model import batch as host_batch
from tests.trainer.models.mope.host.test_model import prompted, tiny_records
from tests.trainer.models.test_operations import CPU, outside_layers
from tests.trainer.towers import batch, model, section
from trainer.models.layers.staging import Stage


def watched(network: Any, records: Any) -> Watch:
    """Forward and backward of everything that is trained."""
    network.train()
    staged = Stage(network, CPU)(records).arrived()
    with gpu_branch(), Watch() as watch:
        with watch.phase("forward"):
            output = network(staged)
            total = sum(value.float().square().sum() for value in output.logits.values())
            total = total + sum(output.losses.values())
        with watch.phase("backward"):
            total.backward()
    return watch


@pytest.mark.parametrize("attention", ["joint", "per_modality", "factorized"])
@pytest.mark.parametrize("context", ["paired", "shuffled"])
def test_prompts_on_a_frozen_host(attention: str, context: str) -> None:
    network = prompted(attention, context=context, alone_entropy=0.1, head_layers="all").bfloat16()
    watch = watched(network, host_batch(tiny_records(10)))
    assert watch.kernels["forward"] > 300 and watch.kernels["backward"] > 100
    assert watch.low_precision_scatters() == []
    assert outside_layers(watch.found_waits) == [] and watch.waits["backward"] == 0


@pytest.mark.parametrize(
    ("image", "text", "changes"),
    [
        ("vit", "bert", {}),
        ("vit", "bert", {"insertion": "tokens"}),
        ("swin", "clip_text_model", {"gate": True}),
        ("dinov2", "roberta", {"prompted": "both"}),
        ("clip_vision_model", "distilbert", {"prompted": "text"}),
        ("vit", "electra", {"missing": "learned"}),
        ("vit", "bert", {"method": "full"}),
        ("clip_vision_model", "roberta", {"method": "full"}),
    ],
)
def test_prompts_between_towers(image: str, text: str, changes: dict[str, Any]) -> None:
    network = model(section(image, text, **changes)).bfloat16()
    lost = {"image": {1}, "text": {0, 3}} if "missing" in changes else None
    watch = watched(network, batch(5, without=lost))
    assert watch.waits["backward"] == 0
    assert watch.kernels["forward"] > 40 and watch.kernels["backward"] > 40
    assert watch.low_precision_scatters() == []
    # transformers moves masks to where the tokens are, which happens to be the CPU here: no copy at all. And it asks
    # whether a mask masks anything, once for each pass of a text tower.
    waits = [found for found in watch.found_waits if found.name != "to"]
    assert len(waits) <= 2 and {found.name for found in waits} <= {"_local_scalar_dense"}


def test_a_batch_of_towers_is_staged_and_asked_nothing() -> None:
    network = model(section())
    staged = Stage(network, torch.device("meta"))(batch(5)).arrived()
    assert staged.plan["text"].tokens[0].device.type == "meta" and staged.plan["image"].place_P is None
    assert staged.plan["text"].known is False and staged.plan["text"].complete
