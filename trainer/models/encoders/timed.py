"""Timed texts, pictures, recordings and vectors: any number of a pair, each encoded as one without a time would be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.models.encoders.layout import Encoder, GroupLayout, PresentPairs, group_layout_of
from trainer.models.encoders.over_time import ObjectTimes, OverTime
from trainer.models.layers.standardise import Constant
from trainer.models.layers.token_layout import EncodedGroup


@dataclass(frozen=True)
class TimedLayout:
    """Of the objects' encoder, and of what brings them to their times."""

    objects: GroupLayout
    over_time: Any


class TimedEncoder(Encoder):
    """Objects of a group, each row one -> tokens of all pairs.

    Args:
        encoder: of one object. horizon: observation window of each modality, in its time unit.
    """

    timed = True

    def __init__(self, encoder: Encoder, over_time: OverTime, horizon: list[float]) -> None:
        super().__init__()
        self.encoder, self.over_time, self.tokens = encoder, over_time, encoder.tokens
        self.horizon, self.horizon_M = horizon, Constant(torch.tensor(horizon))

    def lay_out(self, group: Any, block_P: Tensor, blocks: int, present: PresentPairs | None) -> TimedLayout:
        assert present is not None
        objects = group_layout_of(self.encoder, group, block_P, blocks)
        time_P = group.times_P / torch.tensor(self.horizon, device="cpu")[block_P]
        times = ObjectTimes(present.number(block_P, group.sample_P), time_P, objects.pairs)
        return TimedLayout(objects, self.over_time.lay_out(times, present))

    def encoded(self, group: Any, layout: GroupLayout, present: PresentPairs | None) -> EncodedGroup:
        assert present is not None
        return self.over_time.encoded(layout.own.over_time, present)

    def forward(self, group: Any, layout: GroupLayout) -> Tensor:
        own: TimedLayout = layout.own
        token_PTD = self.encoder(group, own.objects)
        return self.over_time(token_PTD, group.times_P / self.horizon_M()[layout.block_P], own.over_time)  # type: ignore[no-any-return]
