"""Prompts on a frozen FuseMoE model: each stream is prompted by the streams that are present beside it.

All streams meet every fusion block, so one pass is enough: at a block, each stream's pooled state becomes an entry of
the context; a host pools the entries of the *other present* modalities (and a learned null, so that a modality that is
alone still has a context), and router and mapper make its prompts from that. What is absent takes no part: its entry
is masked, and one learned row per absent modality joins the static prompt. Prompts enter the attention within a
modality through a softmax and a gate of their own; the experts, the pooling and the number of tokens stay as they
were, and at the start the model is exactly the backbone.

Shapes: B samples, M modalities, Q present pairs (sample, modality), N tokens, D width, X width of the context, K prompt
experts, S static rows, L rows of an expert, P rows of all parts, H heads, E width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from data_shards import Batch, DatasetSchema
from data_shards.statistics import SplitStatistics
from parallel import Dispatcher, RoutingStats
from parallel.experts import generator_for
from trainer.flops import FORWARD_AND_BACKWARD, FlopCounter
from trainer.models.fusemoe import Fused, FuseMoE, target_scale
from trainer.models.grouped import GroupedLinear
from trainer.models.missing import keyed_uniform
from trainer.models.mope.base import FrozenBackbone, keep_out_of_checkpoints
from trainer.models.mope.heads import ProbeHead
from trainer.models.mope.host_checkpoint import host_architecture, load_host
from trainer.models.mope.importance import Importance
from trainer.models.mope.lora import add_lora
from trainer.models.mope.prompts import prompt_tensor
from trainer.models.mope.router import orthonormal_keys, route
from trainer.models.segments import segment_sum
from trainer.models.tokens import TokenLayout
from trainer.mope_sections import MopeConfig
from trainer.sections import ModelConfig

__all__ = ["PromptedFuseMoE", "host_architecture"]


@dataclass(frozen=True)
class Pairs:
    """The present (sample, modality) pairs of a batch, sorted as their tokens are, and the pair of each token."""

    sample_Q: Tensor
    modality_Q: Tensor
    pair_N: Tensor
    counts_M: Tensor
    """pairs of each block of grouped layers"""
    present_BM: Tensor

    def pooled(self, x_ND: Tensor) -> Tensor:
        """(Q, D) mean over a pair's tokens."""
        total_QD = segment_sum(x_ND[: len(self.pair_N)], self.pair_N, len(self.sample_Q))
        number_Q = torch.bincount(self.pair_N, minlength=len(self.sample_Q))
        return total_QD / number_Q[:, None].clamp_min(1)


def pairs_of(layout: TokenLayout, batch: Batch) -> Pairs:
    """Pairs of a batch, from the layout of its tokens."""
    firsts, repeats, start = [], [], 0
    for span in layout.spans:
        firsts.append(span.start + span.tokens * torch.arange(span.pairs, device=batch.device))
        number = torch.arange(start, start + span.pairs, device=batch.device)
        repeats.append(number.repeat_interleave(span.tokens))
        start += span.pairs
    first_Q = torch.cat(firsts)
    tokens = [span.tokens for span in layout.spans]
    present = [int(span.pairs) for span in layout.spans]
    counts_M = _pairs_per_block(layout.counts_M, present, tokens)
    return Pairs(layout.sample_N[first_Q], layout.modality_N[first_Q], torch.cat(repeats), counts_M, batch.present_BM)


def _pairs_per_block(tokens_M: Tensor, pairs: list[int], tokens: list[int]) -> Tensor:
    """Pairs of each block, from the tokens of each block and the tokens that one pair of its group has."""
    result, place = tokens_M.clone(), 0
    left = list(pairs)
    for group, each in enumerate(tokens):
        while left[group] > 0:
            result[place] = tokens_M[place] // each
            left[group] -= int(result[place])
            place += 1
        while place < len(tokens_M) and int(tokens_M[place]) == 0:
            place += 1
    return result


