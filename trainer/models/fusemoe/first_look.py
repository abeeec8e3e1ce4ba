"""A new model looks at some training records, from which parts of it take their scale (`numbers.first_seen`)."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import torch
from torch import nn

from data_shards import Batch
from trainer.models.encoders.layout import Encoder
from trainer.models.fusemoe.model import FuseMoE
from trainer.models.layers.staging import plan_of
from trainer.models.numbers.first_seen import ENOUGH, FirstSeen

logger = logging.getLogger(__name__)

ROWS = 2_048  # over all parts, that are enough: many modalities need fewer records


def parts_of(module: nn.Module) -> list[FirstSeen]:
    """Its parts that look."""
    return [part for part in module.modules() if isinstance(part, FirstSeen)]


@torch.no_grad()
def first_look(model: FuseMoE, batches: Iterable[Batch]) -> list[nn.Parameter]:
    """The parameters of all parts that look, set by `batches`, of which no more are taken than needed.

    Only encoders with such parts read anything; none of them exchanges with other ranks.
    """
    encoders: dict[str, Encoder] = {name: model.encoder(name) for name in model.layout if parts_of(model.encoder(name))}
    parts = [part for encoder in encoders.values() for part in parts_of(encoder)]
    if not parts:
        return []
    was_training, looked = model.training, False
    model.eval()
    for part in parts:
        part.begin()
    for batch in batches:
        looked = True
        model.encode(batch, plan_of(model, batch), encoders)
        if _rows(parts) >= ROWS:
            break
    rows = _rows(parts)
    hardly = {
        model.schema.modality_names[model.layout[name][block]]
        for name, encoder in encoders.items()
        for part in parts_of(encoder)
        for block in part.finish()
    }
    model.train(was_training)
    if looked:
        _say(encoders, rows, sorted(hardly))
    return [parameter for part in parts for parameter in part.parameters()]


def _rows(parts: list[FirstSeen]) -> int:
    return sum(part.rows() for part in parts)


def _say(encoders: Iterable[str], rows: int, hardly: list[str]) -> None:
    logger.info("scales of %s are set by %d rows of training samples", ", ".join(encoders), rows)
    if hardly:
        logger.warning(
            "fewer than %d rows of %s were among the training samples that the model looked at first: what it makes of "
            "them keeps its own scale until it is learned",
            ENOUGH,
            ", ".join(hardly),
        )
