"""What is shown of prompt experts: the records they serve most, in variety, and words that are theirs."""

from __future__ import annotations

import torch

from trainer.figures.gallery import EXAMPLES, Gallery, gallery_figure
from trainer.figures.prompt_experts import class_figure, site_figure
from trainer.models.mope.prompt_experts import class_table


def gallery() -> Gallery:
    """Expert 0 serves questions, expert 1 statements; the same few pictures and words come again and again."""
    found, generator = Gallery("image.3"), torch.Generator().manual_seed(0)
    pictures = [torch.randint(0, 256, (3, 4, 4), generator=generator, dtype=torch.uint8) for _ in range(20)]
    for number in range(10):
        texts = {row: f"is there a shape, {number} {row}?" if row % 2 else "the shape is red" for row in range(4)}
        weights_BK = torch.tensor([[0.9, 0.1] if row % 2 else [0.2, 0.8] for row in range(4)])
        weights_BK[1] -= torch.tensor([0.01, -0.01]) * number
        found.add(weights_BK, {row: pictures[(number + row) % 20] for row in range(4)}, texts)
    return found


def test_examples_have_the_highest_weights_and_do_not_repeat_each_other() -> None:
    found = gallery()
    best = found.best[0]
    assert [one.weight for one in best] == sorted((one.weight for one in best), reverse=True)
    assert len(best) == EXAMPLES and best[0].weight > 0.89
    assert len({one.text for one in best}) == EXAMPLES
    assert len({tuple(one.picture.flatten().tolist()) for one in best if one.picture is not None}) == EXAMPLES
    assert found.best[1][0].text == "the shape is red" and found.best[1][1].text != "the shape is red"


def test_typical_words_are_those_that_others_do_not_have() -> None:
    found = gallery()
    assert {"there", "a"} <= set(found.typical(0)) and not {"red", "shape"} & set(found.typical(0))
    assert {"red", "the"} == set(found.typical(1)[:2])


def test_records_without_the_modality_are_left_out() -> None:
    found = Gallery()
    found.add(torch.tensor([[torch.nan, torch.nan], [0.3, 0.7]]), {}, {0: "lost", 1: "kept"})
    assert [one.text for one in found.best[1]] == ["kept"] and "lost" not in found.everywhere
    table_CK = class_table(torch.tensor([[torch.nan] * 2, [0.3, 0.7], [0.5, 0.5]]), torch.tensor([0.0, 1.0, 1.0]), 3)
    assert torch.allclose(table_CK[1], torch.tensor([0.4, 0.6])) and table_CK[[0, 2]].isnan().all()


def test_figures_have_a_panel_a_site_a_tower_a_block_and_a_row_an_expert() -> None:
    tables = {f"image.{n}": torch.rand(3, 4) for n in range(2)}
    entropy = dict.fromkeys([*tables, "block.0.lab", "block.0.a.b", "block.1.lab"], 0.5)
    assert len(class_figure(tables, ["a", "b", "c"], entropy).axes) == 2 + 1, "and the scale"
    layers = site_figure({site: table[0] for site, table in tables.items()}, entropy)
    assert [axes.get_title() for axes in layers.axes[:-1]] == ["image"]
    blocks = site_figure({site: torch.rand(4) for site in ("block.0.lab", "block.0.a.b", "block.1.lab")}, entropy)
    assert [axes.get_title() for axes in blocks.axes[:-1]] == ["block 0", "block 1"]
    rows = [label.get_text() for label in blocks.axes[0].get_yticklabels()]
    assert rows == ["lab, entropy 0.50", "a.b, entropy 0.50"]
    titles = [part.get_suptitle() for part in gallery_figure(gallery()).subfigs]
    assert titles[0].startswith("image.3 expert 0: ") and titles[1].startswith("image.3 expert 1: ")
