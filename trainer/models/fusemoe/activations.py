"""What a batch of average records asks of a FuseMoE model: features for its counter, elements kept for the backward."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from data_shards import ModalitySpec
from data_shards.records.statistics import ModalityStatistics, SplitStatistics
from trainer.models.convolutions.sizes import picture_elements
from trainer.models.flops import FlopCounter
from trainer.models.numbers.even_grid import CELL_BYTES
from trainer.models.numbers.kernels import DETAILS, KERNELS, LENGTH
from trainer.models.numbers.series_statistics import INPUTS
from trainer.models.numbers.steps import STEPS
from trainer.models.object_flops import ExpectedTokens, Objects


def expected_features(counter: FlopCounter, statistics: SplitStatistics, records: int) -> list[float]:
    """Mean features of a batch of `records`, modalities taken as present independently of each other."""
    modalities, tables = counter.schema.modalities, statistics.modalities
    own_of = {counter.layout[name][0]: name for name in counter.own}
    presence_M = torch.tensor(
        [tables[spec.name].present / max(1, statistics.records) for spec in modalities], dtype=torch.float64
    )
    values = dict.fromkeys(counter.features, 0.0) | {"records": float(records)}
    if counter.config.missing_embedding:
        values["indicators"] = records * float((1 - presence_M).sum())
    timed: dict[int, tuple[Objects, float, float]] = {}
    for name, indices in counter.layout.items():
        for index in indices:
            spec = modalities[index]
            there, (number, spread) = records * float(presence_M[index]), objects_of(tables[spec.name])
            if index in own_of:
                _add_positions(counter, values, own_of[index], tables[spec.name], there * number)
            else:
                _add_lengths(counter, values, spec, tables[spec.name], there, number)
            if spec.kind == "codes":
                values[f"codes/{name}"] += there * number
            if name in counter.objects:
                objects = counter.objects[name]
                timed[index] = (objects, number, spread)
                each, bins = objects.each, counter.config.bins
                values[f"tokens/{name}"] += there * (bins if objects.on_grid else each * number)
                values[f"within/{name}"] += there * (bins**2 if objects.on_grid else each**2 * (number**2 + spread**2))
        # Of timed modalities objects, which have as many codes as they are.
        each_M = torch.tensor([timed[i][1] if i in timed and modalities[i].has_objects else 1.0 for i in indices])
        values[f"pairs/{name}"] = records * float((presence_M[indices] * each_M).sum())
    for spec in modalities:
        if spec.kind == "series":
            values["events"] += records * sum(tables[spec.name].count) / max(1, statistics.records)
    expected = ExpectedTokens.of(timed, len(modalities), counter.config.bins) if timed else None
    values["squares"] = records * counter.expected_squares(presence_M, expected)
    return [values[name] for name in counter.features]


def objects_of(table: ModalityStatistics) -> tuple[float, float]:
    """Mean and deviation of the number of objects, or of codes, where the modality is present; 1 where none is kept."""
    return (1.0, 0.0) if table.objects is None else (table.objects.mean, table.objects.std)


def _add_positions(
    counter: FlopCounter, values: dict[str, float], name: str, table: ModalityStatistics, objects: float
) -> None:
    """Positions of so many objects in an encoder of `model.encoders`, as if all were of average length."""
    kind = counter.schema.modalities[counter.layout[name][0]].kind
    length = table.mean[0] if kind == "text" else 0.0
    if kind == "waveform":
        length = table.count[0] / max(1, table.present) / objects_of(table)[0]
    positions = float(counter.own[name].positions(torch.tensor([length], dtype=torch.float64)))
    values[f"own/{name}"] += objects * positions
    values[f"own_squares/{name}"] += objects * positions**2


def _add_lengths(
    counter: FlopCounter,
    values: dict[str, float],
    spec: ModalitySpec,
    table: ModalityStatistics,
    there: float,
    number: float,
) -> None:
    """Bytes and samples of a modality that is `there` times present, each time with this `number` of objects."""
    if spec.kind == "text":
        stride = counter.config.text.stride
        length = (table.mean[0] + (stride - 1) / 2) / stride
        values["positions"] += there * number * length
        values["text_squares"] += there * number * (length**2 + (table.std[0] / stride) ** 2)
    if spec.kind == "waveform":
        patch = counter.config.waveform.patch
        samples = table.count[0] / max(1, table.present)
        values[f"patches/{spec.group}"] += there * (samples + number * (patch - 1) / 2) / patch
        _add_moments(counter, values, spec.group, there * number, samples / max(number, 1.0))
    if spec.kind == "series":
        length = max(table.count, default=0) / max(1, table.present)
        _add_moments(counter, values, spec.group, there, length)
        if spec.group in counter.kernels:
            values[f"cells/{spec.group}"] += there * length * counter.widest(spec.group)


def _add_moments(counter: FlopCounter, values: dict[str, float], name: str, signals: float, length: float) -> None:
    """Moments of so many signals, or series' even grids, at which kernels look."""
    if name in counter.kernels:
        values[f"moments/{name}"] += signals * min(length, counter.kernels[name].moments)


