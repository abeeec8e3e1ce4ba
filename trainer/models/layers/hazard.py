"""The loss of a survival task: logistic hazards of discrete intervals (Gensheimer & Narasimhan 2019; Kvamme & Borgan
2021).

A head gives one logit an interval, that of its hazard h: the chance that it happens in the interval, of those who come
that far. The negative log-likelihood of a record, in nats, is that of what is known of it, and nothing else:

- seen at a time in interval k: it came through those before and not through k, -sum_{j<k} log(1 - h_j) - log h_k;
- censored at a time in interval k: it came through those before and through its own share s of k, where s is the part
  of the interval that had passed: -sum_{j<k} log(1 - h_j) - s log(1 - h_k). That is a constant hazard within the
  interval, as a life table has it; a time that is an edge has come through the whole interval that it ends;
- beyond the last edge, seen or censored: it came through all of them. When it happened afterwards is not used.

Where all times are edges and nothing else is known of records, the best hazards are those of Kaplan and Meier. Each
term is a softplus of a logit or of its negative, in fp32: no logarithm of a difference is taken.

Shapes: B records, K intervals.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from data_shards import TaskSpec
from trainer.models.layers.heads import TaskLoss
from trainer.models.layers.standardise import Constant


class HazardLoss(TaskLoss):
    """Sum of the negative log-likelihood over labelled records; each counts once, however many intervals it saw."""

    def __init__(self, task: TaskSpec) -> None:
        super().__init__(task, None, [])
        end_K = torch.tensor(task.edges, dtype=torch.float32)
        self.begin, self.end = Constant(functional.pad(end_K[:-1], (1, 0))), Constant(end_K)
        # What lies after the end before; time 0 lies in the first interval.
        self.after = Constant(functional.pad(end_K[:-1], (1, 0), value=-1.0))

    def labelled(self, target_Bt: Tensor) -> Tensor:
        """(B, 2) targets -> (B,) bool: has a time, and whether it was seen."""
        return ~target_Bt.isnan().any(dim=1)

    def of_each(self, logits_BC: Tensor, target_Bt: Tensor) -> Tensor:
        """(B,) of float32 logits (B, K), targets (B, 2): time, and 1 = seen, 0 = censored; NaN = unlabelled, and 0."""
        begin_K, end_K, logits_BK = self.begin(), self.end(), logits_BC.float()
        unlabelled_B1 = ~self.labelled(target_Bt)[:, None]
        time_B1, seen_B1 = target_Bt.float().masked_fill(unlabelled_B1, -1.0).split(1, dim=1)
        happened_BK = (time_B1 > self.after()) & (time_B1 <= end_K) & (seen_B1 == 1)
        share_BK = ((time_B1 - begin_K) / (end_K - begin_K)).clamp(0, 1)
        survived_BK = share_BK.masked_fill(happened_BK, 0.0)
        each_BK = survived_BK * functional.softplus(logits_BK) + happened_BK * functional.softplus(-logits_BK)
        return each_BK.sum(dim=1)
