"""The boundary to DeepSpeed: process groups, sharded optimizer, mixed precision, and nothing else knows of it.

DeepSpeed is imported inside functions, so importing this module is cheap. Three of its habits are corrected here:

* It recognises mixture-of-experts layers by type. `_adopt` gives each of our layer *instances* a class that also
  derives from DeepSpeed's, which is all it asks; `parallel.moe` stays free of it.
* It reduces gradients as they come, so ranks whose batches lack a modality reduce other lists than their peers: a hang,
  or gradients added to the wrong parameter. Here the order is fixed (`parallel.engine.reducer`).
* On a CPU it compiles a shared-memory extension at start-up, for minutes. It is told that the extension is not
  available.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from parallel.config import MoEConfig, ParallelConfig, Precision
from parallel.control import control_group, is_control_group
from parallel.engine import deepspeed_internals as internals
from parallel.engine.averages import WeightAverages
from parallel.engine.deepspeed_config import deepspeed_config, group_name, parameter_groups, refuse_scalars
from parallel.engine.fragments import Fragment, collect_fragments
from parallel.engine.import_guards import AdamW, keep_compiler_out, keep_old_names_quiet, uncompiled, without
from parallel.engine.in_step import loose_end
from parallel.engine.reducer import GradientReducer
from parallel.engine.spread import SpreadTables
from parallel.engine.stages import stages_of
from parallel.engine.step_memory import StepMemory
from parallel.mesh import Mesh, MeshSpec
from parallel.moe.dispatch import keep_in_step
from parallel.moe.layer import MoELayer


def init_distributed(
    device: torch.device | str, timeout_s: float = 300.0, rank: int | None = None, world: int | None = None
) -> None:
    """Make the process group of this run, or wrap the one that exists.

    A group made by a launcher is kept. Otherwise RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT say how to meet
    (torchrun sets them); without them the world is this one process.

    Args:
        device: where tensors live; cuda means NCCL, cpu means gloo.
        timeout_s: seconds after which a collective that a peer never joins fails.
        rank, world: override RANK and WORLD_SIZE.
    """
    device = torch.device(device)
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        timeout = timedelta(seconds=timeout_s)
        rank = int(os.environ.get("RANK", 0)) if rank is None else rank
        world = int(os.environ.get("WORLD_SIZE", 1)) if world is None else world
        # Alone: no port is opened.
        if world == 1 and "MASTER_ADDR" not in os.environ:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
        else:
            dist.init_process_group(backend, rank=rank, world_size=world, timeout=timeout)
    _import_deepspeed(device).init_distributed(dist_backend=dist.get_backend(), verbose=False)


def _import_deepspeed(device: torch.device) -> Any:
    """DeepSpeed, told its device before it looks for one, silent, and with nothing to compile."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    os.environ.setdefault("LOCAL_RANK", "0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # DeepSpeed would import it for its autotuner, which nothing here uses.
        with without("mlflow"):
            import deepspeed
        import deepspeed.ops

        # Needed by every reduction, though only to see that the optimizer is another one.
        with uncompiled(deepspeed.runtime.compiler):
            import deepspeed.runtime.zero.muon.muon_optimizer
    # Its logger alone: its own function turns every handler there too, also those that others have hung on it.
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if device.type == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def create_mesh(parallel: ParallelConfig, moe: MoEConfig, device: torch.device | str = "cpu") -> Mesh:
    """Process groups for these degrees. Needs `init_distributed`; every rank must call it.

    Raises:
        ValueError: if the degrees do not fit the world size or the experts.
    """
    from deepspeed.utils import groups

    spec = MeshSpec(dist.get_world_size(), parallel.expert_parallel, moe.experts, moe.top_k).validate()
    ep_group = internals.use_own_groups(groups, group_name(spec), spec, dist.get_rank())
    timeout_s, device = parallel.timeout_s, torch.device(device)
    return Mesh(spec, dist.get_rank(), ep_group, dist.group.WORLD, device, timeout_s, control_group())


