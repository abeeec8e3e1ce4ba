"""A prompted Swin with a UperNet head learns to mark the square that the text names; the backbone stays as it was."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_shards import Batch, DatasetSchema, ImageGroup, ModalitySpec, create_source, open_manifest, pack
from tests.trainer.jobs.test_train import job
from tests.trainer.models.mope.test_mope_run import same
from tests.trainer.tiny import changed
from tests.trainer.towers import FAMILIES, SCHEMA, SIDE, STATISTICS, build, section
from trainer.checkpoints.evaluation_recipe import evaluation_config
from trainer.checkpoints.find import open_checkpoint
from trainer.config.run_config import RunConfig
from trainer.models.mope.towers.segmentation import UNLABELLED, PromptedSegmenter, agreement, mask_loss
from trainer.models.pretrained.loading.backbone import BackboneError

MARKED = DatasetSchema(
    "marked", (*SCHEMA.modalities, ModalitySpec("mask", "image", shape=(1, SIDE, SIDE), dtype="uint8"))
)
GROUP = f"image/1x{SIDE}x{SIDE}"


def drawings(records: int, seed: int) -> tuple[dict[int, torch.Tensor], dict[int, bytes], torch.Tensor]:
    """A red and a blue square each, the text says which one is meant; its mask (B, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    pictures, texts, masks = {}, {}, torch.zeros(records, SIDE, SIDE, dtype=torch.uint8)
    for number in range(records):
        picture = torch.full((3, SIDE, SIDE), 128, dtype=torch.uint8)
        left_first = bool(torch.randint(0, 2, (1,), generator=generator))
        wanted = int(torch.randint(0, 2, (1,), generator=generator))
        for colour in range(2):
            column = 0 if (colour == 0) == left_first else SIDE // 2
            row = int(torch.randint(0, SIDE // 2, (1,), generator=generator))
            place = (slice(row, row + SIDE // 2), slice(column, column + SIDE // 2))
            picture[(slice(None), *place)] = torch.tensor([[255, 0, 0], [0, 0, 255]][colour]).byte()[:, None, None]
            if colour == wanted:
                masks[(number, *place)] = 1
        pictures[number], texts[number] = picture, (b"red", b"blue")[wanted]
    return pictures, texts, masks


def squares(records: int, seed: int, without: int | None = None) -> Batch:
    """A batch of drawings; the record `without` has no mask."""
    pictures, texts, masks = drawings(records, seed)
    rows = torch.tensor([row for row in range(records) if row != without], dtype=torch.int64)
    plain = build(pictures, texts, list(range(records)))
    group = ImageGroup(torch.full_like(rows, 2), rows, masks[rows][:, None])
    present = torch.cat([plain.present_BM, torch.zeros(records, 1, dtype=torch.bool)], 1)
    present[rows, 2] = True
    return dataclasses.replace(plain, present_BM=present, groups={**plain.groups, GROUP: group}, targets={})


def segmenter(**changes: Any) -> PromptedSegmenter:
    torch.manual_seed(0)
    tree = {"mask": {"hidden": 8}, **changes}
    return PromptedSegmenter(MARKED, STATISTICS, section(tree.pop("family", "swin"), "bert", **tree), 0)


@pytest.mark.slow
def test_the_named_square_is_marked() -> None:
    network = segmenter(k=4, mask={"hidden": 16})
    frozen = {name: value.clone() for name, value in network.towers.state_dict().items()}
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=0.01)
    network.train()
    for step in range(120):
        optimizer.zero_grad()
        torch.stack(list(network(squares(16, step)).losses.values())).sum().backward()
        optimizer.step()
    network.eval()
    with torch.no_grad():
        score = network(squares(64, 10_000)).measures["iou"].mean()
    # Marking both squares, or one of them by chance, gives half.
    assert score > 0.6
    assert all(torch.equal(frozen[name], value) for name, value in network.towers.state_dict().items())


def test_masks_have_the_size_of_the_pictures_and_nobody_gets_anothers() -> None:
    network = segmenter(mask={"hidden": 8, "classes": 3})
    network.train()
    output = network(squares(3, 0))
    output.losses["mask"].backward()
    trained = {name for name, p in network.named_parameters() if p.grad is not None}
    assert any("experts_KLD" in name for name in trained) and not any(name.startswith("towers.") for name in trained)
    network.eval()
    with torch.no_grad():
        together, _ = network.masks(squares(3, 0))
        changed_batch = squares(3, 0)
        changed_batch.groups[f"image/3x{SIDE}x{SIDE}"].values_PCHW[0] //= 2  # type: ignore[attr-defined]
        after, _ = network.masks(changed_batch)
    assert together.shape == (3, 3, SIDE, SIDE)
    assert (after[0] - together[0]).abs().max() > 1e-3 and torch.allclose(after[1:], together[1:], atol=1e-5)


def test_records_without_a_mask_teach_nothing_and_are_not_measured() -> None:
    network = segmenter(noise=0.0).eval()
    with torch.no_grad():
        whole, part = network(squares(3, 0)).measures, network(squares(3, 0, without=1)).measures
    assert part["iou"].isnan().tolist() == [False, True, False]
    assert torch.allclose(part["loss"][[0, 2]], whole["loss"][[0, 2]], atol=1e-5)
    network.train()
    value = float(network(squares(3, 0, without=1)).losses["mask"].detach())
    assert value == pytest.approx(float(whole["loss"][[0, 2]].mean()), abs=1e-4)
    empty = network(squares(0, 0))
    empty.losses["mask"].backward()
    assert empty.measures["iou"].shape == (0,)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"family": "vit"}, "mope.mask needs a swin tower that is prompted"),
        ({"prompted": "both"}, "mope.mask needs a swin tower that is prompted"),
        ({"missing": "learned"}, "mope.mask needs a picture in every record"),
        ({"mask": {"modality": "marks"}}, "mope.mask.modality=marks, and data set marked has no such modality"),
        ({"mask": {"modality": "text"}}, r"must be pictures of class numbers.* and it is text uint8 \(\)"),
    ],
)
def test_what_cannot_be_built_says_why(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BackboneError, match=sentence):
        segmenter(**changes)


