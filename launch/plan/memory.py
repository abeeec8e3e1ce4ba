"""What a rank holds at the fullest moment of a step, from the model's stages and the engine's way with gradients.

Weights, master weights and moments are there all the time. Gradients of a stage are made by its backward pass, moved
into a flat fp32 buffer, sent by one reduce-scatter for dense parameters and one for experts, and dropped once the
rank's own part has arrived; `IN_FLIGHT` stages may be under way (`parallel.engine.reducer`). Meanwhile activations go
the other way: each stage that is done gives back what it kept. So the fullest moment depends on which of the two is
larger, and every moment of the backward pass is looked at.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import nn

from launch.plan.code_tables import UPDATED, UPDATED_ON_CPU
from launch.plan.constants import padded_group
from parallel.engine.reducer import IN_FLIGHT
from parallel.engine.stages import stages_of
from trainer.models.flops import is_expert
from trainer.models.job_type import exempt_from_decay


@dataclass(frozen=True)
class StageSize:
    """Elements of one stage on a rank: (expert?, decayed?, learning rate) -> elements, unpadded; each is an optimizer
    group."""

    groups: dict[tuple[bool, bool, float], int]

    def reductions(self, world: int, degree: int) -> list[tuple[int, int]]:
        """(elements of the buffer, elements that this rank owns of it) of each collective."""
        found: dict[bool, tuple[int, int]] = {}
        for (expert, *_), size in self.groups.items():
            sharers = world // degree if expert else world
            whole = padded_group(size, sharers)
            before = found.get(expert, (0, 0))
            found[expert] = before[0] + whole, before[1] + whole // sharers
        return list(found.values())

    def elements(self, world: int, degree: int, experts: bool) -> int:
        """Padded elements of the dense parameters, or of the experts."""
        sharers = world // degree if experts else world
        return sum(padded_group(size, sharers) for (expert, *_), size in self.groups.items() if expert == experts)


def stage_sizes(
    model: nn.Module, no_decay: tuple[str, ...], lr_of: Callable[[str], float | None] = lambda name: None
) -> list[StageSize]:
    """Of a rank's model, which may be one without memory, in the order of the forward pass.

    Args:
        no_decay, lr_of: as the type of job has them.
    """
    found = []
    for stage in stages_of(model):
        groups: dict[tuple[bool, bool, float], int] = {}
        for name, parameter in stage.parameters:
            key = (is_expert(name), not exempt_from_decay(no_decay, name, parameter), lr_of(name) or 0.0)
            groups[key] = groups.get(key, 0) + parameter.numel()
        found.append(StageSize(groups))
    return found


@dataclass(frozen=True)
class Kept:
    """Bytes of activations of one micro-batch on a rank.

    Attributes:
        stages: what each stage keeps for its backward pass, in the order of the forward pass.
        working: what each stage's backward pass needs beside, while it computes; with recomputation that is all that
            the stage would have kept.
    """

    stages: list[float]
    working: list[float]


@dataclass(frozen=True)
class Moment:
    """Bytes at one moment."""

    activations: float
    gradients: float

    @property
    def total(self) -> float:
        return self.activations + self.gradients


def fullest_moment(
    stages: list[StageSize],
    kept: Kept,
    world: int,
    degree: int,
    width: int,
    zero_stage: int,
    accumulation: int,
    cpu: bool = False,
    rows: float = 0.0,
) -> Moment:
    """The fullest moment of a step.

    Args:
        width: bytes of a weight or an activation; buffers and parts are fp32.
        cpu: gradients travel over gloo, which copies what it reduces.
        rows: bytes of the fp32 gradients of rows of spread tables that a micro-batch brings; they are kept for the
            update, in every ZeRO stage.
    """
    sent = [_Sent.of(stage, world, degree, width, cpu) for stage in stages]
    once = zero_stage == 1 and accumulation > 1
    flying: deque[_Sent] = deque()
    earlier = 0.0
    if once:
        earlier = sum(stage.buffer for stage in sent)
    elif accumulation > 1:
        # The last ones of a pass arrive during the next; before the third there is no part of theirs to add them to.
        flying.extend(reversed(sent[:IN_FLIGHT]))
        earlier = sum(stage.arrived for stage in sent[IN_FLIGHT if accumulation == 2 else 0 :])
    before = rows * (accumulation - 1)
    moments = list(_last_pass(sent, kept, earlier + before, flying, once, accumulation > 1 and not once))
    if once:
        moments += [Moment(_busy(kept, number), stage.made + earlier + before) for number, stage in enumerate(sent)]
    # The update, by the parts of all stages, and by all rows.
    in_update = (UPDATED_ON_CPU if cpu else UPDATED) * rows * accumulation
    moments.append(Moment(0.0, sum(stage.arrived for stage in sent) + in_update))
    return max(moments, key=lambda moment: moment.total)


@dataclass(frozen=True)
class _Sent:
    """Bytes of a stage's gradients: as the backward pass makes them, its flat buffers, what is made beside them to
    receive, what is kept in the end, and copies that only sending makes."""

    made: float
    buffer: float
    received: float
    arrived: float
    copied: float

    @staticmethod
    def of(stage: StageSize, world: int, degree: int, width: int, cpu: bool) -> _Sent:
        sizes = stage.reductions(world, degree)
        # Where nobody else has these parameters, the buffer is the part.
        return _Sent(
            width * sum(stage.groups.values()),
            4 * sum(whole for whole, _ in sizes),
            4 * sum(own for whole, own in sizes if own < whole),
            4 * sum(own for _, own in sizes),
            4 * sum(whole for whole, own in sizes if own < whole) if cpu else 0.0,
        )


def _busy(kept: Kept, number: int) -> float:
    """Activations while a stage computes backward: those of the stages before it are still there."""
    return sum(kept.stages[: number + 1]) + kept.working[number]


def _last_pass(
    sent: list[_Sent], kept: Kept, held: float, flying: deque[_Sent], once: bool, parts_there: bool
) -> Iterator[Moment]:
    """Moments of a backward pass that sends, stage by stage from the last one.

    Args:
        held: bytes that earlier micro-batches have left. flying: what of them is still under way.
        once: what is held are the buffers of all stages. parts_there: it is the parts that arrive again.
    """
    for number in reversed(range(len(sent))):
        stage = sent[number]
        under_way = sum(other.buffer + other.received for other in flying)
        yield Moment(_busy(kept, number), stage.made + under_way + held)
        while len(flying) >= IN_FLIGHT:
            # What arrives is kept, or added to what is there.
            arrived = flying.popleft().arrived
            held += 0.0 if parts_there else arrived
        flying.append(stage)
        # Its buffer has been there since the first micro-batch.
        held -= stage.buffer if once else 0.0
        under_way = sum(other.buffer + other.received for other in flying)
        yield Moment(sum(kept.stages[:number]), stage.made + under_way + stage.copied + held)
