"""Two frozen towers, one (or each) prompted by what the other one says; and a tower trained alone.

The tower that is not prompted is encoded first, into one vector; from it the prompts of every layer of the prompted
tower are made, and the head reads what comes out of there. With both prompted, each gets its prompts from the other's
unprompted vector.

Shapes: B records, P present ones, D width of a tower, N tokens, K experts.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from data_shards import Batch, DatasetSchema
from data_shards.records.statistics import SplitStatistics
from trainer.config.mope import MopeConfig
from trainer.models.layers.missing import keyed_uniform
from trainer.models.layers.ragged import pick_rows
from trainer.models.layers.staging import plan_of
from trainer.models.mope.prompts.importance import Importance
from trainer.models.mope.prompts.probe_heads import probe_heads
from trainer.models.mope.prompts.site_prompts import Mapper, StaticPrompts
from trainer.models.mope.towers.inputs import Features, Seen, generated_for, generators, learned_vectors, look
from trainer.models.mope.towers.layer_prompts import layer_prompts
from trainer.models.mope.towers.roles import check_shape, modality_of, roles_of
from trainer.models.mope.towers.sites import Flow
from trainer.models.mope.towers.tower import Tower, load_tower
from trainer.models.output import Fused
from trainer.models.pretrained.loading.backbone import (
    BackboneError,
    FrozenBackbone,
    digest_of,
    keep_out_of_checkpoints,
)
from trainer.models.pretrained.loading.lora import add_lora


class TowerModel(FrozenBackbone):
    """Towers, prompts and heads.

    Args:
        schema, tasks, statistics: of the data. config: section `mope`. seed: of the frozen routing keys.
        pretraining: job=tower: the one tower of the recipe is trained, nothing is prompted.
        weights: False = shapes are enough, weights of the towers' sources are not read.

    Raises:
        BackboneError: a tower cannot be loaded, or does not fit the data.
    """

    def __init__(
        self,
        schema: DatasetSchema,
        tasks: list[str],
        statistics: SplitStatistics,
        config: MopeConfig,
        seed: int,
        pretraining: bool = False,
        weights: bool = True,
    ) -> None:
        super().__init__()
        self.schema, self.config, self.seed = schema, config, seed
        self.modality: dict[str, int] = {}
        towers = {}
        masks = config.mask.modality if config.mask is not None else None
        for what, section in (("image", config.image), ("text", config.text)):
            if section is not None:
                spec = modality_of(schema, what, section.modality, masks)
                self.modality[what] = schema.numbers[spec.name]
                towers[what] = load_tower(what, section, statistics.modalities.get(spec.name), weights)
                check_shape(towers[what], spec)
        self.towers = nn.ModuleDict(towers)
        self.hosts, self.sources = roles_of(config, list(towers), pretraining)
        text = statistics.modalities.get(schema.modalities[self.modality["text"]].name) if "text" in towers else None
        longest = config.text.max_tokens if config.text is not None else 1
        # Mean tokens of a text, as the tower reads it.
        self.text_tokens = min(longest, text.mean[0] if text is not None else longest)
        self.group = {what: schema.modalities[number].group for what, number in self.modality.items()}
        meta = any(parameter.is_meta for parameter in self.towers.parameters())
        # Of the tower as it was loaded: LoRA adds parameters below.
        self.backbone_digest = None if meta or pretraining else digest_of(self.towers.state_dict())
        keep_out_of_checkpoints(self.towers)
        self._freeze(train_towers=pretraining or config.method == "full")
        if config.method == "lora" and not pretraining:
            add_lora([tower.model for tower in towers.values()], config.lora_rank, config.lora_match)
        self._build_prompts(pretraining)
        self.features: dict[str, Features] = {}
        widths = {what: tower.width for what, tower in towers.items()}
        self.missing = learned_vectors(config.missing, widths)
        generated = [host for host in self.hosts if host in self.prompts and self.sources]
        self.generators = generators(
            config.missing, {host: (widths[self.source_of(host)], widths[host]) for host in generated}
        )
        read = list(towers) if config.head_input == "both" or config.method == "late_fusion" else self.hosts
        self.read = read
        inputs = sum(towers[what].width for what in read)
        self.heads = probe_heads(schema, tasks, statistics, inputs, config.head_hidden)

    def needed_modalities(self) -> list[str]:
        return [self.schema.modality_names[self.modality[what]] for what in self.towers if what not in self.missing]

    def backbone_runs(self) -> list[str]:
        return [tower.run_id for tower in self._towers().values() if tower.run_id]

    def tower(self, what: str) -> Tower:
        return self._towers()[what]

    def _freeze(self, train_towers: bool) -> None:
        for tower in self._towers().values():
            tower.trained = train_towers
            tower.model.requires_grad_(train_towers)

    def _towers(self) -> dict[str, Tower]:
        return dict(self.towers.items())  # type: ignore[arg-type]

    def _build_prompts(self, pretraining: bool) -> None:
        config, towers = self.config, self._towers()
        self.prompts, self.mappers, self.gates = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        prompted = self.hosts if config.prompts and not pretraining else []
        for host in prompted:
            context = towers[self.source_of(host)].width if self.sources else 1
            self.prompts[host] = nn.ModuleList(layer_prompts(config, towers[host].sites, context, self.seed, host))
            widths = [site.width for site in towers[host].sites if site.index == 0]
            if config.mapped:
                self.mappers[host] = Mapper(context, config.mapper_hidden, widths, config.dropout)
            if config.gate:
                self.gates[host] = nn.ParameterList(
                    nn.Parameter(torch.zeros(site.heads)) for site in towers[host].sites
                )
            tokens = config.insertion == "tokens"
            if tokens and (towers[host].family == "swin" or config.gate):
                raise BackboneError(
                    "mope.insertion=tokens works without a gate and for towers whose tokens are one sequence, not for "
                    "swin's windows: use mope.insertion=kv, which gives content tokens the same result"
                )
        for source in towers if prompted and config.source_length else []:
            if source not in self.hosts:
                self.prompts[source] = nn.ModuleList(
                    StaticPrompts(config.source_length, site.width, config.dropout) for site in towers[source].sites
                )
        # Sites with a router, in the order in which a pass meets them.
        self.site_names: list[str] = []
        for host in prompted:
            sites: list[nn.Module] = list(self.prompts[host])  # type: ignore[call-overload]
            routed = [number for number, site in enumerate(sites) if getattr(site, "router", None) is not None]
            self.site_names += [f"{host}.{number}" for number in routed]
        self.importance = None
        if self.site_names:
            self.importance = Importance(len(self.site_names), config.k, config.importance.cut, config.importance.ema)

    def source_of(self, host: str) -> str:
        return "text" if host == "image" else "image"

    def prepare(self, batches: Iterable[Batch], records: int) -> None:
        """Read what frozen towers say about all training records once, instead of in every epoch. Collective.

        Only towers whose vector nothing that is trained has a part in. The order is that of the data, so a run that
        continues has the same features to the last bit.
        """
        trained = {what for what, tower in self._towers().items() if any(p.requires_grad for p in tower.parameters())}
        wanted = [what for what in self._unprompted() if what not in trained and self._alone(what)]
        rows: dict[str, list[tuple[Tensor, Tensor]]] = {what: [] for what in wanted}
        self.eval()
        with torch.no_grad():
            for batch in batches:
                plan = plan_of(self, batch)
                for what in wanted:
                    seen = plan[what]
                    if len(seen.rows_P):
                        rows[what].append((seen.numbers_P, self._tower_vector(batch, what, seen, None)))
        self.train()
        for what in wanted:
            self.features[what] = Features.gather(rows[what], records, self.tower(what))

    def _alone(self, what: str) -> bool:
        """Whether a tower's own pass has no prompts (its prompts as a host are made in another pass)."""
        return what in self.hosts or what not in self.prompts

    def forward(self, batch: Batch) -> Fused:
        seen: dict[str, Seen] = plan_of(self, batch)
        weights: dict[str, Tensor] = {}
        # Sources before hosts: their vectors are the context of the hosts' prompts.
        vectors = {what: self._encode_source(batch, what, seen[what]) for what in self._unprompted()}
        context = {what: self._in_context(batch, vectors[what]) for what in self.sources}
        for host in self.hosts:
            if host in self.prompts:
                no_BX = torch.zeros(len(batch), 1, device=batch.device)
                psi_BX = context[self.source_of(host)] if self.sources else no_BX
                vectors[host], found = self._encode_host(batch, host, seen[host], psi_BX)
                weights.update(found)
        pooled_BX = torch.cat([vectors[what] for what in self.read], 1)
        losses = {}
        if self.importance is not None and self.training and torch.is_grad_enabled():
            everyone = [torch.ones(len(weights[name]), device=batch.device) for name in self.site_names]
            value = self.importance([weights[name] for name in self.site_names], everyone)
            losses["importance"] = self.config.importance.weight * value
        logits = {name: head(pooled_BX) for name, head in self.heads.items()}
        rows = {name: seen[name.split(".")[0]] for name in weights}
        experts = {name: rows[name].spread(value.detach()) for name, value in weights.items()}
        return Fused(logits, [], pooled_BX, losses, experts)

    def _unprompted(self) -> list[str]:
        """Towers whose vector is needed, and is made without another one's help."""
        alone = [what for what in self.read if what not in self.hosts or what not in self.prompts]
        return [what for what in self.towers if what in self.sources or what in alone]

    def _in_context(self, batch: Batch, vector_BX: Tensor) -> Tensor:
        """The vector as the other tower's prompts see it: each record's own, or another one's."""
        if self.config.context == "paired" or len(batch) < 2:
            return vector_BX
        order_B = keyed_uniform(self.seed, batch.index_B, 1)[:, 0].argsort()
        return pick_rows(vector_BX, torch.empty_like(order_B).index_copy_(0, order_B, order_B.roll(1)))

    def lay_out(self, batch: Batch) -> dict[str, Any]:
        """What each tower reads of a batch on the CPU, by its name.

        Raises:
            ValueError: a record lacks what a tower reads.
        """
        found = {}
        for what, number in self.modality.items():
            needed, features = what not in self.missing, self.features.get(what)
            found[what] = look(batch, self.tower(what), batch.groups[self.group[what]], number, needed, features)
        return found

    def _encode_source(self, batch: Batch, what: str, seen: Seen) -> Tensor:
        """(B, D) without prompts from elsewhere; no gradient unless something of it is trained."""
        tower = self.tower(what)
        static = what in self.prompts and what not in self.hosts
        trained = static or any(parameter.requires_grad for parameter in tower.model.parameters())
        flow = Flow(torch.zeros(len(seen.rows_P), 1, device=seen.rows_P.device), None)
        with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
            return self._run(batch, what, seen, flow if static else None)

    def _encode_host(self, batch: Batch, host: str, seen: Seen, psi_BX: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        psi_PX = pick_rows(psi_BX, seen.rows_P).to(next(self.parameters()).dtype)
        mapped = self.mappers[host](psi_PX) if host in self.mappers else None
        flow = Flow(psi_PX, mapped)
        vector_BD = self._run(batch, host, seen, flow)
        if host in self.generators and not seen.complete:
            vector_BD = vector_BD + generated_for(seen, self.generators[host], psi_BX).to(vector_BD.dtype)
        names = [name for name in self.site_names if name.startswith(f"{host}.")]
        if not len(seen.rows_P):
            flow.weights = [psi_BX.new_zeros(0, self.config.k) for _ in names]
        return vector_BD, dict(zip(names, flow.weights, strict=True))

    def _run(self, batch: Batch, what: str, seen: Seen, flow: Flow | None) -> Tensor:
        """(B, D): the tower on the records that have its modality, the learned vector for the others."""
        tower = self.tower(what)
        if flow is None and seen.known:
            found_PD = self.features[what].values_RD[seen.numbers_P]
        elif not len(seen.rows_P):
            found_PD = torch.zeros(0, tower.width, dtype=tower.dtype, device=seen.rows_P.device)
        else:
            found_PD = self._tower_vector(batch, what, seen, flow)
        if seen.complete:
            return found_PD
        full_BD = self.missing[what].to(found_PD.dtype).expand(seen.records, -1)
        return full_BD.index_copy(0, seen.rows_P, found_PD)

    def _tower_vector(self, batch: Batch, what: str, seen: Seen, flow: Flow | None) -> Tensor:
        tower = self.tower(what)
        valid_PN = None if seen.tokens is None else seen.tokens[1]
        if flow is not None:
            flow.valid_BN = valid_PN
        self._arm(tower, what, flow)
        try:
            if seen.tokens is None:
                hidden_PND = tower.pictures(seen.pictures(batch.groups[self.group[what]]))
            else:
                hidden_PND = tower.encode_tokens(*seen.tokens)
        finally:
            self._arm(tower, what, None)
        return tower.read(hidden_PND, valid_PN, None if flow is None else flow.tail)

    def _arm(self, tower: Tower, what: str, flow: Flow | None) -> None:
        """Give every site its prompts for one pass, or take them away."""
        for number, site in enumerate(tower.sites):
            module = self.prompts[what][number] if flow is not None else None  # type: ignore[index]
            site.prompts = None if isinstance(module, nn.Identity) else module
            site.flow = flow
            site.gate = self.gates[what][number] if what in self.gates else None  # type: ignore[index]
            site.as_tokens = self.config.insertion == "tokens" and what in self.hosts