@dataclass(frozen=True)
class Activations:
    """Bytes of activations of a batch: what is kept for the backward pass, and what that needs beside while it works.

    `inputs` are those of one block, which is all that a block keeps if it is computed again.
    """

    encoders: float
    block: float
    inputs: float
    heads: float
    encoders_working: float
    block_working: float
    heads_working: float


def activations(counter: FlopCounter, features: list[float], width: int, cpu: bool = False) -> Activations:
    """By counting the operands that operations save.

    Args:
        width: bytes of a number that is not always fp32.
        cpu: of the processor's kernels, which keep dropout's masks as numbers and pad the rows of experts in bf16.
    """
    config = counter.config
    values = dict(zip(counter.features, features, strict=True))
    tokens, row = counter.count_tokens(values), config.dim * width
    latents = config.latents if config.pooling == "attention" else 1
    pooled = tokens * ((3 if config.pooling == "attention" else 2) * row + 8 * latents)
    members, several = config.head.members, config.head.members > 1
    # Of several members also what each scales: the pooled vector, and what the shared layer gives.
    head = 6 * row + several * (latents + 2) * row
    heads = values["records"] * (2 * latents * row + members * head * len(counter.tasks))
    return Activations(
        encoders=_encoders(counter, values, width),
        block=_block(counter, values, width, cpu),
        inputs=tokens * row,
        heads=pooled + heads,
        # Gradients of a view and of its parts; of both sides of a block's two sums; of every latent's weighted tokens.
        encoders_working=tokens * 4 * row + _kernels_working(counter, values),
        block_working=tokens * 4 * row,
        heads_working=tokens * latents * row,
    )


def _kernels_working(counter: FlopCounter, values: dict[str, float]) -> float:
    """What the kernels of one dilation read at every moment, and what is made of their answers, in fp32; before that,
    what lays series on even times, if it is more."""
    each = {name: 2 * LENGTH * counter.widest(name) + 5 * KERNELS for name in counter.kernels}
    reading = [values[f"moments/{name}"] * numbers * 4 for name, numbers in each.items()]
    laying = [values.get(f"cells/{name}", 0.0) * CELL_BYTES for name in counter.kernels]
    return max([0.0, *reading, *laying])


def activation_elements(counter: FlopCounter, features: list[float]) -> tuple[float, float]:
    """Elements kept for the backward pass of (one fusion block, everything else) in fp32."""
    found = activations(counter, features, 4, cpu=True)
    return found.block / 4, (found.encoders + found.heads) / 4


def _block(counter: FlopCounter, values: dict[str, float], width: int, cpu: bool) -> float:
    config, moe = counter.config, counter.config.moe
    tokens, dim, k = counter.count_tokens(values), config.dim, moe.top_k
    factorized = counter.attention == "factorized"
    # Inputs of two norms, what they give, outputs, and of each attention queries, keys, values and what is read.
    rows = (16 if factorized else 9) * dim + moe.shared_expert_hidden
    rows += k * (2 * dim + (moe.hidden or 4 * dim))
    if cpu and width == 2:
        rows += k * dim
    if config.ffn_hidden:
        rows += 2 * dim + 2 * config.ffn_hidden
    # Means and deviations of norms, sums of attention's weights, the modality of the statistics.
    small = (
        (36 if factorized else 28) + 4 * (2 if factorized else 1) * config.heads + 4 * len(counter.schema.modalities)
    )
    # Three ids of 8 bytes and a weight for each expert of a token.
    token = rows * width + small + 28 * k
    if config.dropout:
        token += (3 if config.ffn_hidden else 2) * dim * (width if cpu else 1)
    decision = 4 * moe.experts + ((4 * dim + 36 * moe.experts) if moe.noise else 0)
    return tokens * token + counter.count_decisions(values) * decision


