"""A checkpoint into a live engine, of any number of ranks and any expert-parallel degree."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable

import fsspec
import numpy as np
import torch
from torch import Tensor

from parallel import Engine, Fragment
from trainer.checkpoints.checkpoint import Checkpoint, read_checkpoint
from trainer.checkpoints.description import outdated
from trainer.checkpoints.pieces import LIVE, CheckpointError, ForeignCheckpointError, Wanted
from trainer.worker.collectives import broadcast_bytes, broadcast_json, sum_over_ranks

logger = logging.getLogger(__name__)

TEXT_POSITIONS = "encoders.text.position.weight"


Values = list[tuple[Tensor, Tensor]]
"""Live tensors of this rank, each with what a checkpoint holds for it."""


def load_engine(checkpoint: Checkpoint, engine: Engine, moments: bool = True) -> None:
    """Put a checkpoint into a live engine of any topology; each rank reads what it owns. Collective.

    Raises CheckpointError: damaged, incomplete, or written by a model of other parameters (names the first one).
    """
    check_whole(engine)
    index = _from_rank_0(checkpoint.index, engine)
    _put(checkpoint, engine, _read(checkpoint, index, engine, moments), moments)


def check_whole(engine: Engine) -> None:
    """Whether the ranks' fragments are all of every parameter, so that nothing stays as it was made. Collective.

    Raises CheckpointError: it names the parameter.
    """
    sizes = {name: int(np.prod(shape)) for name, shape in engine.logical_parameters().items()}
    own = dict.fromkeys(sizes, 0)
    for fragment in engine.fragments():
        own[fragment.name] += fragment.numel
    filled = sum_over_ranks(torch.tensor(list(own.values()), dtype=torch.int64)).tolist()
    for (name, size), held in zip(sizes.items(), filled, strict=True):
        if held != size:
            raise CheckpointError(
                f"nothing was loaded: the ranks hold {held} of the {size} elements of parameter {name}, and a "
                "checkpoint would leave the rest as it is"
            )


def _from_rank_0(read: Callable[[], bytes], engine: Engine) -> bytes:
    """What rank 0 reads, on every rank, which saves the storage as many requests as there are ranks. Collective.

    Raises CheckpointError, OSError, on every rank.
    """
    data, problem = b"", None
    if engine.mesh.rank == 0:
        try:
            data = read()
        except (CheckpointError, OSError) as error:
            # A storage that is away is no damage: the checkpoint is not passed over.
            problem = {"damaged": isinstance(error, CheckpointError), "text": str(error)}
    problem = broadcast_json(problem)
    if problem is not None:
        raise (CheckpointError if problem["damaged"] else OSError)(problem["text"])
    return broadcast_bytes(data)


def _opened(fs: fsspec.AbstractFileSystem, path: str, engine: Engine) -> Checkpoint:
    """As `read_checkpoint`, read by rank 0 for all. Collective."""
    meta = _from_rank_0(lambda: json.dumps(read_checkpoint(fs, path).meta).encode(), engine)
    return Checkpoint(fs, path, json.loads(meta))


def _read(checkpoint: Checkpoint, index: bytes, engine: Engine, moments: bool) -> Values:
    """All that this rank needs; the engine stays as it is. Raises CheckpointError."""
    check_parameters(checkpoint, engine.logical_parameters())
    targets = [
        (fragment, role, target)
        for fragment in engine.fragments()
        for role, target in _targets(fragment, checkpoint.roles, moments)
    ]
    wanted = [Wanted(fragment.name, role, fragment.start, fragment.numel) for fragment, role, _ in targets]
    found = checkpoint.reader(index).read_all(wanted)
    values = [(target, value) for (_, _, target), value in zip(targets, found, strict=True)]
    return values + _buffers(checkpoint, engine)


def _targets(fragment: Fragment, roles: tuple[str, ...], moments: bool) -> list[tuple[str, Tensor]]:
    """What is read, and where to: of weights that are only looked at, and of an average, what everybody reads; of
    weights that go on learning, those that did. A run that keeps an average from now on begins it with its weights."""
    trained = LIVE if moments and LIVE in roles else "master"
    found = [(trained, fragment.master)]
    if fragment.average is not None:
        found.append(("master", fragment.average))
    return [*found, ("exp_avg", fragment.exp_avg), ("exp_avg_sq", fragment.exp_avg_sq)] if moments else found


def _put(checkpoint: Checkpoint, engine: Engine, values: Values, moments: bool) -> None:
    """Collective, so only once every rank has read its part."""
    for target, value in values:
        target.copy_(value)
    # Adam's t is not stored: it is the run's step without those that were skipped as not finite.
    if moments:
        engine.optimizer_step = checkpoint.step - checkpoint.meta.get("progress", {}).get("nonfinite_steps", 0)
    # Master weights are sharded over ranks; the model's own weights are made from them.
    engine.after_restore()


def _buffers(checkpoint: Checkpoint, engine: Engine) -> Values:
    stored, live = checkpoint.meta.get("buffers", {}), engine.buffers()
    for name in sorted(stored.keys() ^ live.keys()):
        raise ForeignCheckpointError(
            f"{checkpoint.path} does not fit this model: {name} is only in "
            f"{'the checkpoint' if name in stored else 'the model'}; use the recipe it was written with"
        )
    values: Values = []
    for name, live_one in live.items():
        value = torch.tensor(stored[name], dtype=live_one.dtype)
        if value.numel() != live_one.numel():
            raise ForeignCheckpointError(
                f"{checkpoint.path} does not fit this model: {name} has {value.numel()} elements in the checkpoint and "
                f"{live_one.numel()} in the model; use the recipe it was written with, or another name"
            )
        values.append((live_one, value.view_as(live_one)))
    return values


def check_parameters(checkpoint: Checkpoint, expected: dict[str, tuple[int, ...]]) -> None:
    """Raises CheckpointError if the model's parameters are not the checkpoint's."""
    stored = {name: tuple(shape) for name, shape in checkpoint.meta["parameters"].items()}
    if problem := outdated(stored):
        raise ForeignCheckpointError(f"{checkpoint.path} {problem}")
    for name in sorted(stored.keys() | expected.keys()):
        theirs, ours = stored.get(name, "absent"), expected.get(name, "absent")
        if theirs == ours:
            continue
        way_out = "use the recipe it was written with, or another name for another run"
        if name == TEXT_POSITIONS and "absent" not in (theirs, ours):
            way_out = f"set model.text.positions={theirs[0]}"
        raise ForeignCheckpointError(
            f"{checkpoint.path} does not fit this model: parameter {name} is {theirs} in the checkpoint and {ours} in "
            f"the model; {way_out}"
        )


def restore(
    run_dir: str,
    paths: list[str],
    engine: Engine,
    agree: Callable[[bool], bool],
    belongs: Callable[[Checkpoint], None],
) -> Checkpoint | None:
    """Continue from the first of `paths` (the same list on every rank) that every rank can read; None if none can be.

    Args:
        agree: tells whether all ranks are fine: a piece that one rank finds damaged rules the checkpoint out for all.
        belongs: looks at a description before any tensor is read; raises for a checkpoint of other data or of another
            backbone, which ends the run.
    """
    fs, _ = fsspec.url_to_fs(run_dir)
    if paths:
        check_whole(engine)
    for path in paths:
        checkpoint, values, error = None, Values(), None
        try:
            checkpoint = _opened(fs, path, engine)
            index = _from_rank_0(checkpoint.index, engine)
            belongs(checkpoint)
            values = _read(checkpoint, index, engine, moments=True)
        # Not damage: the one before is as foreign, and passing over all of them would start from nothing.
        except ForeignCheckpointError:
            raise
        except CheckpointError as problem:
            error = problem
        # Before anything is changed: a piece that one rank finds damaged leaves all engines as they were.
        if agree(error is None):
            assert checkpoint is not None
            _put(checkpoint, engine, values, moments=True)
            return checkpoint
        logger.warning("%s; the checkpoint before it is used", error or f"another rank cannot read {path}")
    return None
