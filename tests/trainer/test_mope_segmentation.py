"""A prompted Swin with a UperNet head learns to mark the square that the text names; the backbone stays as it was."""

from __future__ import annotations

import pytest
import torch

from data_shards import Batch
from tests.trainer.towers import SCHEMA, SIDE, STATISTICS, build, section
from trainer.models.mope.segmentation import PromptedSegmenter, intersection_over_union, mask_loss
from trainer.models.mope.tower_sources import BackboneError


def squares(records: int, seed: int) -> tuple[Batch, torch.Tensor]:
    """A red and a blue square each, the text says which one is meant; its mask."""
    generator = torch.Generator().manual_seed(seed)
    pictures, texts, masks = {}, {}, torch.zeros(records, SIDE, SIDE)
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
    return build(pictures, texts, list(range(records))), masks


@pytest.mark.slow
def test_the_named_square_is_marked() -> None:
    torch.manual_seed(0)
    network = PromptedSegmenter(SCHEMA, STATISTICS, section("swin", "bert", k=4), 0, hidden=16)
    frozen = {name: value.clone() for name, value in network.towers.state_dict().items()}
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=0.01)
    network.train()
    for step in range(120):
        records, masks = squares(16, step)
        logits, losses = network.masks(records)
        optimizer.zero_grad()
        (mask_loss(logits[:, 0], masks) + sum(losses.values())).backward()
        optimizer.step()
    records, masks = squares(64, 10_000)
    network.eval()
    with torch.no_grad():
        score = intersection_over_union(network.masks(records)[0][:, 0], masks).mean()
    # Marking both squares, or one of them by chance, gives half.
    assert score > 0.6
    assert all(torch.equal(frozen[name], value) for name, value in network.towers.state_dict().items())


def test_masks_have_the_size_of_the_pictures_and_reach_the_prompts() -> None:
    torch.manual_seed(0)
    network = PromptedSegmenter(SCHEMA, STATISTICS, section("swin", "bert"), 0, classes=2, hidden=8)
    network.train()
    records, masks = squares(3, 0)
    logits, _ = network.masks(records)
    assert logits.shape == (3, 2, SIDE, SIDE)
    mask_loss(logits[:, 0], masks).backward()
    trained = {name for name, p in network.named_parameters() if p.grad is not None}
    assert any("experts_KLD" in name for name in trained) and not any(name.startswith("towers.") for name in trained)
    with pytest.raises(BackboneError, match="segmentation needs a swin tower that is prompted"):
        PromptedSegmenter(SCHEMA, STATISTICS, section("vit", "bert"), 0)


def test_overlap_is_one_for_the_mask_itself() -> None:
    _, masks = squares(4, 1)
    assert intersection_over_union(masks * 2 - 1, masks).tolist() == [1.0] * 4
    assert intersection_over_union(1 - masks * 2, masks).tolist() == [0.0] * 4
    assert mask_loss(masks * 40 - 20, masks) < 0.01 < mask_loss(torch.zeros_like(masks), masks)