def _encoders(counter: FlopCounter, values: dict[str, float], width: int) -> float:
    total = 0.0
    for name, indices in counter.layout.items():
        total += _encoder(counter, name, indices, values, width)
        if name in counter.objects:
            total += _over_time(counter, name, values, width)
    return total


def _encoder(counter: FlopCounter, name: str, indices: list[int], values: dict[str, float], width: int) -> float:
    config, dim = counter.config, counter.config.dim
    spec, pairs = counter.schema.modalities[indices[0]], values[f"pairs/{name}"]
    rows = pairs * counter.tokens[name]
    if name in counter.own:
        cost = counter.own[name]
        inside = cost.kept_elements(pairs, values[f"own/{name}"], values[f"own_squares/{name}"])
        return inside * width + rows * (2 * cost.width * width + 8)
    if spec.kind == "codes":
        return _codes(counter, name, indices, values, width)
    match spec.kind:
        case "series":
            return _whole_signals(counter, name, pairs, width) + _series(counter, indices, values, pairs, width)
        case "text":
            # Of all texts: counted with the first group of them.
            first = next(n for n, i in counter.layout.items() if counter.schema.modalities[i[0]].kind == "text")
            return (name == first) * values["positions"] * dim * (3 + 18 * config.text.layers) * width
        case "vector":
            inputs = spec.width * (STEPS if config.vector.numbers == "piecewise" else 1)
            return pairs * (inputs + 4 * dim) * width
        case "image":
            return rows * picture_elements(config.image, spec.shape[0], dim) * width
        case "waveform":
            return (
                _whole_signals(counter, name, pairs, width)
                + values[f"patches/{name}"] * (spec.width * config.waveform.patch + 5 * dim) * width
            )


def _whole_signals(counter: FlopCounter, name: str, pairs: float, width: int) -> float:
    """Shares of fixed kernels as the projection reads them; where a learned scale standardises them, in fp32, that too,
    and which of them are hidden."""
    if name not in counter.kernels:
        return 0.0
    detail = counter.kernels[name]
    standardised = width + 9 if detail == DETAILS["fine_kernels"] else 0
    return pairs * (detail.features * (width + standardised) + counter.config.dim * width)


def _series(counter: FlopCounter, indices: list[int], values: dict[str, float], pairs: float, width: int) -> float:
    """Times and the attention over them are fp32."""
    config, series, rows = counter.config, counter.config.series, pairs * counter.config.bins
    widest = max(counter.schema.modalities[index].width for index in indices)
    total = rows * 16.0
    if series.statistics != "none":
        total += pairs * widest * INPUTS * width
    if series.irregularity != "mtand":
        total += rows * widest * 5 * series.kernel * width
    if series.irregularity != "imputation":
        score = config.bins * series.heads
        total += rows * widest * (series.heads + 1) * width
        total += values["events"] * (4 * (2 * score + 2 * series.time_dim) + 16) + pairs * widest * 3 * score * 4
    if series.irregularity == "utde":
        total += rows * 6 * config.dim * width
    return total


def _codes(counter: FlopCounter, name: str, indices: list[int], values: dict[str, float], width: int) -> float:
    """Rows, what values make of them, and, without times, what is read of them by queries."""
    dim, codes, tokens = counter.config.dim, values[f"codes/{name}"], counter.tokens[name]
    each = 1.0
    if any(counter.schema.modalities[index].valued for index in indices):
        each += 3.0
    if name not in counter.objects:
        each += 3.0 + 3.0 * tokens
    return codes * (each * dim * width + 24)


def _over_time(counter: FlopCounter, name: str, values: dict[str, float], width: int) -> float:
    """What objects keep until they are the tokens of their pair. Times and the attention over them are fp32."""
    objects, config = counter.objects[name], counter.config
    own, dim = config.objects, config.dim
    number, rows = counter.objects_of(name, values), values[f"tokens/{name}"]
    if not objects.on_grid:
        return number * own.time_dim * 16.0
    total = number * own.queries * (objects.each > 1) * (2 * dim + 3 * objects.each) * width
    if objects.irregularity != "mtand":
        total += rows * (dim + 2) * own.kernel * width
    if objects.irregularity != "imputation":
        score = config.bins * own.heads
        total += number * 4.0 * (2 * score + 2 * own.time_dim + dim) + rows * (own.heads * dim + 1) * width
    if objects.irregularity == "utde":
        total += rows * 6 * dim * width
    return total
