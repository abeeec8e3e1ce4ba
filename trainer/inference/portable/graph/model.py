"""A model of a data set as a module from a batch's tensors to logits.

Tokens of absent modalities' indicators are there for all pairs, so that no size depends on who is absent; those of
present modalities belong to one more sample, behind the batch's, which nobody reads.

Shapes: B samples, M modalities, P pairs of a group, N tokens, C logits of a task.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

import trainer.models.encoders.series
import trainer.models.fusemoe.block
from data_shards import Batch, DatasetSchema
from data_shards.loading.batch import group_type
from trainer.inference.portable.graph.layers import graph_form
from trainer.inference.portable.graph.segments import GraphBlocks, GraphSegments
from trainer.models.encoders.codes import CodesLayout
from trainer.models.encoders.layout import GroupLayout
from trainer.models.fusemoe.model import FuseMoE
from trainer.models.layers.token_layout import even_bins

KINDS = ("vector", "image", "series", "codes")


class NoGraphError(ValueError):
    """A model, or a part of it, that cannot be one graph. Says which."""


@dataclass(frozen=True)
class GraphLayout:
    """What `TokenLayout` is to fusion blocks; `encoded` tokens come first, indicators behind them."""

    sample_N: Tensor
    modality_N: Tensor
    bin_N: Tensor
    final_N: Tensor
    blocks: GraphBlocks
    samples: int
    bins: int
    encoded: int
    modalities: int


def check_graph(model: nn.Module, schema: DatasetSchema) -> None:
    """Raise NoGraphError for what a graph cannot hold, by the name of the modality or setting."""
    if not isinstance(model, FuseMoE):
        raise NoGraphError("only models of the job type fusemoe become a graph; export this one as safetensors")
    for spec in schema.modalities:
        if spec.timed or spec.kind not in KINDS:
            kind = f"timed {spec.kind}" if spec.timed else spec.kind
            raise NoGraphError(
                f"modality {spec.name} ({kind}) cannot be in a graph, as who attends to whom in it depends on how "
                f"long each of its objects is; {', '.join(KINDS)} without times can: export as safetensors"
            )
        if spec.name in model.config.encoders:
            raise NoGraphError(f"modality {spec.name} has an encoder of its own, which a graph does not hold")
    moe = model.config.moe
    if moe.granularity != "token" or moe.selection == "expert":
        raise NoGraphError("moe.granularity other than token, and moe.selection=expert, cannot be in a graph")
    if model.config.series.statistics == "token":
        raise NoGraphError("model.series.statistics=token cannot be in a graph")


class GraphModel(nn.Module):
    """`tensors` of a batch (see `inputs_of`) -> logits (B, C) by task.

    Args:
        model: changed in place. Raises NoGraphError.
    """

    def __init__(self, model: nn.Module, schema: DatasetSchema) -> None:
        check_graph(model, schema)
        super().__init__()
        assert isinstance(model, FuseMoE)
        self.model: FuseMoE = graph_form(model)  # type: ignore[assignment]

    def forward(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        model, present_BM = self.model, tensors["present"]
        samples = present_BM.shape[0]
        rows: dict[str, list[Tensor]] = {"x": [], "sample": [], "modality": [], "bin": [], "final": [], "block": []}
        block_of_M, first = torch.tensor(model._block_of_M), 0
        for name, indices in model.layout.items():
            group, encoder = _group(tensors, name), model.encoder(name)
            block_P = block_of_M[group.modality_P]
            pairs = GraphBlocks(block_P, len(indices))
            layout = GroupLayout(block_P, pairs, pairs.times(encoder.tokens), _own(group, block_P, len(indices)))  # type: ignore[arg-type]
            x_ND = encoder(group, layout).flatten(0, 1)
            bin_N = even_bins(encoder.tokens, model.bins).repeat(group.pairs)
            of_token = {"sample": group.sample_P, "modality": group.modality_P, "block": block_P + first}
            for what, own_P in of_token.items():
                rows[what].append(own_P.repeat_interleave(encoder.tokens))
            rows["x"].append(x_ND)
            rows["bin"].append(bin_N)
            rows["final"].append(bin_N == model.bins - 1)
            first += len(indices)
        encoded = sum(x_ND.shape[0] for x_ND in rows["x"])
        if model.missing is not None:
            self._indicators(rows, present_BM)
        sample_N, modality_N, bin_N = (torch.cat(rows[what]) for what in ("sample", "modality", "bin"))
        layout_N = GraphLayout(
            sample_N, modality_N, bin_N, torch.cat(rows["final"]), GraphBlocks(torch.cat(rows["block"]), first),
            samples + 1, model.bins, encoded, present_BM.shape[1],
        )  # fmt: skip
        x_ND = torch.cat(rows["x"]) + model.modality(modality_N) + model.bin(bin_N)
        if model.moment is not None:
            moment_B = torch.cat([tensors["moment"], tensors["moment"].new_zeros(1)])
            x_ND = x_ND + model.moment(moment_B, sample_N)
        logits = model.fuse(x_ND, layout_N).logits  # type: ignore[arg-type]
        return {task: logits_BC[:samples] for task, logits_BC in logits.items()}

    def _indicators(self, rows: dict[str, list[Tensor]], present_BM: Tensor) -> None:
        samples, modalities = present_BM.shape
        modality_X = torch.arange(modalities).repeat(samples)
        sample_X = torch.arange(samples).repeat_interleave(modalities)
        assert self.model.missing is not None
        rows["x"].append(self.model.missing(modality_X))
        rows["sample"].append(torch.where(present_BM.flatten(), samples, sample_X))
        rows["modality"].append(modality_X)
        rows["bin"].append(torch.full_like(modality_X, self.model.bins - 1))
        rows["final"].append(torch.ones_like(modality_X, dtype=torch.bool))


def inputs_of(batch: Batch) -> dict[str, Tensor]:
    """The tensors of a batch that a graph takes, by name: those of its groups, who is present, and moments."""
    return {
        name: tensor
        for name, tensor in batch.tensors().items()
        if name in ("present", "moment") or name.startswith("group:")
    }


def _group(tensors: Mapping[str, Tensor], name: str) -> Any:
    own = group_type(name)
    return own(**{field.name: tensors[f"group:{name}:{field.name}"] for field in fields(own)})


def _own(group: Any, block_P: Tensor, blocks: int) -> Any:
    """What an encoder of codes works out besides."""
    if not hasattr(group, "ids_O"):
        return None
    pair_O = ids_by_offsets(group.offsets, group.ids_O.shape[0])
    rows: Any = GraphBlocks(block_P[pair_O], blocks)
    return CodesLayout(rows, GraphSegments(pair_O, group.pairs), None)  # type: ignore[arg-type]


def ids_by_offsets(offsets_S1: Tensor, rows: int) -> Tensor:
    """As `layers.ragged.offsets_to_ids`, by a search."""
    return torch.searchsorted(offsets_S1[1:], torch.arange(rows), right=True)


@contextmanager
def graph_primitives() -> Iterator[None]:
    """While a graph is traced, or its form is run: primitives that files have by name."""
    series: Any = trainer.models.encoders.series
    block: Any = trainer.models.fusemoe.block
    kept = (series.Segments, series.offsets_to_ids, block.Segments)
    series.Segments, series.offsets_to_ids, block.Segments = GraphSegments, ids_by_offsets, GraphSegments
    try:
        yield
    finally:
        series.Segments, series.offsets_to_ids, block.Segments = kept
