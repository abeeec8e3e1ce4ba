"""What a record asks of a FuseMoE model, by modality: tokens, and the encoders' arithmetic that follows lengths.

Shape legend: M modalities.
"""

from __future__ import annotations

import numpy as np

from data_shards import TokenWeights
from trainer.models.flops import FlopCounter


def token_weights(counter: FlopCounter) -> TokenWeights:
    """Tokens of the fusion blocks are counted exactly: those of a present modality, one indicator for an absent one.

    An event, a patch of a signal or a position of a text costs as many tokens as it takes of a token's FLOPs in the
    blocks. What grows with the square of a length, or is the same for every pair, is left out: it is little.
    """
    number = len(counter.schema.modalities)
    present_M, unit_M = np.zeros(number), np.zeros(number)
    # Of no record: some arithmetic is done once a batch.
    fixed = _flops(counter, {})["encoders"]
    for name, indices in counter.layout.items():
        present_M[indices] = counter.tokens[name]
        pair = _flops(counter, {f"pairs/{name}": 1.0})
        token = (sum(pair.values()) - pair["encoders"]) / counter.tokens[name]
        unit_M[indices] = (_flops(counter, _unit(counter, name))["encoders"] - fixed) / token
    return TokenWeights(present_M, np.full(number, float(counter.config.missing_embedding)), unit_M)


def _unit(counter: FlopCounter, name: str) -> dict[str, float]:
    """Features of one event, byte or sample of a modality of this group."""
    match counter.schema.modalities[counter.layout[name][0]].kind:
        case "series":
            return {"events": 1.0}
        case "text":
            return {"positions": 1 / counter.config.text.stride}
        case "waveform":
            return {f"patches/{name}": 1 / counter.config.waveform.patch}
    return {}


def _flops(counter: FlopCounter, values: dict[str, float]) -> dict[str, float]:
    return counter.forward_flops([values.get(name, 0.0) for name in counter.features])