def _limit_waiting(timeout_s: float) -> None:
    """Collectives of payload give up after this time. DeepSpeed makes groups with torch's default, half an hour."""
    for group in list(dist.distributed_c10d._world.pg_map):
        if is_control_group(group):
            continue
        dist.distributed_c10d._set_pg_timeout(timedelta(seconds=timeout_s), group)


class Engine:
    """A model with sharded optimizer state over a mesh.

    One optimizer step is `accumulation` times `loss = ...engine(...)...; engine.backward(loss)`, then one
    `engine.step()`. DeepSpeed divides every loss by `accumulation` and averages gradients over all ranks (experts too:
    a gradient does not depend on the expert-parallel degree). Every rank must call the model equally often, with zero
    tokens if it has none.

    Args:
        model: parameters in fp32; cast here if precision is bf16. Floating-point inputs are the caller's to cast. A
            method `stages()` says what can be reduced while the backward pass goes on (`parallel.engine.stages`).
        mesh: from `create_mesh`; the model's MoE layers must use `mesh.dispatcher()`.
        lr: base learning rate, see `set_lr_factor`. betas, eps, weight_decay: of AdamW.
        no_decay: (name, parameter) -> whether to leave it out of weight decay.
        zero_stage: 1 or 2. With 2 gradients are reduced in every micro-batch and kept sharded between them.
        clip: largest global gradient norm; 0 = no clipping.
        accumulation: micro-batches of a step.
        lr_of: (name) -> base learning rate of a parameter; None = `lr`. Rows of spread tables have `lr`.
        ema: decay of an average of the weights that is kept beside them (`averaged`); 0 = none.

    Raises:
        ValueError: an average is asked for, and a table that is trained is spread over ranks: rows that a step does not
            touch are brought up to date when they are read, and have no average.
    """

    def __init__(
        self,
        model: nn.Module,
        mesh: Mesh,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        no_decay: Callable[[str, nn.Parameter], bool] | None = None,
        zero_stage: int = 1,
        precision: Precision = "fp32",
        clip: float = 0.0,
        accumulation: int = 1,
        lr_of: Callable[[str], float | None] = lambda name: None,
        ema: float = 0.0,
    ) -> None:
        # First, as it can still say the parameter's name.
        refuse_scalars(model)
        deepspeed = _import_deepspeed(mesh.device)
        self.mesh, self.module, self.accumulation = mesh, model, accumulation
        # Every name of a shared parameter, for `buffers` tells by name what is no parameter.
        self._parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        self._ends: list[Tensor] = []
        self._first_expert = _adopt(model, mesh.spec)
        for layer in model.modules():
            if isinstance(layer, MoELayer):
                # For `keep_in_step`: every rank must walk backward through every layer.
                layer.register_forward_hook(self._remember_layer)
        no_decay = no_decay or (lambda name, parameter: False)
        row_dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self._tables = SpreadTables(model, mesh, row_dtype, betas, eps, weight_decay, no_decay, clip)
        if ema and self._tables.trained:
            raise ValueError(
                f"optim.ema={ema:g} does not go with tables that are spread over ranks "
                f"({', '.join(self._tables.trained)}): set optim.ema=0, or raise model.codes.spread_above"
            )
        for table in self._tables.trained.values():
            table.register_forward_hook(self._remember_rows)
        stages = stages_of(model)
        for module in stages[-1].modules:
            module.register_forward_hook(self._remember_output)
        # After `_adopt`, whose marks tell experts from dense parameters.
        groups = parameter_groups(stages, mesh.spec, weight_decay, no_decay, lr_of)
        # Before the optimizer exists, whose first parameter group would import torch's compiler.
        keep_compiler_out()
        keep_old_names_quiet()
        optimizer = AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)
        self._base_lr = self._lr = lr
        # DeepSpeed casts every parameter, also those that are frozen in a precision of their own.
        kept = [(p, p.data) for p in model.parameters() if getattr(p, "keeps_precision", False)]
        with warnings.catch_warnings(), self._tables.unseen():
            warnings.simplefilter("ignore")
            # Collective: copies of a parameter are made equal by a broadcast, and a group is made.
            self._engine = deepspeed.initialize(
                model=model,
                optimizer=optimizer,
                config=deepspeed_config(zero_stage, precision, clip, accumulation),
                dist_init_required=False,
            )[0]
        for parameter, data in kept:
            parameter.data = data
        # After `initialize`, so that groups which DeepSpeed has made are among them.
        _limit_waiting(mesh.timeout_s)
        self._zero = self._engine.optimizer
        self._base_lrs = [group["lr"] for group in self._zero.param_groups]
        # Both before the first pass: they change what `initialize` has set up.
        internals.take_over(self._zero, self._tables.gradients)
        internals.create_moments(self._zero)
        self._updates = 0
        self._averages = WeightAverages(self._zero.single_partition_of_fp32_groups, ema) if ema else None
        reductions = internals.reductions_of(self._zero, stages)
        self._reducer = GradientReducer(stages, reductions, mesh.world, zero_stage == 1, mesh.device)
        self._engine.enable_backward_allreduce = False  # the reducer's work
        self._memory = StepMemory(model)
        self._micro_batches, self._in_pass = 0, False

    # --- training -----------------------------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Forward pass of the model."""
        if self.module.training and torch.is_grad_enabled():
            self._memory.keep()
        return self._engine(*args, **kwargs)

    def train(self) -> None:
        self._engine.train()

    def eval(self) -> None:
        self._engine.eval()

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of `loss` / accumulation, and send what is to be sent meanwhile.

        The loss may be a constant on a rank that had no data: its gradients are zeros. Call it on every rank.

        Raises:
            RuntimeError: a parameter is used outside of the stage that the model counts it in.
        """
        # A rank without tokens still walks backward through every layer: others wait for it in their exchanges.
        loss = keep_in_step(loss, self._ends)
        self._ends.clear()
        self._micro_batches += 1
        last = self._micro_batches == self.accumulation
        self._in_pass = True
        try:
            with self._reducer.backward_pass(last):
                if loss.requires_grad:
                    self._engine.backward(loss)
        finally:
            self._in_pass = False
        if not last:
            self._engine.step()  # advances the micro-batch counter, changes nothing

    def step(self) -> bool:
        """Clip and update. Returns False if a gradient was not finite on any rank.

        Then nothing is changed: weights, moments and Adam's t are as before the step's first forward pass, and so are
        the model's buffers (running means).

        Raises:
            RuntimeError: if `backward` was not called `accumulation` times since the last step.
        """
        if self._micro_batches != self.accumulation:
            raise RuntimeError(
                f"Engine.step() after {self._micro_batches} of {self.accumulation} micro-batches: call backward() "
                f"{self.accumulation} times, then step() once."
            )
        self._micro_batches = 0
        internals.put_gradients(self._zero, self._reducer.finish())
        # The host waits here, once: whether anything is updated hangs on the norm over all ranks.
        self._engine.step()
        accepted = not self._zero.overflow
        # By all that ZeRO's update goes by: the same norm, rate and decision.
        self._tables.finish(accepted, self.grad_norm, self._lr)
        self._memory.forget() if accepted else self._memory.restore()
        if accepted:
            self._updates += 1
            if self._averages is not None:
                self._averages.follow(self._updates)
        return accepted

    def grad_norm(self) -> float:
        """Global gradient norm of the last step before clipping, each expert counted once; inf if not finite."""
        return float(self._engine.get_global_grad_norm() or 0.0)

    def set_lr_factor(self, factor: float) -> None:
        """Learning rate of every group = base rate * factor."""
        for group, base in zip(self._zero.param_groups, self._base_lrs, strict=True):
            group["lr"] = base * factor
        self._lr = self._base_lr * factor

    @property
    def averages(self) -> bool:
        """Whether an average of the weights is kept."""
        return self._averages is not None

    def averaged(self) -> AbstractContextManager[None]:
        """Inside, the model has the average of its weights, if one is kept; nothing may be trained there. Collective,
        at both ends."""
        return nullcontext() if self._averages is None else self._averages.in_place(self._zero.update_lp_params)

    def close(self) -> None:
        """Release DeepSpeed's references to the model."""
        self._engine.destroy()

    def _remember_layer(self, layer: nn.Module, args: Any, output: Any) -> None:
        self._remember(output[0], zeros=False)

    def _remember_rows(self, table: nn.Module, args: Any, output: Tensor) -> None:
        self._remember(output, zeros=False)

    def _remember_output(self, module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            self._remember(output, zeros=True)

    def _remember(self, output: Tensor, zeros: bool) -> None:
        # Not of what is computed again in the backward pass, whose graphs must not outlive their use.
        if not self._in_pass and torch.is_grad_enabled() and output.requires_grad:
            self._ends.append(loose_end(output, zeros))

    # --- state --------------------------------------------------------------------------------------------------------

    def logical_parameters(self) -> dict[str, tuple[int, ...]]:
        """Full shape of every trainable parameter; experts as (E, ...) and tables as (R, D) over all ranks."""
        shapes, tables = {}, self._tables.shapes()
        for name, parameter in self.module.named_parameters():
            if name in tables:
                shapes[name] = tables[name]
            elif parameter.requires_grad:
                expert = name in self._first_expert
                shapes[name] = (self.mesh.spec.experts, *parameter.shape[1:]) if expert else tuple(parameter.shape)
        return shapes

    def buffers(self) -> dict[str, Tensor]:
        """State of the model that is not learned by gradient (persistent buffers), the live tensors; equal on all
        ranks."""
        return {name: tensor for name, tensor in self.module.state_dict().items() if name not in self._parameters}

    def fragments(self) -> list[Fragment]:
        """This rank's part of master weights and moments, without a collective (see `parallel.engine.fragments`)."""
        return [
            *collect_fragments(
                self._zero,
                self.logical_parameters(),
                self._first_expert,
                None if self._averages is None else self._averages.tensors,
            ),
            *self._tables.fragments(),
        ]

    @property
    def optimizer_step(self) -> int:
        """Updates made so far, Adam's t."""
        # All groups step together, so the first one speaks for all.
        return int(internals.states(self._zero)[0]["step"])

    @optimizer_step.setter
    def optimizer_step(self, value: int) -> None:
        self._updates = value
        for state in internals.states(self._zero):
            state["step"].fill_(value)
        self._tables.start_at(value)

    def after_restore(self) -> None:
        """Copy master weights that were written through `fragments` into the model on all ranks. Collective."""
        self._zero.update_lp_params()


def _adopt(model: nn.Module, spec: MeshSpec) -> dict[str, int]:
    """Make DeepSpeed see the MoE layers of the model; returns {name of an expert parameter: global id of its first
    expert}.

    Raises:
        ValueError: if a layer was built with another dispatcher than the mesh's.
    """
    from deepspeed.moe.layer import MoE

    first_expert = {}
    for prefix, layer in model.named_modules():
        if not isinstance(layer, MoELayer):
            continue
        if layer.dispatcher.size != spec.expert_parallel:
            raise ValueError(
                f"MoE layer '{prefix}' was built for {layer.dispatcher.size} expert-parallel ranks, but the mesh has "
                f"{spec.expert_parallel}: build the model with mesh.dispatcher()."
            )
        group = group_name(spec)
        for name, parameter in layer.experts.named_parameters():
            # What DeepSpeed reads: these are reduced over the copies of these experts, not over all ranks.
            parameter.allreduce = False  # type: ignore[attr-defined]
            parameter.group_name = group  # type: ignore[attr-defined]
            first_expert[f"{prefix}.experts.{name}" if prefix else f"experts.{name}"] = layer.experts.ids.start
        if not any(parameter.requires_grad for parameter in layer.experts.parameters()):
            continue  # frozen: nothing to optimise, and DeepSpeed insists on an optimizer group for a layer it knows of
        layer.__class__ = type("MoELayer", (MoELayer, MoE), {"set_deepspeed_parallelism": _groups_exist})
        for key, value in {
            "num_experts": spec.experts,
            "num_local_experts": spec.experts_per_rank,
            "ep_size": spec.expert_parallel,
            "expert_group_name": group,
        }.items():
            setattr(layer, key, value)
    return first_expert


def _groups_exist(layer: nn.Module, *args: Any, **kwargs: Any) -> None:
    """DeepSpeed asks its MoE layers to make their process groups; `create_mesh` has made them."""
