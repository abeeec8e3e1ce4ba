"""How much arithmetic a batch asks for, counted from its layout and the recipe; the numerator of MFU.

Only matrix products of the model count (attention scores and sums included), with active parameters only: k experts a
token, the encoders of what is present. Forward plus backward is three times forward. The count is linear in a handful
of features of a batch (pairs, events, indicator tokens, squares of attention lengths), so the loop adds features up on
the device and nothing waits for them; the cost model uses the same coefficients with expected features.

Shape legend: B records, M modalities, T bins, X features of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from data_shards import Batch, DatasetSchema, ModalitySpec
from parallel.moe.segments import Segments
from trainer.config.sections import ModelConfig
from trainer.models.convolutions.sizes import picture_flops
from trainer.models.encoder_groups import OWN, cut_group, cuts_of, encoder_layout
from trainer.models.layers.ragged import offsets_to_ids
from trainer.models.layers.token_layout import even_bins, grid_bins
from trainer.models.numbers.even_grid import moments_of_pairs
from trainer.models.numbers.kernels import DETAILS, READ
from trainer.models.numbers.series_statistics import INPUTS
from trainer.models.numbers.steps import STEPS
from trainer.models.object_flops import EncoderCost, ExpectedTokens, Objects, count_objects, over_time_flops

FORWARD_AND_BACKWARD = 3


@dataclass
class FlopCounter:
    """FLOPs of one model. Features are: records, pairs of each group, indicators, events, patches, positions, squares.

    `pairs` are objects, where they have times. `patches` are of all signals of a group of waveforms, and `moments`
    those at which fixed kernels look, with those that fill the rows of shorter signals; `cells` are those of series'
    even grids, by the channels of the widest;
    `positions` are byte groups of all texts and `text_squares` the sum of their squared numbers per text;
    `squares` is the sum of squared lengths of the sequences that attend across modalities (samples, or bins of a
    sample). Groups of codes also have `codes`, and timed groups `tokens`, and `within`, the sum of pairs' squared
    numbers of them. Encoders of `model.encoders` have `own` positions, and the sum of their squared numbers,
    `own_squares`.

    Args:
        schema: of the data. tasks: logits of each task that has a head. config: of the model.
        attention: the resolved kind (per_modality, joint or factorized).
        own: what the encoders of `model.encoders` ask for, by the name of their group.
    """

    schema: DatasetSchema
    tasks: dict[str, int]
    config: ModelConfig
    attention: str
    own: dict[str, EncoderCost] = field(default_factory=dict)
    features: tuple[str, ...] = field(init=False)
    tokens: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.layout = encoder_layout(self.schema, self.config.encoders)
        groups = {name for name in self.layout if name.startswith(OWN)}
        assert groups == set(self.own), f"costs of {sorted(self.own)} are given, and the recipe has {sorted(groups)}"
        self.tokens = {name: self._tokens(name) for name in self.layout}
        pairs = tuple(f"pairs/{name}" for name in self.layout)
        patches = tuple(f"patches/{name}" for name in self.layout if self._kind(name) == "waveform")
        wanted = {"waveform": self.config.waveform.statistics, "series": self.config.series.statistics}
        details = {name: DETAILS.get(wanted.get(self._kind(name), "none")) for name in self.layout}
        self.kernels = {name: detail for name, detail in details.items() if detail is not None}
        moments = tuple(f"moments/{name}" for name in self.kernels)
        cells = tuple(f"cells/{name}" for name in self.kernels if self._kind(name) == "series")
        own = tuple(f"{what}/{name}" for name in self.own for what in ("own", "own_squares"))
        self.objects = {name: self._objects(name) for name in self.layout if self._spec(name).timed}
        codes = tuple(f"codes/{name}" for name in self.layout if self._kind(name) == "codes")
        timed = tuple(f"{what}/{name}" for name in self.objects for what in ("tokens", "within"))
        always = ("indicators", "events", "positions", "text_squares", "squares")
        self.features = ("records", *pairs, *patches, *moments, *cells, *own, *codes, *timed, *always)
        self._bins_MT = self._tokens_by_bin()

    def measure(self, batch: Batch) -> Tensor:
        """Features (X,) of a batch, float64, on its device and without waiting for it."""
        present_BM = batch.present_BM.double()
        cuts = cuts_of(batch.on_host(), self.schema, self.layout)
        groups: dict[str, Any] = {name: cut_group(batch.groups[cut.group], cut) for name, cut in cuts.items()}
        number = {f"pairs/{name}": float(group.pairs) for name, group in groups.items()}
        number["records"] = float(len(batch))
        number["indicators"] = len(batch) * len(self.schema.modalities) - sum(g.pairs for g in groups.values())
        number["indicators"] *= self.config.missing_embedding
        absent_BM = batch.absent()
        counted = {
            name: count_objects(objects, batch, groups[name], self.schema, self.config.bins)
            for name, objects in self.objects.items()
        }
        where = [own.where_BT for own in counted.values()]
        tensors: dict[str, Tensor] = {"squares": self._squares(present_BM, absent_BM.double(), where)}
        tensors |= {f"tokens/{name}": own.tokens for name, own in counted.items()}
        tensors |= {f"within/{name}": own.squares for name, own in counted.items()}
        if batch.known_BM is not None or counted:
            tensors["indicators"] = absent_BM.sum() * self.config.missing_embedding
        for name, cost in self.own.items():
            own_P = cost.positions(lengths_of(groups[name]))
            tensors |= {f"own/{name}": own_P.sum(), f"own_squares/{name}": own_P.square().sum()}
        if "series" in groups:
            number["events"] = float(len(groups["series"].values_O))
        for name in self.kernels:
            if name in groups and groups[name].pairs:
                length_P = self._lengths(name, groups[name])
                tensors[f"moments/{name}"] = groups[name].pairs * length_P.max().clamp_max(self.kernels[name].moments)
                if self._kind(name) == "series":
                    tensors[f"cells/{name}"] = length_P.sum() * self.widest(name)
        for name in groups:
            match self._kind(name):
                case "text":
                    length_P = -(-groups[name].offsets.diff() // self.config.text.stride)
                    tensors["positions"] = tensors.get("positions", 0) + length_P.sum()
                    tensors["text_squares"] = tensors.get("text_squares", 0) + length_P.square().sum()
                case "waveform":
                    tensors[f"patches/{name}"] = -(-groups[name].offsets.diff() // self.config.waveform.patch).sum()
                case "codes":
                    number[f"codes/{name}"] = float(len(groups[name].ids_O))
        known = torch.tensor([number.get(name, 0.0) for name in self.features], dtype=torch.float64)
        features_X = known.to(batch.device, non_blocking=True)
        for name, value in tensors.items():
            features_X[self.features.index(name)] = value.double()
        return features_X

    def forward_flops(self, features_X: Tensor | list[float]) -> dict[str, float]:
        """FLOPs of a forward pass by part (encoders, kernels, pretrained, attention, router, experts, heads)."""
        values = dict(zip(self.features, torch.as_tensor(features_X).tolist(), strict=True))
        tokens = self.count_tokens(values)
        encoded = tokens - values["indicators"]
        dim, layers, moe = self.config.dim, self.config.layers, self.config.moe
        experts = moe.top_k * 2 * (moe.hidden or 4 * dim) + 2 * moe.shared_expert_hidden + 2 * self.config.ffn_hidden
        decisions = self.count_decisions(values)
        return {
            "encoders": sum(self._encoder(name, values) + self._over_time(name, values) for name in self.layout),
            "kernels": sum(2 * READ * self.widest(name) * values[f"moments/{name}"] for name in self.kernels),
            "pretrained": sum(self.pretrained_flops(name, values) for name in self.own),
            "attention": layers * self._attention(values, tokens, encoded),
            "router": layers * decisions * 2 * dim * moe.experts * (2 if moe.noise else 1),
            "experts": layers * tokens * 2 * dim * experts,
            "heads": tokens * 2 * dim * (dim + self._latents()) + values["records"] * self._heads(),
        }

    def step_flops(self, features_X: Tensor | list[float]) -> float:
        """FLOPs of forward and backward. Nothing is learned through fixed kernels."""
        parts = self.forward_flops(features_X)
        learned = sum(parts.values()) - parts["pretrained"] - parts["kernels"]
        return FORWARD_AND_BACKWARD * learned + parts["kernels"] + self.pretrained_step(features_X)

    def pretrained_flops(self, name: str, values: dict[str, float]) -> float:
        """Of a forward pass of an encoder of `model.encoders`."""
        cost = self.own[name]
        return cost.forward_flops(values[f"pairs/{name}"], values[f"own/{name}"], values[f"own_squares/{name}"])

    def pretrained_step(self, features_X: Tensor | list[float]) -> float:
        """FLOPs of forward and backward of these encoders: what is frozen has no backward pass."""
        values = dict(zip(self.features, torch.as_tensor(features_X).tolist(), strict=True))
        return sum(cost.passes * self.pretrained_flops(name, values) for name, cost in self.own.items())

    def count_tokens(self, values: dict[str, float]) -> float:
        """Tokens that the fusion blocks see."""
        return sum(self.tokens_of(name, values) for name in self.layout) + values["indicators"]

    def tokens_of(self, name: str, values: dict[str, float]) -> float:
        """Tokens of a group."""
        return values[f"tokens/{name}"] if name in self.objects else values[f"pairs/{name}"] * self.tokens[name]

    def objects_of(self, name: str, values: dict[str, float]) -> float:
        """What the encoder of a group encodes one by one: pairs, objects or codes."""
        return values[f"codes/{name}"] if self._kind(name) == "codes" else values[f"pairs/{name}"]

    def count_decisions(self, values: dict[str, float]) -> float:
        """Routing decisions of a layer."""
        moe = self.config.moe
        if moe.granularity == "token":
            return self.count_tokens(values)
        units = values["records"] * (self.config.bins if moe.granularity == "bin" else 1)
        return units * (1 if moe.router == "joint" else len(self.schema.modalities))

    def _objects(self, name: str) -> Objects:
        config = self.config.codes if self._kind(name) == "codes" else self.config.objects
        return Objects(name, self.layout[name], self.tokens[name], config.irregularity)

    def _spec(self, name: str) -> ModalitySpec:
        return self.schema.modalities[self.layout[name][0]]

    def widest(self, name: str) -> int:
        """Channels of the group's modality that has the most."""
        return max(self.schema.modalities[index].width for index in self.layout[name])

    def _lengths(self, name: str, group: Any) -> Tensor:
        """(P,): samples of each signal; of series moments of its even grid."""
        if self._kind(name) == "waveform":
            return group.offsets.diff()  # type: ignore[no-any-return]
        widest = self.widest(name)
        pair_O = offsets_to_ids(group.offsets, group.channels_O.shape[0])
        by_feature = Segments.of(pair_O * widest + group.channels_O, group.pairs * widest, ascending=True)
        return moments_of_pairs(by_feature.counts, widest)

    def _shares(self, name: str, pairs: float) -> float:
        """Of what is learned of kernels' shares."""
        return pairs * 2 * self.config.dim * (self.kernels[name].features if name in self.kernels else 0)

    def _tokens(self, name: str) -> int:
        """Of a pair, or of an object."""
        spec, config = self._spec(name), self.config
        if name in self.own:
            return self.own[name].tokens
        match spec.kind:
            case "series":
                return config.bins + (config.series.statistics != "none")
            case "vector":
                return config.vector.tokens
            case "image":
                return (spec.shape[1] // config.image.patch) * (spec.shape[2] // config.image.patch)
            case "waveform":
                return config.waveform.tokens
            case "text":
                return config.text.tokens
            case "codes":
                return 1 if spec.timed else config.codes.tokens

    def _kind(self, name: str) -> str:
        """Of the encoder: a modality's own is of none."""
        return "own" if name in self.own else self._spec(name).kind

    def _tokens_by_bin(self) -> Tensor:
        """(M, T): tokens of each modality without times in each bin, as `token_layout` places them."""
        bins_MT = torch.zeros(len(self.schema.modalities), self.config.bins, dtype=torch.float64)
        for name, indices in self.layout.items():
            if name not in self.objects:
                number, bins = self.tokens[name], self.config.bins
                place = grid_bins(bins, number) if self._kind(name) == "series" else even_bins(number, bins)
                bins_MT[indices] = torch.bincount(place, minlength=self.config.bins).double()
        return bins_MT

    def _squares(self, present_BM: Tensor, absent_BM: Tensor, where: list[Tensor]) -> Tensor:
        """Sum of squared lengths of the sequences that attend across modalities; `where` (B, T) stand timed tokens."""
        if self.attention == "per_modality":
            return present_BM.new_zeros(())
        length_BT = present_BM @ self._bins_MT.to(present_BM.device)
        for where_BT in where:
            length_BT = length_BT + where_BT
        if self.config.missing_embedding:
            length_BT[:, -1] += absent_BM.sum(1)
        return (length_BT if self.attention == "factorized" else length_BT.sum(1)).square().sum()

    def expected_squares(self, presence_M: Tensor, timed: ExpectedTokens | None = None) -> float:
        """Mean of `squares` of one record whose modalities are present independently with these probabilities.

        Args:
            timed: tokens of each timed modality that is there.
        """
        if self.attention == "per_modality":
            return 0.0
        bins_MT, spread_MT = self._bins_MT, torch.zeros_like(self._bins_MT)
        if timed is not None:
            bins_MT = bins_MT + timed.mean_M[:, None] / self.config.bins
            spread_MT = spread_MT + timed.bin_variance_M[:, None]
        if self.attention != "factorized":
            bins_MT = bins_MT.sum(1, keepdim=True)
            spread_MT = spread_MT[:, :1] * 0 if timed is None else timed.variance_M[:, None]
        absent_MT = torch.zeros_like(bins_MT)
        absent_MT[:, -1] = float(self.config.missing_embedding)
        presence_M1 = presence_M[:, None].double()
        mean_T = (presence_M1 * bins_MT + (1 - presence_M1) * absent_MT).sum(0)
        variance_T = (presence_M1 * (1 - presence_M1) * (bins_MT - absent_MT).square()).sum(0)
        variance_T = variance_T + (presence_M1 * spread_MT).sum(0)
        return float((mean_T.square() + variance_T).sum())

    def _attention(self, values: dict[str, float], tokens: float, encoded: float) -> float:
        """Projections of a token cost 8 D², scores and sums 4 D for each pair of tokens that see each other."""
        dim = self.config.dim
        within = sum(
            values[f"within/{name}"] if name in self.objects else values[f"pairs/{name}"] * number**2
            for name, number in self.tokens.items()
        )
        across = tokens * 8 * dim * dim + values["squares"] * 4 * dim
        inside = encoded * 8 * dim * dim + within * 4 * dim
        return {"per_modality": inside, "joint": across, "factorized": inside + across}[self.attention]

    def _encoder(self, name: str, values: dict[str, float]) -> float:
        spec, config, dim = self._spec(name), self.config, self.config.dim
        pairs, number = values[f"pairs/{name}"], self.tokens[name]
        match self._kind(name):
            case "own":
                return pairs * self.own[name].projection(dim)
            case "vector":
                inputs = spec.width * (STEPS if config.vector.numbers == "piecewise" else 1)
                return pairs * 2 * (inputs * 2 * dim + 2 * dim * number * dim)
            case "image":
                return pairs * number * picture_flops(config.image, spec.shape[0], dim)
            case "waveform":
                return self._shares(name, pairs) + values[f"patches/{name}"] * 2 * 2 * dim * (
                    spec.width * config.waveform.patch + dim
                )
            case "text":
                # Of all texts: counted with the first group of them.
                if name != next(other for other in self.layout if self._kind(other) == "text"):
                    return 0.0
                per_position = config.text.layers * 24 * dim * dim + 2 * dim * dim
                return values["positions"] * per_position + values["text_squares"] * config.text.layers * 4 * dim
            case "codes":
                valued = any(self.schema.modalities[index].valued for index in self.layout[name])
                return values[f"codes/{name}"] * (valued * 8 * dim + (not spec.timed) * 2 * dim * dim)
            case "series":
                return self._series(name, pairs, values["events"])
        raise AssertionError(f"no count for {name}")

    def _over_time(self, name: str, values: dict[str, float]) -> float:
        if name not in self.objects:
            return 0.0
        number, rows = self.objects_of(name, values), values[f"tokens/{name}"]
        return over_time_flops(self.objects[name], self.config, number, rows)

    def _series(self, name: str, pairs: float, events: float) -> float:
        config, dim, rows = self.config.series, self.config.dim, pairs * self.config.bins
        widest = self.widest(name)
        whole = pairs * 2 * widest * INPUTS * dim * (config.statistics != "none") + self._shares(name, pairs)
        imputation = rows * 2 * config.kernel * widest * 5 * dim
        queries = self.config.bins * config.heads * config.time_dim
        attention = rows * 2 * widest * (config.heads + 1) * dim
        attention += 2 * queries * config.time_dim + events * 2 * queries
        match config.irregularity:
            case "imputation":
                return whole + imputation
            case "mtand":
                return whole + attention
            case "utde":
                return whole + imputation + attention + rows * 4 * dim * dim

    def _latents(self) -> int:
        return self.config.latents if self.config.pooling == "attention" else 0

    def _heads(self) -> float:
        dim = self.config.dim
        inputs = dim * (self.config.latents if self.config.pooling == "attention" else 1)
        skip = 2 * dim * sum(self.tasks.values()) * (self.config.head.skip == "linear")
        return skip + self.config.head.members * sum(2 * 2 * dim * (inputs + logits) for logits in self.tasks.values())


def lengths_of(group: Any) -> Tensor:
    """(P,) bytes or samples of each object; 0 where all are alike."""
    return group.offsets.diff() if hasattr(group, "offsets") else torch.zeros_like(group.modality_P)


def parameter_counts(shapes: dict[str, tuple[int, ...]], top_k: int) -> dict[str, int]:
    """Parameters in all, of experts, and `active`: those that one token meets (k experts of each layer).

    `shapes` are full logical shapes by name; expert weights are (E, ...) and called `...moe.experts...`.
    """
    total = expert = active = 0
    for name, shape in shapes.items():
        number = int(torch.Size(shape).numel())
        total += number
        if is_expert(name):
            expert += number
            active += number // shape[0] * min(top_k, shape[0])
        else:
            active += number
    return {"total": total, "experts": expert, "active": active}


def is_expert(name: str) -> bool:
    """Whether a parameter of this name belongs to the routed experts."""
    return ".moe.experts." in name


class Counter(Protocol):
    """Counts the arithmetic of batches."""

    features: tuple[str, ...]

    def measure(self, batch: Batch) -> Tensor:
        """Features (X,) of a batch, float64."""

    def step_flops(self, features_X: Tensor) -> float:
        """FLOPs of forward and backward for these features."""


def parameter_share(model: nn.Module) -> dict[str, float]:
    """Numbers of trained and frozen parameters, and the trained ones over all of the backbone's."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    return {"trained": trained, "frozen": frozen, "share": trained / max(1, frozen or trained)}
