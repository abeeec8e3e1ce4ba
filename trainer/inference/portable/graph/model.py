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
from data_shards.loading.batch import CodesGroup, group_type
from trainer.inference.portable.graph.encoders import ENCODERS
from trainer.inference.portable.graph.layers import LAYERS
from trainer.inference.portable.graph.over_time import OVER_TIME, Placed, places_of
from trainer.inference.portable.graph.segments import GraphBlocks, GraphSegments, ids_by_offsets
from trainer.models.encoders.codes import CodesLayout
from trainer.models.encoders.layout import GroupLayout
from trainer.models.encoders.series import SeriesEncoder
from trainer.models.encoders.timed import TimedLayout
from trainer.models.fusemoe.model import FuseMoE
from trainer.models.layers.token_layout import even_bins, grid_bins


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
        if spec.name in model.config.encoders:
            raise NoGraphError(
                f"modality {spec.name} has an encoder of its own, which a graph does not hold; export as safetensors"
            )
    moe = model.config.moe
    if moe.granularity != "token" or moe.selection == "expert":
        raise NoGraphError(
            "experts that are chosen for more than a token (moe.granularity), or that choose (moe.selection=expert), "
            "cannot be in a graph; export as safetensors"
        )


def graph_form(model: nn.Module) -> nn.Module:
    """The model with its layers in the form of a graph; the same parameters."""
    forms = {**LAYERS, **ENCODERS, **OVER_TIME}
    for module in model.modules():
        found = forms.get(type(module))
        if found is not None:
            module.__class__ = found
    return model


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
        first = 0
        for name, indices in model.layout.items():
            x_ND, placed = self._encoded(name, indices, _group(tensors, name), present_BM)
            modality_N = torch.tensor(indices)[placed.block_N]
            own = [x_ND, placed.sample_N, modality_N, placed.bin_N, placed.final_N, placed.block_N + first]
            for kept, tensor in zip(rows.values(), own, strict=True):
                kept.append(tensor)
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

    def _encoded(self, name: str, indices: list[int], group: Any, present_BM: Tensor) -> tuple[Tensor, Placed]:
        """The tokens of an encoder group, (N, D), and what each is."""
        model, encoder = self.model, self.model.encoder(name)
        block_P = torch.tensor(model._block_of_M)[group.modality_P]
        blocks = GraphBlocks(block_P, len(indices))
        own: Any = None
        if isinstance(group, CodesGroup):
            row_O = ids_by_offsets(group.offsets, group.ids_O.shape[0])
            codes: Any = GraphBlocks(block_P[row_O], len(indices))
            own = CodesLayout(codes, GraphSegments(row_O, group.pairs), None)  # type: ignore[arg-type]
        if not encoder.timed:
            x_ND = encoder(group, GroupLayout(block_P, blocks, blocks.times(encoder.tokens), own)).flatten(0, 1)  # type: ignore[arg-type]
            on_grid, tokens = isinstance(encoder, SeriesEncoder), encoder.tokens
            bin_T = grid_bins(model.bins, tokens) if on_grid else even_bins(tokens, model.bins)
            bin_N, sample_N = bin_T.repeat(group.pairs), group.sample_P.repeat_interleave(tokens)
            return x_ND, Placed(sample_N, blocks.times(tokens).block_N, bin_N, bin_N == model.bins - 1)
        timed: Any = encoder
        if isinstance(group, CodesGroup):
            time_O = group.times_O / timed.horizon_M()[codes.block_N]
            places = places_of(codes, group.sample_P[row_O], time_O, present_BM, indices, model.bins)
            own = CodesLayout(codes, None, places)
        else:
            time_P = group.times_P / timed.horizon_M()[block_P]
            places = places_of(blocks, group.sample_P, time_P, present_BM, indices, model.bins)
            objects: Any = GroupLayout(block_P, blocks, blocks.times(timed.encoder.tokens), None)  # type: ignore[arg-type]
            own = TimedLayout(objects, places)
        x_ND = encoder(group, GroupLayout(block_P, blocks, blocks, own))  # type: ignore[arg-type]
        return x_ND, timed.over_time.placed(places)

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
