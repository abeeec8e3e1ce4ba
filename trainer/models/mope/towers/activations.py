"""What one record keeps for the backward pass of a model with towers: modelled, for `plan`."""

from __future__ import annotations

from torch import nn

from trainer.models.mope.towers.flops import passes, site_tokens
from trainer.models.mope.towers.model import TowerModel
from trainer.models.mope.towers.segmentation import PromptedSegmenter


def kept_elements(model: TowerModel) -> float:
    """Elements of one record, over all towers, and of a head that marks pixels."""
    return sum(_tower_elements(model, what) for what in model.towers) + _mask_elements(model)


def _tower_elements(model: TowerModel, what: str) -> float:
    """A frozen layer keeps what its norms, its attention and its activation need; a trained one inputs of products too.

    Without prompts a frozen tower keeps nothing.
    """
    tower, total = model.tower(what), 0.0
    if passes(model, what) == 1:
        return total
    for site in tower.sites:
        tokens = site_tokens(model, what, site)
        inside = max(part.out_features for part in site.layer.modules() if isinstance(part, nn.Linear))
        each = 6 * site.width + inside
        if tower.trained:
            each += 3 * site.width + inside
        total += tokens * each
        if what in model.prompts:
            side: int = getattr(site.layer, "window_size", 0)  # type: ignore[assignment]
            windows = max(1.0, tokens / side**2) if side else 1.0
            total += (windows + 1) * 2 * site.width * model.config.rows
    return total


def _mask_elements(model: TowerModel) -> float:
    """Of a UperNet head: maps of all stages, convolutions with norm and activation on each, the loss at full size."""
    if not isinstance(model, PromptedSegmenter):
        return 0.0
    tower, hidden = model.tower("image"), model.config.mask.hidden  # type: ignore[union-attr]
    _, height, width = tower.picture_shape
    firsts = [site for site in tower.sites if site.index == 0]
    # A stage's map is taken after it was merged into the next one's cells; the last one's is not merged.
    cells = [site_tokens(model, "image", site) for site in [*firsts[1:], firsts[-1]]]
    each = sum(number * 8 * hidden for number in cells)
    return each + cells[0] * 2 * len(cells) * hidden + height * width * model.classes * 6