class BlockPrompts(nn.Module):
    """What is trained at one fusion block, for all modalities.

    Args:
        name: of the block; with `seed` it determines the frozen keys.
    """

    def __init__(self, config: MopeConfig, modalities: int, dim: int, heads: int, seed: int, name: str) -> None:
        super().__init__()
        self.config, self.dim = config, dim
        context = config.context_dim
        self.gate_MH = nn.Parameter(torch.zeros(modalities, heads))
        self.static_MSD = self.absent_MD = self.experts_MKLD = None
        if config.static:
            self.static_MSD = prompt_tensor(modalities, max(1, config.static_length), dim)
            self.absent_MD = nn.Parameter(torch.zeros(modalities, dim))
        if config.dynamic:
            self.experts_MKLD = prompt_tensor(modalities, config.k, config.dynamic_length, dim)
            bound = dim**-0.5
            intra = config.intra_dim * (config.router != "cross")
            cross = config.cross_dim * (config.router != "intra")
            self.intra_MDQ = nn.Parameter(torch.empty(modalities, dim, intra).uniform_(-bound, bound))
            self.cross_MXQ = nn.Parameter(torch.empty(modalities, context, cross).uniform_(-1, 1) * context**-0.5)
            keys = [
                orthonormal_keys(intra + cross, config.k, generator_for(seed, "routing keys", name, m))
                for m in range(modalities)
            ]
            self.register_buffer("keys_MQK", torch.stack(keys))
            self.keys_MQK: Tensor
            if config.router == "random":
                self.intra_MDQ.requires_grad_(False)
                self.cross_MXQ.requires_grad_(False)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Keys stay in float32: rounded ones would not be orthogonal."""
        keys_MQK = self.keys_MQK if self.experts_MKLD is not None else None
        super()._apply(fn, recurse)
        if keys_MQK is not None:
            self.keys_MQK = keys_MQK.to(self.keys_MQK.device)
        return self

    def forward(
        self, pairs: Pairs, pooled_QD: Tensor, context_QX: Tensor, mapped_QD: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """(Q, P, D) prompts, (Q, P) which of them count, (Q, K) weights of the experts."""
        parts, counts, weights_QK = [], [], None
        others_Q = pairs.present_BM.sum(1)[pairs.sample_Q] > 1
        if self.static_MSD is not None and self.absent_MD is not None:
            absent_BD = (~pairs.present_BM).to(self.absent_MD.dtype) @ self.absent_MD
            parts.append(self.static_MSD[pairs.modality_Q] + absent_BD[pairs.sample_Q][:, None])
        if self.experts_MKLD is not None:
            noisy_QK, weights_QK = self._route(pairs, pooled_QD, context_QX)
            # By modality, not by pair: gathering the experts of every pair would copy them.
            mixture_QLD = torch.einsum(
                "qmk,mkld->qld", _by_modality(noisy_QK, pairs.modality_Q, len(self.experts_MKLD)), self.experts_MKLD
            )
            parts.append(mixture_QLD)
        for part in parts:
            counts.append(torch.ones(part.shape[:2], dtype=torch.bool, device=part.device))
        if mapped_QD is not None:
            parts.append(mapped_QD[:, None])
            # Nothing is made up for a modality that is alone, unless there would be no prompt at all.
            counts.append((others_Q if len(parts) > 1 else torch.ones_like(others_Q))[:, None])
        return torch.cat(parts, 1), torch.cat(counts, 1), weights_QK

    def _route(self, pairs: Pairs, pooled_QD: Tensor, context_QX: Tensor) -> tuple[Tensor, Tensor]:
        modality_Q, config = pairs.modality_Q, self.config
        intra_QY = _per_modality(pooled_QD, self.intra_MDQ, modality_Q)
        cross_QY = _per_modality(context_QX, self.cross_MXQ, modality_Q)
        query_QY = torch.cat([intra_QY, cross_QY], 1)
        noise = config.noise * self.training
        return route(query_QY, self.keys_MQK[modality_Q], config.tau, noise, config.normalise_query)


def _per_modality(x_QD: Tensor, weight_MDY: Tensor, modality_Q: Tensor) -> Tensor:
    """Each row times its modality's matrix (matrices are a few columns wide)."""
    every_QMY = torch.einsum("qd,mdy->qmy", x_QD, weight_MDY)
    return every_QMY[torch.arange(len(x_QD), device=x_QD.device), modality_Q]


