"""Objects at irregular times -> tokens on the regular grid: mTAND, imputation, or their gated mixture.

What the series encoder does with values (arXiv 2402.03226, App. E), here with embedded objects, whose features are all
observed together. First an object's tokens become one embedding: learned queries read them. Then
*mTAND*: each bin's end attends, by several learned embeddings of time, to the times of the objects, before it and
after it (arXiv 2101.10318); of one object alone this does not show when it came, as its weight is always 1;
*imputation*: the last object at or before the bin's end, its age, and whether there was any; zeros before the first.
Of objects at the same time the one that the record lists last counts as the last.

Pairs of about the same number of objects share a rectangle (buckets), so one record of many makes no other pay. Sums
are in fp32 and add nothing up by address.

Shape legend: O objects of a group, U tokens of an object, L queries, Q pairs, T bins, H time heads, K width of a head,
D width, S pairs of a bucket, R objects of a rectangle's row, X = T * H.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from parallel.moe.segments import look_up
from trainer.config.sections import ObjectsConfig
from trainer.models.encoders.layout import PresentPairs
from trainer.models.encoders.over_time import ObjectTimes, OverTime
from trainer.models.encoders.series import (
    TimeEmbedding,
    gate_share,
    initial_time_queries,
    mtand_reference,
    time_scores,
    with_earlier_bins,
)
from trainer.models.layers.grouped_linear import Blocks, GroupedLinear
from trainer.models.layers.ragged import Ragged, put_rows, ragged
from trainer.models.layers.token_layout import EncodedGroup, bin_of_time


@dataclass(frozen=True)
class GridPlaces:
    """Objects of each block; tokens of each block; objects by pair, and the pairs in that order.

    last_QT: int64, the last object at or before each bin's end, O for none; age_QT: float32, its age in horizons, 1
    for none.
    """

    objects: Blocks
    rows: Blocks
    by_pair: Ragged
    pair_S: Tensor
    last_QT: Tensor
    age_QT: Tensor


class GridOverTime(OverTime):
    """(O, U, D) -> (Q * T, D).

    Args:
        blocks: modalities. tokens: U. irregularity: mtand, imputation or utde. bins: T. dim: D.
    """

    def __init__(self, blocks: int, tokens: int, irregularity: str, config: ObjectsConfig, bins: int, dim: int) -> None:
        super().__init__()
        self.config, self.irregularity, self.bins = config, irregularity, bins
        self.query_MLD = None
        if tokens > 1:
            self.query_MLD = nn.Parameter(torch.randn(blocks, config.queries, dim) * dim**-0.5)
            self.read = GroupedLinear(blocks, config.queries * dim, dim)
        if irregularity != "mtand":
            self.imputation = GroupedLinear(blocks, config.kernel * (dim + 2), dim)
        if irregularity != "imputation":
            self.time = TimeEmbedding(config.time_dim, bins)
            self.query = initial_time_queries(config.heads, config.time_dim)
            self.mtand = GroupedLinear(blocks, config.heads * dim + 1, dim)
        if irregularity == "utde":
            self.gate = GroupedLinear(blocks, 2 * dim, dim)

    def lay_out(self, times: ObjectTimes, present: PresentPairs) -> GridPlaces:
        pairs, bins, objects = len(present.sample_Q), self.bins, len(times.time_O)
        cell_O = times.pair_O * bins + bin_of_time(times.time_O, bins)
        seen_QT = torch.bincount(cell_O, minlength=pairs * bins).view(pairs, bins).cumsum(1)
        count_Q = torch.bincount(times.pair_O, minlength=pairs)
        last_QT = torch.where(seen_QT > 0, (count_Q.cumsum(0) - count_Q)[:, None] + seen_QT - 1, objects)
        now_T = torch.arange(1, bins + 1, dtype=torch.float32) / bins
        # Behind the last object stands none, whose age is a whole horizon at every bin.
        time_QT = torch.cat([times.time_O, times.time_O.new_zeros(1)])[last_QT]
        age_QT = torch.where(seen_QT > 0, now_T - time_QT, 1.0)
        by_pair = ragged(times.pair_O, pairs)
        sorted_O = times.pair_O[by_pair.order_N]
        return GridPlaces(
            times.objects, present.blocks.times(bins), by_pair, sorted_O.unique_consecutive(), last_QT, age_QT
        )

    def encoded(self, layout: GridPlaces, present: PresentPairs) -> EncodedGroup:
        return EncodedGroup(present.modality_Q, present.sample_Q, present.blocks, self.bins)

    def forward(self, token_OUD: Tensor, time_O: Tensor, layout: GridPlaces) -> Tensor:
        object_OD, views = self._embed(token_OUD, layout.objects), []
        if self.irregularity != "mtand":
            views.append(self.imputation(self._impute(object_OD, layout).flatten(0, 1), layout.rows))
        if self.irregularity != "imputation":
            views.append(self.mtand(self._attend(object_OD, time_O, layout).flatten(0, 1), layout.rows))
        if len(views) == 2:
            gate = gate_share(self.gate(torch.cat(views, dim=-1), layout.rows), self.config.gate, self.bins)
            views = [gate * views[0] + (1 - gate) * views[1]]
        return views[0]

    def _embed(self, token_OUD: Tensor, objects: Blocks) -> Tensor:
        """One embedding of each object, (O, D)."""
        if self.query_MLD is None:
            return token_OUD.flatten(1)
        query_OLD = objects.segments.spread(self.query_MLD)
        weight_OLU = torch.einsum("old,oud->olu", query_OLD, token_OUD.to(query_OLD.dtype)).float().softmax(-1)
        read_OLD = torch.einsum("olu,oud->old", weight_OLU.to(token_OUD.dtype), token_OUD)
        return self.read(read_OLD.flatten(1), objects)

    def _impute(self, object_OD: Tensor, layout: GridPlaces) -> Tensor:
        """The last object, its age, whether there was any: (Q, T, kernel * (D + 2))."""
        # The row behind the last object stands for none.
        value_QTD = look_up(functional.pad(object_OD, (0, 0, 0, 1)), layout.last_QT.flatten())
        value_QTD = value_QTD.view(*layout.last_QT.shape, object_OD.shape[1])
        about_QT2 = torch.stack([layout.age_QT, (layout.last_QT < object_OD.shape[0]).float()], -1)
        return with_earlier_bins(torch.cat([value_QTD, about_QT2.to(value_QTD.dtype)], -1), self.config.kernel)

    def _attend(self, object_OD: Tensor, time_O: Tensor, layout: GridPlaces) -> Tensor:
        """mTAND: (Q, T, H * D + 1): one attended object a head, and whether the pair has any."""
        pairs, (dim, heads) = len(layout.last_QT), (object_OD.shape[1], self.config.heads)
        score_OX = time_scores(self.time, self.query, time_O, self.bins)
        width, attended = score_OX.shape[1], [object_OD.new_zeros(0, score_OX.shape[1], dim).float()]
        rows_OY = layout.by_pair.arrange(torch.cat([score_OX, object_OD.float()], 1))
        split = rows_OY.split([bucket.rows for bucket in layout.by_pair.buckets]) if layout.by_pair.buckets else ()
        for bucket, rows_RY in zip(layout.by_pair.buckets, split, strict=True):
            score_SRX, object_SRD = bucket.pad(rows_RY).split([width, dim], dim=2)
            if bucket.valid_SL is not None:
                score_SRX = score_SRX.masked_fill(~bucket.valid_SL[..., None], -torch.inf)
            attended.append(score_SRX.softmax(1).transpose(1, 2) @ object_SRD)
        attended_SXD = torch.cat(attended)
        some_S = attended_SXD.new_ones(len(attended_SXD), self.bins, 1)
        features_STX = torch.cat([attended_SXD.view(-1, self.bins, heads * dim), some_S], -1)
        # A pair without objects gives zeros, and says so.
        return put_rows(features_STX, layout.pair_S, pairs)


def grid_reference(module: GridOverTime, object_OD: Tensor, times: ObjectTimes, present: PresentPairs) -> Tensor:
    """The obvious loops over pairs, bins, heads and features, from embedded objects: (Q, T, D)."""
    bins, found = module.bins, []
    for pair, block in enumerate(present.block_Q.tolist()):
        own = (times.pair_O == pair).nonzero()[:, 0].tolist()
        time_R, object_RD = times.time_O[own], object_OD[own]
        views = []
        if module.irregularity != "mtand":
            views.append(_map(module.imputation, _imputation_reference(module, time_R, object_RD), block))
        if module.irregularity != "imputation":
            views.append(_map(module.mtand, _attention_reference(module, time_R, object_RD), block))
        if len(views) == 2:
            logit_TD = _map(module.gate, torch.cat(views, -1), block)
            if module.config.gate == "bin":
                logit_TD = logit_TD.mean(1, keepdim=True)
            if module.config.gate == "sample":
                logit_TD = logit_TD.mean()
            share = torch.sigmoid(logit_TD)
            views = [share * views[0] + (1 - share) * views[1]]
        found.append(views[0])
    return torch.stack(found) if found else object_OD.new_zeros(0, bins, object_OD.shape[1])


def _map(layer: GroupedLinear, x_TX: Tensor, block: int) -> Tensor:
    return x_TX @ layer.weight[block, : layer.inputs] + layer.bias[block]


def _imputation_reference(module: GridOverTime, time_R: Tensor, object_RD: Tensor) -> Tensor:
    steps = []
    for step in range(module.bins):
        last = None
        for number, time in enumerate(time_R.tolist()):
            if min(int(time * module.bins), module.bins - 1) <= step:
                last = number
        if last is None:
            steps.append(torch.cat([object_RD.new_zeros(object_RD.shape[1]), torch.tensor([1.0, 0.0])]))
        else:
            age = (step + 1) / module.bins - time_R[last]
            steps.append(torch.cat([object_RD[last], torch.stack([age, torch.tensor(1.0)])]))
    nothing = torch.zeros_like(steps[0])
    earlier = [[*[nothing] * module.config.kernel, *steps][step + 1 :] for step in range(module.bins)]
    return torch.stack([torch.cat(window[: module.config.kernel]) for window in earlier])


def _attention_reference(module: GridOverTime, time_R: Tensor, object_RD: Tensor) -> Tensor:
    if not len(time_R):
        return torch.zeros(module.bins, module.config.heads * object_RD.shape[1] + 1)
    now_TK = module.time(torch.arange(1, module.bins + 1) / module.bins)
    columns = []
    for query_KK in module.query:
        for value_R in object_RD.unbind(1):
            columns.append(mtand_reference(now_TK @ query_KK.T, module.time(time_R), value_R))
    return torch.stack([*columns, torch.ones(module.bins)], 1)
