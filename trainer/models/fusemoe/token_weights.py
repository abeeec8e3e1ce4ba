"""What a record asks of a FuseMoE model, by modality: tokens, and the encoders' arithmetic that follows lengths.

Shape legend: M modalities.
"""

from __future__ import annotations

import numpy as np

from data_shards import TokenWeights
from trainer.models.flops import FORWARD_AND_BACKWARD, FlopCounter
from trainer.models.object_flops import over_time_flops


def token_weights(counter: FlopCounter) -> TokenWeights:
    """Tokens of the fusion blocks are counted exactly: those of a present modality, one indicator for an absent one.

    An event, a patch of a signal or a position of a text costs as many tokens as it takes of a token's FLOPs in the
    blocks. What grows with the square of a length, or is the same for every pair, is left out: it is little. Of objects
    that stand for themselves the tokens are counted, of those that share a grid what it takes to bring them there.
    """
    number = len(counter.schema.modalities)
    present_M, unit_M, object_M, empty_M = np.zeros((4, number))
    # Of no record: some arithmetic is done once a batch.
    fixed = _encoding(counter, {})
    for name, indices in counter.layout.items():
        token = _token_flops(counter, name)
        unit_M[indices] = (_encoding(counter, _unit(counter, name)) - fixed) / token
        once = _pretrained(counter, name, unit_M, token)
        objects = counter.objects.get(name)
        if objects is None:
            present_M[indices] = counter.tokens[name] + once
            continue
        # A pair whose objects stand for themselves is one token if it has none.
        empty_M[indices] = 0.0 if objects.on_grid else 1.0
        present_M[indices] = counter.config.bins if objects.on_grid else 0.0
        codes = f"codes/{name}" in counter.features
        each = float(objects.each)
        if objects.on_grid:
            each = over_time_flops(objects, counter.config, 1.0, 0.0) - over_time_flops(objects, counter.config, 0, 0)
            each /= token
        if not codes:
            object_M[indices] = each + once
        elif not objects.on_grid:
            unit_M[indices] += 1.0
    absent_M = np.full(number, float(counter.config.missing_embedding))
    if not counter.objects:
        return TokenWeights(present_M, absent_M, unit_M)
    return TokenWeights(present_M, absent_M, unit_M, object_M, empty_M)


def _pretrained(counter: FlopCounter, name: str, unit_M: np.ndarray, token: float) -> float:
    """Tokens that an object of a pretrained encoder is worth; what a byte or sample is, goes into `unit_M`.

    A step of what is frozen is a forward pass, and of a token three.
    """
    cost = counter.own.get(name)
    if cost is None:
        return 0.0
    share = cost.passes / FORWARD_AND_BACKWARD / token
    unit_M[counter.layout[name]] = share * cost.forward_flops(0.0, 1 / cost.stride, 0.0)
    return share * cost.forward_flops(1.0, cost.extra, 0.0)


def _token_flops(counter: FlopCounter, name: str) -> float:
    """What one token of a group takes in the fusion blocks."""
    pair = {f"pairs/{name}": float(name not in counter.objects), f"tokens/{name}": float(counter.tokens[name])}
    found = _flops(counter, pair)
    return (sum(found.values()) - found["encoders"]) / counter.tokens[name]


def _unit(counter: FlopCounter, name: str) -> dict[str, float]:
    """Features of one event, code, byte or sample of a modality of this group."""
    if name in counter.own:
        return {}
    match counter.schema.modalities[counter.layout[name][0]].kind:
        case "series":
            return {"events": 1.0}
        case "text":
            return {"positions": 1 / counter.config.text.stride}
        case "waveform":
            return {f"patches/{name}": 1 / counter.config.waveform.patch, f"moments/{name}": 1.0}
        case "codes":
            return {f"codes/{name}": 1.0}
    return {}


def _encoding(counter: FlopCounter, values: dict[str, float]) -> float:
    """FLOPs of encoders in a forward pass that is a third of a step."""
    found = _flops(counter, values)
    return found["encoders"] + found["kernels"] / FORWARD_AND_BACKWARD


def _flops(counter: FlopCounter, values: dict[str, float]) -> dict[str, float]:
    return counter.forward_flops([values.get(name, 0.0) for name in counter.features])