def test_a_class_that_the_recipe_does_not_know_is_named() -> None:
    batch = squares(3, 0)
    batch.groups[GROUP].values_PCHW[1, 0, 3, 3] = 7  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"the mask of record r1 has class 7, and mope.mask.classes is 2"):
        segmenter()(batch)


def test_agreement_is_one_for_the_mask_itself_and_unlabelled_pixels_do_not_count() -> None:
    mask_PHW = drawings(4, 1)[2].long()
    right = torch.stack([1 - mask_PHW, mask_PHW], 1).float() * 40
    found = agreement(right, mask_PHW)
    assert found["iou"].tolist() == [1.0] * 4 and found["pixel_accuracy"].tolist() == [1.0] * 4
    wrong = agreement(right.flip(1), mask_PHW)
    assert wrong["iou"].tolist() == [0.0] * 4 and wrong["pixel_accuracy"].tolist() == [0.0] * 4
    assert mask_loss(right, mask_PHW).max() < 0.01 < mask_loss(torch.zeros_like(right), mask_PHW).min()
    half = mask_PHW.clone()
    half[:, : SIDE // 2] = UNLABELLED
    upside = torch.cat([right.flip(1)[:, :, : SIDE // 2], right[:, :, SIDE // 2 :]], 2)
    assert agreement(upside, half)["iou"].tolist() == [1.0] * 4
    assert torch.allclose(mask_loss(upside, half), mask_loss(right, half))
    nothing = torch.zeros(1, SIDE, SIDE, dtype=torch.int64)
    assert agreement(torch.stack([nothing + 1, nothing], 1).float(), nothing)["iou"].tolist() == [1.0]


def marked_folder(folder: Path) -> Path:
    """Drawings as files, with a line of JSON each; masks are palette pictures of another size."""
    for part, records in (("train", 24), ("val", 6), ("test", 10)):
        pictures, texts, masks = drawings(records, len(part))
        (folder / part).mkdir(parents=True)
        lines = []
        for number in range(records):
            Image.fromarray(pictures[number].permute(1, 2, 0).numpy()).save(folder / part / f"{number}.png")
            mask = Image.fromarray(np.kron(masks[number].numpy(), np.ones((2, 2), np.uint8)))
            mask.save(folder / part / f"{number}_mask.png")
            line = {"img": f"{part}/{number}.png", "text": texts[number].decode(), "mask": f"{part}/{number}_mask.png"}
            lines.append(line if number else {**line, "mask": None})
        (folder / f"{part}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def recipe(data: str, storage: Path, **changes: Any) -> RunConfig:
    tree: dict[str, Any] = {
        "job": "mope",
        "name": "run",
        "data": {"url": data},
        "mope": {
            "image": {"family": "swin", "config": FAMILIES["swin"]},
            "text": {"family": "bert", "config": FAMILIES["bert"]},
            "mask": {"hidden": 8},
            "k": 3,
            "static_length": 2,
            "dynamic_length": 2,
            "mapper_hidden": 8,
        },
        "optim": {"lr": 0.01},
        "training": {"epochs": 2, "batch_size": 8, "log_every": 1, "storage": str(storage)},
        "tracking": {"mlflow": False},
    }
    tree["training"]["early_stopping"] = {"metric": "val/iou", "mode": "max"}
    return changed(tree, changes)


@pytest.mark.long
def test_a_run_marks_pixels_stops_continues_and_is_evaluated_by_its_adapter(tmp_path: Path) -> None:
    """Two ranks, of which one has fewer records; packed from files of pictures and masks."""
    source = create_source("image_text", {"path": str(marked_folder(tmp_path / "files")), "mask": "mask", "size": SIDE})
    pack(source, str(tmp_path / "data"), chunk_records=8)
    data = str(tmp_path / "data")
    manifest = open_manifest(data)
    assert manifest.schema.tasks == () and manifest.schema.numbers["mask"] == 2
    whole = job(2, recipe(data, tmp_path / "whole", parallel__workers=2))
    assert set(whole["metrics"]) == {"test/iou", "test/pixel_accuracy", "test/loss", "test/records"}
    assert 0 < whole["metrics"]["test/pixel_accuracy"] < 1 and whole["metrics"]["test/records"] == 10
    job(2, recipe(data, tmp_path / "broken", parallel__workers=2), stop_at=3)
    last = job(2, recipe(data, tmp_path / "broken", parallel__workers=2))
    assert last["metrics"] == whole["metrics"]
    same(tmp_path, "whole", "broken")
    again = job(1, evaluation_config(open_checkpoint(whole["adapter"])))
    assert again["metrics"] == pytest.approx(whole["metrics"], rel=1e-4)
