"""FuseMoE: encoders -> fusion blocks -> heads, built from the data's schema (arXiv 2402.03226, made to scale).

Nothing here knows a modality by name. Encoders work on groups of modalities of one kind, blocks on packed tokens, so
the cost of a step follows the tokens that are present. Where the recipe asks for it, an absent modality is one
learned indicator token; otherwise it is nothing at all.

Shape legend: B samples, M modalities, P pairs (sample, modality), N tokens, T tokens of a pair, D width.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data_shards import Batch, DatasetSchema, Group
from data_shards.records.statistics import SplitStatistics
from parallel import Dispatcher, RoutingStats
from parallel.moe.kept import recomputed
from trainer.config.sections import ModelConfig
from trainer.models.encoder_groups import Cut, cut_group, cuts_of, encoder_layout, module_name
from trainer.models.encoders.build import build_encoder
from trainer.models.encoders.layout import Encoder, GroupLayout, PresentPairs, group_layout_of
from trainer.models.fusemoe.block import FusionBlock, Pooling, last_tokens
from trainer.models.fusemoe.members import Members
from trainer.models.fusemoe.moment import MomentEmbedding, longest_horizon
from trainer.models.layers.embedding import Embedding
from trainer.models.layers.heads import Head, Skip, answer_scale
from trainer.models.layers.staging import plan_of
from trainer.models.layers.token_layout import TokenLayout, token_layout
from trainer.models.output import Fused

FACTORIZED_ABOVE = 8


@dataclass(frozen=True)
class Plan:
    """Where everything of a batch lies: which rows each encoder group has of it, within the group, and as tokens."""

    cuts: dict[str, Cut]
    groups: dict[str, GroupLayout]
    tokens: TokenLayout


class FuseMoE(nn.Module):
    """The model of a data set.

    Args:
        schema: modalities and tasks. `tasks`: names of the tasks that get a head.
        statistics: training-part statistics of the chosen split, as the manifest holds them.
        dispatcher: carries tokens to their experts (local, or all-to-all over the expert-parallel group), and knows
            the ranks over which large tables are spread.
        seed: of the initial weights of experts and tables, which are drawn per global expert and row.
        balanced: whether classes weigh inversely to their frequency.
        weights: False = of pretrained encoders shapes are enough.
    """

    def __init__(
        self,
        schema: DatasetSchema,
        tasks: list[str],
        statistics: SplitStatistics,
        config: ModelConfig,
        dispatcher: Dispatcher,
        seed: int,
        balanced: bool = False,
        weights: bool = True,
    ) -> None:
        super().__init__()
        modalities = len(schema.modalities)
        self.config, self.bins = config, config.bins
        self.recompute = False  # compute blocks again in the backward pass instead of keeping their activations
        self.attention = resolve_attention(config, modalities)
        self.schema, self.layout = schema, encoder_layout(schema, config.encoders)
        self.encoders = nn.ModuleDict(
            {
                module_name(name): build_encoder(indices, schema, statistics, config, dispatcher, seed, weights)
                for name, indices in self.layout.items()
            }
        )
        # A modality's number within its group.
        self._block_of_M = [0] * modalities
        for indices in self.layout.values():
            for block, index in enumerate(indices):
                self._block_of_M[index] = block
        self.modality = Embedding(modalities, config.dim)
        self.bin = Embedding(config.bins, config.dim)
        self.missing = Embedding(modalities, config.dim) if config.missing_embedding else None
        for embedding in (self.modality, self.bin, self.missing):
            if embedding is not None:
                nn.init.normal_(embedding.weight, std=0.02 if embedding is self.bin else 0.3)
        self.moment = None
        if schema.has_moments:
            self.moment = MomentEmbedding(longest_horizon(schema), config.bins, config.dim)
        blocks = sum(len(indices) for indices in self.layout.values())
        self.blocks = nn.ModuleList(
            FusionBlock(config, self.attention, blocks, modalities, layer, seed, dispatcher)
            for layer in range(config.layers)
        )
        self.pooling = Pooling(config.pooling, config.dim, config.latents)
        self.heads = nn.ModuleDict()
        for task in [task for task in schema.tasks if task.name in tasks]:
            about = answer_scale(statistics, task, config.head.start, balanced)
            sizes = (self.pooling.width, 2 * config.dim, config.dropout)
            skip = Skip(config.dim, task.dim) if config.head.skip == "linear" else None
            several = config.head.members > 1
            self.heads[task.name] = (
                Members(task, config.head.members, *sizes, *about, skip)
                if several
                else Head(task, *sizes, *about, skip)
            )

    def forward(self, batch: Batch) -> Fused:
        return self.fuse(*self.embed(batch))

    def fuse(self, x_ND: Tensor, layout: TokenLayout) -> Fused:
        """What follows the encoders: blocks, pooling, heads."""
        first_BD = last_tokens(x_ND, layout) if self.config.head.skip == "linear" else None
        routing = []
        for block in self.blocks:
            x_ND, stats = self._block(block, x_ND, layout)
            routing.append(stats)
        pooled_BX = self.pooling(x_ND, layout)
        logits, members = {}, {}
        for name, head in self.heads.items():
            logits[name] = head(pooled_BX, first_BD)
            if isinstance(head, Members):
                members[name] = logits[name]
                logits[name] = head.together(members[name])
        return Fused(logits, routing, pooled_BX, members=members)

    def _block(self, block: nn.Module, x_ND: Tensor, layout: TokenLayout) -> tuple[Tensor, RoutingStats]:
        """One fusion block. Every rank recomputes every block, in the same order, so collectives in it stay matched."""
        if self.recompute and torch.is_grad_enabled():
            return recomputed(block, x_ND, layout)  # type: ignore[no-any-return]
        return block(x_ND, layout)  # type: ignore[no-any-return]

    def stages(self) -> list[list[nn.Module]]:
        """What follows the encoders, in order: the engine reduces their gradients while those before still compute."""
        return [*([block] for block in self.blocks), [self.pooling, *self.heads.values()]]

    @property
    def fusion(self) -> FuseMoE:
        """The model whose blocks route tokens: this one."""
        return self

    def lay_out(self, batch: Batch) -> Plan:
        """What the host must know of a batch on the CPU; everything after it is the device's."""
        block_of_M = torch.tensor(self._block_of_M, device="cpu")
        layouts, encoded = {}, []
        cuts = cuts_of(batch, self.schema, self.layout)
        for name, indices in self.layout.items():
            group, encoder = self._group(batch, cuts[name]), self.encoder(name)
            present = PresentPairs.of(batch, indices) if encoder.timed else None
            block_P = block_of_M[group.modality_P]
            layouts[name] = found = group_layout_of(encoder, group, block_P, len(indices), present)
            encoded.append(encoder.encoded(group, found, present))
        absent = None
        if self.missing is not None:
            sample_X, modality_X = batch.absent().nonzero(as_tuple=True)
            absent = (sample_X, modality_X)
        # Rows in the order of `embed`: the groups' one after the other, indicators behind them.
        return Plan(cuts, layouts, token_layout(encoded, absent, len(batch.present_BM), self.bins, self.attention))

    def embed(self, batch: Batch) -> tuple[Tensor, TokenLayout]:
        """Tokens of what is present, then one indicator per absent modality if the model has them."""
        plan: Plan = plan_of(self, batch)
        layout = plan.tokens
        tokens = [
            found.to(self.modality.weight.dtype).flatten(0, -2) for found in self.encode(batch, plan, self.layout)
        ]
        if self.missing is not None:
            tokens.append(self.missing(layout.modality_N[layout.encoded :]))
        x_ND = torch.cat(tokens) + self.modality(layout.modality_N) + self.bin(layout.bin_N)
        if self.moment is not None:
            assert batch.moment_B is not None
            x_ND = x_ND + self.moment(batch.moment_B, layout.sample_N)
        return x_ND, layout

    def encode(self, batch: Batch, plan: Plan, names: Iterable[str]) -> list[Tensor]:
        """What the encoders of these groups say: (P, T, D), or, of what stands at times, of all pairs, (N, D)."""
        return [self.encoder(name)(self._group(batch, plan.cuts[name]), plan.groups[name]) for name in names]

    def _group(self, batch: Batch, cut: Cut) -> Group:
        return cut_group(batch.groups[cut.group], cut)

    def encoder(self, name: str) -> Encoder:
        """Of the encoder group of this name."""
        return self.encoders[module_name(name)]  # type: ignore[return-value]


def resolve_attention(config: ModelConfig, modalities: int) -> str:
    """`auto` is joint attention up to 8 modalities and factorized above, where joint grows too costly."""
    if config.attention != "auto":
        return config.attention
    return "factorized" if modalities > FACTORIZED_ABOVE else "joint"
