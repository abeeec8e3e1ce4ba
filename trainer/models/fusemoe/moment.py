"""When a sample's moment is: an embedding that every token of the sample gets, where tasks have labels at moments.

Tokens stand at times before the moment, at most a horizon; how long the record has been going on they cannot tell.
Shape legend: B samples, N tokens, K width of an embedding of time, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from data_shards import DatasetSchema
from parallel.moe.segments import look_up
from trainer.models.encoders.series import TimeEmbedding

WIDTH = 16


class MomentEmbedding(nn.Module):
    """Moments (B,) in the data's unit of time, NaN for a record without moments -> what its tokens get, (N, D).

    Args:
        scale: the longest horizon of the data, in the moments' unit. Moments may lie far behind it, or before 0: what
            is embedded is asinh of moments over horizons, which is even near 0 and grows like a logarithm.
    """

    def __init__(self, scale: float, bins: int, dim: int) -> None:
        super().__init__()
        self.scale = scale
        self.time = TimeEmbedding(WIDTH, bins)
        self.project = nn.Linear(WIDTH, dim)

    def forward(self, moment_B: Tensor, sample_N: Tensor) -> Tensor:
        known_B1 = ~moment_B.isnan()[:, None]
        time_B = (moment_B.nan_to_num() / self.scale).asinh()
        moment_BD = self.project(self.time(time_B).to(self.project.weight.dtype))
        return look_up(torch.where(known_B1, moment_BD, 0.0), sample_N)


def longest_horizon(schema: DatasetSchema) -> float:
    """Of the modalities with times, in the unit of the moments; 1 where there are none."""
    known = zip(schema.modalities, schema.moment_ratios, strict=True)
    return max((spec.horizon / ratio for spec, ratio in known if spec.has_times and spec.horizon), default=1.0)