def _by_modality(weights_QK: Tensor, modality_Q: Tensor, modalities: int) -> Tensor:
    """(Q, M, K): a row's weights at its modality, zeros elsewhere."""
    return functional.one_hot(modality_Q, modalities).to(weights_QK.dtype)[:, :, None] * weights_QK[:, None]


class ContextBuilder(nn.Module):
    """Pooled states of present streams -> for each of them, what the *others* say: (Q, X)."""

    def __init__(self, modalities: int, dim: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.entry = nn.Linear(dim, width)
        self.identity_MX = nn.Parameter(torch.randn(modalities, width) * 0.3)
        self.null_MX = nn.Parameter(torch.randn(modalities, width) * 0.3)
        self.query_gate_MX = nn.Parameter(torch.randn(modalities, width) * width**-0.5)

    def forward(self, pairs: Pairs, pooled_QD: Tensor) -> Tensor:
        entry_QX = self.entry(self.norm(pooled_QD)) + self.identity_MX[pairs.modality_Q]
        entry_BMX = entry_QX.new_zeros(*pairs.present_BM.shape, entry_QX.shape[1])
        entry_BMX = entry_BMX.index_put((pairs.sample_Q, pairs.modality_Q), entry_QX)
        modalities = len(self.null_MX)
        score_BHM = torch.einsum("hx,bmx->bhm", self.query_gate_MX, entry_BMX)
        own_HM = torch.eye(modalities, dtype=torch.bool, device=entry_QX.device)
        score_BHM = score_BHM.masked_fill(~pairs.present_BM[:, None] | own_HM, -torch.inf)
        null_H = (self.query_gate_MX * self.null_MX).sum(1)
        weight_BHY = torch.cat([score_BHM, null_H.expand(len(entry_BMX), -1)[..., None]], 2).softmax(2)
        mixed_BHX = weight_BHY[..., :-1] @ entry_BMX + weight_BHY[..., -1:] * self.null_MX
        return mixed_BHX[pairs.sample_Q, pairs.modality_Q]


class PromptReader:
    """`trainer.models.attention.Prompts` of one block: prompts through the block's norm and projection, then read."""

    def __init__(self, prompts_QPD: Tensor, counts_QP: Tensor, gate_QH: Tensor, norm: nn.Module, pairs: Pairs) -> None:
        self.prompts_QPD, self.counts_QP, self.gate_QH = prompts_QPD, counts_QP, gate_QH
        self.norm, self.pairs = norm, pairs

    def __call__(self, q_ND: Tensor, project: nn.Module, heads: int) -> Tensor:
        pairs, rows, dim = *self.prompts_QPD.shape[:2], q_ND.shape[1]
        flat_RD = self.norm(self.prompts_QPD.to(q_ND.dtype)).flatten(0, 1)
        grouped = isinstance(project, GroupedLinear)
        qkv_RD = project(flat_RD, self.pairs.counts_M * rows) if grouped else project(flat_RD)
        key, value = (
            part.view(pairs, rows, heads, -1)[self.pairs.pair_N] for part in (qkv_RD[:, dim:].chunk(2, dim=1))
        )
        query_NHE = q_ND.unflatten(1, (heads, -1))
        score_NPH = torch.einsum("nhe,nphe->nph", query_NHE, key) * query_NHE.shape[-1] ** -0.5
        score_NPH = score_NPH.masked_fill(~self.counts_QP[self.pairs.pair_N][..., None], -torch.inf)
        weight_NPH = score_NPH.float().softmax(1).to(value.dtype)
        read_NHE = torch.einsum("nph,nphe->nhe", weight_NPH, value)
        return (read_NHE * self.gate_QH.tanh()[self.pairs.pair_N][..., None].to(value.dtype)).flatten(1)


class PromptedFuseMoE(FrozenBackbone):
    """A frozen FuseMoE model, prompts at every fusion block, new heads.

    Args:
        architecture: of the host, as `host_architecture` gives it.
        dispatcher: carries tokens to the host's experts, frozen or not.

    Raises:
        BackboneError: the host is missing, damaged, or was trained on data with other modalities.
    """

    def __init__(
        self,
        schema: DatasetSchema,
        tasks: list[str],
        statistics: SplitStatistics,
        architecture: ModelConfig,
        config: MopeConfig,
        dispatcher: Dispatcher,
        seed: int,
    ) -> None:
        super().__init__()
        assert config.host is not None
        self.config, self.seed, self.architecture = config, seed, architecture
        host = load_host(config.host, schema)
        self.backbone = FuseMoE(schema, [], host.statistics, architecture, dispatcher, seed)
        host.put_into(self.backbone)
        self.backbone_digest, self._runs = host.digest, [host.run_id] if host.run_id else []
        self.trained = config.method == "full"
        if not self.trained:
            keep_out_of_checkpoints(self.backbone)
        self.backbone.requires_grad_(self.trained)
        if config.method == "lora":
            add_lora([block.attention for block in self.backbone.blocks], config.lora_rank, config.lora_match)  # type: ignore[misc]
        modalities, dim = len(schema.modalities), architecture.dim
        self.modality_names = list(schema.modality_names)
        self.blocks = nn.ModuleList()
        self.context: nn.ModuleList | None = None
        self.mapper: nn.Sequential | None = None
        self.importance: Importance | None = None
        if config.prompts:
            self._add_prompts(modalities, dim)
        self.heads = nn.ModuleDict(
            {
                task.name: ProbeHead(
                    task, self.backbone.pooling.width, config.head_hidden, *target_scale(statistics, task.name)
                )
                for task in schema.tasks
                if task.name in tasks
            }
        )

    def _add_prompts(self, modalities: int, dim: int) -> None:
        config, layers = self.config, range(self.architecture.layers)
        self.blocks = nn.ModuleList(
            BlockPrompts(config, modalities, dim, self.architecture.heads, self.seed, f"block.{layer}")
            for layer in layers
        )
        if config.dynamic or config.mapped:
            self.context = nn.ModuleList(ContextBuilder(modalities, dim, config.context_dim) for _ in layers)
        if config.mapped:
            self.mapper = nn.Sequential(
                nn.Linear(config.context_dim, config.mapper_hidden),
                nn.LayerNorm(config.mapper_hidden),
                nn.GELU(),
                nn.Linear(config.mapper_hidden, dim),
                nn.GELU(),
                nn.Dropout(config.dropout),
            )
        if config.dynamic:
            sites = self.architecture.layers * modalities
            self.importance = Importance(sites, config.k, config.importance.cut, config.importance.ema)

    def backbone_runs(self) -> list[str]:
        return self._runs

    def flop_counter(self, schema: DatasetSchema, heads: dict[str, int]) -> FrozenFlops | FlopCounter:
        """The host's own count; frozen, it has half of a backward pass."""
        kind = FlopCounter if self.trained else FrozenFlops
        return kind(schema, heads, self.architecture, self.backbone.attention)

    def train(self, mode: bool = True) -> PromptedFuseMoE:
        """The frozen host stays in evaluation mode."""
        super().train(mode)
        self.backbone.train(mode and self.trained)
        return self

    def forward(self, batch: Batch) -> Fused:
        backbone = self.backbone
        with torch.set_grad_enabled(self.trained and torch.is_grad_enabled()):
            x_ND, layout = backbone.embed(batch)
        pairs = pairs_of(layout, batch) if len(self.blocks) else None
        routing: list[RoutingStats] = []
        weights: list[Tensor] = []
        for number, block in enumerate(backbone.blocks):
            reader = None
            if pairs is not None:
                reader, found_QK = self._prompts(number, block, x_ND, pairs, batch)
                weights += [] if found_QK is None else [found_QK]
            x_ND, stats = block(x_ND, layout, reader)
            routing.append(stats)
        pooled_BX = backbone.pooling(x_ND, layout)
        logits = {name: head(pooled_BX) for name, head in self.heads.items()}
        losses: dict[str, Tensor] = {}
        experts: dict[str, Tensor] = {}
        if pairs is not None and weights:
            if self.importance is not None and self.training and torch.is_grad_enabled():
                losses["importance"] = self.config.importance.weight * self._importance(weights, pairs)
            experts = self._by_site(weights, pairs, batch)
        return Fused(logits, routing, pooled_BX, losses, experts)

    def _prompts(
        self, number: int, block: nn.Module, x_ND: Tensor, pairs: Pairs, batch: Batch
    ) -> tuple[PromptReader, Tensor | None]:
        prompts: BlockPrompts = self.blocks[number]  # type: ignore[assignment]
        pooled_QD = pairs.pooled(x_ND)
        context_QX = pooled_QD[:, :0]
        if self.context is not None:
            context_QX = self.context[number](pairs, self._in_context(pooled_QD, pairs, batch))
        mapped_QD = None if self.mapper is None else self.mapper(context_QX)
        prompts_QPD, counts_QP, weights_QK = prompts(pairs, pooled_QD, context_QX, mapped_QD)
        gate_QH = prompts.gate_MH[pairs.modality_Q]
        norm: nn.Module = block.attention_norm  # type: ignore[assignment]
        return PromptReader(prompts_QPD, counts_QP, gate_QH, norm, pairs), weights_QK

    def _in_context(self, pooled_QD: Tensor, pairs: Pairs, batch: Batch) -> Tensor:
        """Pooled states as the context sees them: each record's own or, as a control, another one's of the batch."""
        if self.config.context == "paired":
            return pooled_QD
        # Another record with the same modality, so that the pattern of what is present stays the record's own.
        turn_Q = keyed_uniform(self.seed, batch.index_B, 1)[:, 0][pairs.sample_Q]
        order_Q = (pairs.modality_Q + turn_Q).argsort()
        same_Q = pairs.modality_Q[order_Q]
        first_Q = torch.searchsorted(same_Q, same_Q)
        after_Q = torch.searchsorted(same_Q, same_Q, right=True)
        place_Q = torch.arange(len(order_Q), device=order_Q.device)
        other_Q = order_Q[torch.where(place_Q + 1 < after_Q, place_Q + 1, first_Q)]
        return pooled_QD.index_select(0, torch.empty_like(order_Q).index_copy_(0, order_Q, other_Q))

    def _importance(self, weights: list[Tensor], pairs: Pairs) -> Tensor:
        """Pairs whose modality is alone do not count: balance would fight the null context's route."""
        assert self.importance is not None
        others_Q = (pairs.present_BM.sum(1)[pairs.sample_Q] > 1).float()
        masks = [others_Q * (pairs.modality_Q == m) for m in range(len(self.modality_names))]
        sites = [(found_QK, mask) for found_QK in weights for mask in masks]
        loss: Tensor = self.importance([found for found, _ in sites], [mask for _, mask in sites])
        return loss

    def _by_site(self, weights: list[Tensor], pairs: Pairs, batch: Batch) -> dict[str, Tensor]:
        """(B, K) by block and modality; NaN where a record has no such modality."""
        found: dict[str, Tensor] = {}
        for number, found_QK in enumerate(weights):
            table = found_QK.new_full((*batch.present_BM.shape, found_QK.shape[1]), torch.nan)
            table[pairs.sample_Q, pairs.modality_Q] = found_QK.detach()
            found |= {f"block.{number}.{name}": table[:, m] for m, name in enumerate(self.modality_names)}
        return found


class FrozenFlops(FlopCounter):
    """The same arithmetic with gradients of activations only."""

    def step_flops(self, features_X: Tensor | list[float]) -> float:
        """FLOPs of forward and backward."""
        return super().step_flops(features_X) * (FORWARD_AND_BACKWARD - 1) / FORWARD_AND_BACKWARD
