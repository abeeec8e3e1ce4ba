"""Convolutional networks of timm, as a DenseNet: folders as transformers writes them and as the hub has them.

Needs timm and the torchvision of the installed torch, which the project does not ask for.
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from data_shards import ImageGroup, ModalitySpec
from trainer.config.encoders import PretrainedConfig
from trainer.models.pretrained.load import load_encoder
from trainer.models.pretrained.loading.backbone import BackboneError

SIDE = 64
SPEC = ModalitySpec("cxr", "image", shape=(3, SIDE, SIDE), dtype="uint8")
MEAN, STD = [0.5, 0.25, 0.1], [0.5, 0.4, 0.9]


def installed() -> Any:
    try:
        return import_module("timm")
    except (ImportError, RuntimeError) as error:  # a torchvision that was built for another torch says the latter
        pytest.skip(f"timm cannot be imported: {error}")


def saved(folder: Path, architecture: str, hub: bool, **options: Any) -> Any:
    """The plain network, of which the folder has the weights."""
    torch.manual_seed(0)
    network = installed().create_model(architecture, pretrained=False, num_classes=0, **options).eval()
    with torch.no_grad():
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.1 * torch.randn_like(buffer))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand_like(buffer))
    folder.mkdir()
    seen = options.get("in_chans", 3)
    normalisation = {"mean": MEAN[:seen], "std": STD[:seen]}
    about = {"architecture": architecture, "num_classes": 0, "pretrained_cfg": normalisation}
    about |= {} if hub else {"model_type": "timm_wrapper"}
    about |= {"model_args": options} if options else {}
    prefix = "" if hub else "timm_model."
    (folder / "config.json").write_text(json.dumps(about))
    weights = {prefix + name: value for name, value in network.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return network


@pytest.mark.long
@pytest.mark.parametrize("hub", [False, True])
def test_a_densenet_says_what_the_plain_one_says(tmp_path: Path, hub: bool) -> None:
    network = saved(tmp_path / "dense", "densenet121", hub)
    generator = torch.Generator().manual_seed(1)
    value_PCHW = torch.randint(0, 256, (3, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    rows = torch.arange(3)
    group = ImageGroup(torch.zeros_like(rows), rows, value_PCHW)
    mean, std = (torch.tensor(value)[:, None, None] for value in (MEAN, STD))
    with torch.no_grad():
        cell_PDHW = network.forward_features((value_PCHW / 255 - mean) / std)

    def read(**settings: Any) -> torch.Tensor:
        encoder = load_encoder(SPEC, PretrainedConfig(source=str(tmp_path / "dense"), **settings)).eval()
        with torch.no_grad():
            return encoder(group, encoder.look(group))

    pooled_PD = cell_PDHW.mean((2, 3))
    torch.testing.assert_close(read()[:, 0], pooled_PD, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(read(tokens=4), cell_PDHW.flatten(2).transpose(1, 2), rtol=1e-5, atol=1e-5)
    low = read(dtype="bfloat16")[:, 0]
    assert 0 < float((low - pooled_PD).norm() / pooled_PD.norm()) < 0.05
    # Trained as a whole in bf16: every weight learns, statistics stay as they are.
    encoder = load_encoder(SPEC, PretrainedConfig(source=str(tmp_path / "dense"), train="all")).bfloat16().train()
    before = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    found = encoder(group, encoder.look(group))
    assert float((found.detach()[:, 0] - pooled_PD).norm() / pooled_PD.norm()) < 0.05
    found.square().sum().backward()
    assert all(p.grad is not None and p.dtype == torch.bfloat16 for p in encoder.parameters())
    assert all(torch.equal(buffer, before[name]) for name, buffer in encoder.named_buffers())
    with pytest.raises(BackboneError, match="train=lora is not known for models of this type: set train to none"):
        read(train="lora")


def test_a_network_for_grey_pictures_takes_one_channel(tmp_path: Path) -> None:
    network = saved(tmp_path / "grey", "resnet18", True, in_chans=1)
    grey = ModalitySpec("cxr", "image", shape=(1, SIDE, SIDE), dtype="uint8")
    encoder = load_encoder(grey, PretrainedConfig(source=str(tmp_path / "grey"))).eval()
    value_PCHW = torch.arange(2 * SIDE * SIDE).remainder(251).to(torch.uint8).view(2, 1, SIDE, SIDE)
    group = ImageGroup(torch.zeros(2, dtype=torch.int64), torch.arange(2), value_PCHW)
    with torch.no_grad():
        expected_PD = network.forward_features((value_PCHW / 255 - MEAN[0]) / STD[0]).mean((2, 3))
        found_PND = encoder(group, encoder.look(group))
    torch.testing.assert_close(found_PND[:, 0], expected_PD, rtol=1e-5, atol=1e-5)
    with pytest.raises(BackboneError, match="takes pictures of 1 channels, and modality cxr has 3: pack it with 1"):
        load_encoder(SPEC, PretrainedConfig(source=str(tmp_path / "grey")))


def test_what_gives_no_maps_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "vit", "test_vit", False)
    small = ModalitySpec("cxr", "image", shape=(3, 160, 160), dtype="uint8")
    with pytest.raises(BackboneError, match="vit is no convolutional network, and of timm only those are read: give"):
        load_encoder(small, PretrainedConfig(source=str(tmp_path / "vit")))
