"""Prompts on a frozen FuseMoE model: each stream is prompted by the streams that are present beside it.

All streams meet every fusion block, so one pass is enough: at a block, each stream's pooled state becomes an entry of
the context; a host pools the entries of the *other present* modalities (and a learned null, so that a modality that is
alone still has a context), and router and mapper make its prompts from that. What is absent takes no part: its entry
is masked, and one learned row per absent modality joins the static prompt. Prompts enter the attention within a
modality through a softmax and a gate of their own; the experts, the pooling and the number of tokens stay as they
were, and at the start the model is exactly the backbone.

Shapes: B samples, M modalities, Q present pairs (sample, modality), N tokens, D width, X width of the context, K prompt
experts, P rows of all parts, H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from data_shards import Batch, DatasetSchema
from data_shards.records.statistics import SplitStatistics
from parallel import Dispatcher, RoutingStats
from parallel.moe.initial import check_filled, undrawn
from parallel.moe.segments import look_up
from trainer.config.mope import MopeConfig
from trainer.config.sections import ModelConfig
from trainer.models.fusemoe.model import FuseMoE, Plan
from trainer.models.mope.host.alone_entropy import alone_entropy
from trainer.models.mope.host.backbone import Host
from trainer.models.mope.host.context import ContextBuilder, of_other_records
from trainer.models.mope.host.prompts import BlockPrompts, PromptReader
from trainer.models.mope.host.streams import Pairs, StreamStates, pairs_of, states_width
from trainer.models.mope.prompts.importance import Importance
from trainer.models.mope.prompts.probe_heads import probe_heads
from trainer.models.output import Fused
from trainer.models.pretrained.lineage import check_frozen
from trainer.models.pretrained.loading.backbone import FrozenBackbone, keep_out_of_checkpoints
from trainer.models.pretrained.loading.lora import add_lora


class PromptedFuseMoE(FrozenBackbone):
    """A frozen FuseMoE model, prompts at every fusion block, new heads.

    Args:
        host: its weights. architecture: of the host, as `host_architecture` gives it.
        dispatcher: carries tokens to the host's experts, frozen or not.

    Raises:
        BackboneError: the weights are not those of this architecture.
    """

    def __init__(
        self,
        schema: DatasetSchema,
        tasks: list[str],
        statistics: SplitStatistics,
        host: Host,
        architecture: ModelConfig,
        config: MopeConfig,
        dispatcher: Dispatcher,
        seed: int,
    ) -> None:
        super().__init__()
        self.config, self.seed, self.architecture = config, seed, architecture
        with undrawn():
            real = bool(host.digest)
            self.backbone = FuseMoE(schema, [], host.statistics, architecture, dispatcher, seed, weights=real)
        if real:
            check_frozen("mope.host", {"encoders": host.encoders}, self.backbone)
        host.put_into(self.backbone)
        check_filled(self.backbone)
        self.backbone_digest, self._runs = host.digest, [host.run_id] if host.run_id else []
        self.trained = config.method == "full"
        if not self.trained:
            keep_out_of_checkpoints(self.backbone)
        for parameter in self.backbone.parameters():
            # What the host had frozen stays so.
            parameter.requires_grad_(self.trained and parameter.requires_grad)
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
        width = self.backbone.pooling.width
        if config.head_layers == "all":
            width += states_width(architecture.layers, modalities, dim)
        self.heads = probe_heads(schema, tasks, statistics, width, config.head_hidden)

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

    def stages(self) -> list[list[nn.Module]]:
        """A block of the host with the prompts that enter it, in order, then the heads; what all share is in none."""
        prompts = [part for part in (self.blocks, self.context) if part is not None and len(part)]
        found = [[block, *(part[number] for part in prompts)] for number, block in enumerate(self.backbone.blocks)]
        return [*found, [self.backbone.pooling, *self.heads.values()]]

    @property
    def fusion(self) -> FuseMoE:
        """The model whose blocks route tokens."""
        return self.backbone

    def backbone_runs(self) -> list[str]:
        return self._runs

    def train(self, mode: bool = True) -> PromptedFuseMoE:
        """The frozen host stays in evaluation mode."""
        super().train(mode)
        self.backbone.train(mode and self.trained)
        return self

    def lay_out(self, batch: Batch) -> Plan:
        """What the host must know of a batch on the CPU."""
        return self.backbone.lay_out(batch)

    def forward(self, batch: Batch) -> Fused:
        backbone = self.backbone
        # Encoders come before the first prompt: frozen, they need no graph.
        with torch.set_grad_enabled(self.trained and torch.is_grad_enabled()):
            x_ND, layout = backbone.embed(batch)
        pairs = pairs_of(layout, batch)
        states = StreamStates(pairs) if self.config.head_layers == "all" else None
        routing: list[RoutingStats] = []
        weights: list[Tensor] = []
        for number, block in enumerate(backbone.blocks):
            reader = None
            if states is not None:
                states(x_ND)
            if len(self.blocks):
                reader, found_QK = self._prompts(number, block, x_ND, pairs, batch)
                weights += [] if found_QK is None else [found_QK]
            x_ND, stats = block(x_ND, layout, reader)
            routing.append(stats)
        pooled_BX = backbone.pooling(x_ND, layout)
        read_BX = pooled_BX
        if states is not None:
            states(x_ND)
            read_BX = states.beside(pooled_BX)
        logits = {name: head(read_BX) for name, head in self.heads.items()}
        losses: dict[str, Tensor] = {}
        experts: dict[str, Tensor] = {}
        if weights:
            if self.importance is not None and self.training and torch.is_grad_enabled():
                losses = self._losses(weights, pairs)
            experts = self._by_site(weights, pairs, batch)
        return Fused(logits, routing, pooled_BX, losses, experts)

    def _prompts(
        self, number: int, block: nn.Module, x_ND: Tensor, pairs: Pairs, batch: Batch
    ) -> tuple[PromptReader, Tensor | None]:
        prompts: BlockPrompts = self.blocks[number]  # type: ignore[assignment]
        pooled_QD = pairs.pooled(x_ND)
        context_QX = pooled_QD[:, :0]
        if self.context is not None:
            seen_QD = pooled_QD
            if self.config.context == "shuffled":
                seen_QD = of_other_records(pooled_QD, pairs, batch.index_B, self.seed)
            context_QX = self.context[number](pairs, seen_QD)
        mapped_QD = None if self.mapper is None else self.mapper(context_QX)
        prompts_QPD, counts_QP, weights_QK = prompts(pairs, pooled_QD, context_QX, mapped_QD)
        gate_QH = look_up(prompts.gate_MH, pairs.modality_Q)
        norm: nn.Module = block.attention_norm  # type: ignore[assignment]
        return PromptReader(prompts_QPD, counts_QP, gate_QH, norm, pairs), weights_QK

    def _losses(self, weights: list[Tensor], pairs: Pairs) -> dict[str, Tensor]:
        """Importance where there is a context, entropy where there is none: balance would fight the null's route."""
        assert self.importance is not None
        company_Q = (pairs.present_BM.sum(1)[pairs.sample_Q] > 1).float()
        of_M = [(pairs.modality_Q == m).float() for m in range(len(self.modality_names))]
        sites = [found_QK for found_QK in weights for _ in of_M]
        losses: dict[str, Tensor] = {
            "importance": self.config.importance.weight
            * self.importance(sites, [company_Q * of for _ in weights for of in of_M])
        }
        if self.config.alone_entropy:
            alone = [(1 - company_Q) * of for _ in weights for of in of_M]
            losses["alone_entropy"] = self.config.alone_entropy * alone_entropy(sites, alone)
        return losses

    def _by_site(self, weights: list[Tensor], pairs: Pairs, batch: Batch) -> dict[str, Tensor]:
        """(B, K) by block and modality; NaN where a record has no such modality."""
        found: dict[str, Tensor] = {}
        for number, found_QK in enumerate(weights):
            table = found_QK.new_full((*batch.present_BM.shape, found_QK.shape[1]), torch.nan)
            table[pairs.sample_Q, pairs.modality_Q] = found_QK.detach()
            found |= {f"block.{number}.{name}": table[:, m] for m, name in enumerate(self.modality_names)}
        return found
