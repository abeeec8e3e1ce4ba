"""Which layers of a prompted tower get which prompts."""

from __future__ import annotations

from torch import nn

from trainer.config.mope import MopeConfig
from trainer.models.mope.prompts.site_prompts import SitePrompts, StaticPrompts
from trainer.models.mope.towers.sites import Site


def layer_prompts(config: MopeConfig, sites: list[Site], context: int, seed: int, tower: str) -> list[nn.Module]:
    """One module per layer of a prompted tower; an `Identity` where a layer has no prompts.

    Args:
        context: width of what prompts are made from. tower: its name, with `seed` it determines the frozen keys.
    """
    made: list[nn.Module] = []
    for number, site in enumerate(sites):
        first = config.skip_first and site.index == 0
        if first and number == 0 and config.shallow_prompt:
            made.append(StaticPrompts(config.rows, site.width))
        elif first or number < config.first_layer:
            made.append(nn.Identity())
        else:
            made.append(SitePrompts(config, site.width, context, seed, f"{tower}.{number}"))
    return made
