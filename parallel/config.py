"""Typed settings of the parallel room: how many workers share a model, and what one mixture-of-experts layer is.

Whether degrees fit the world (does expert parallelism divide it?) is decided in one place, `parallel.mesh`; what is
checked here needs no more than one layer's own settings.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

GateKind = Literal["softmax", "laplace", "gaussian"]
RouterKind = Literal["joint", "per_modality", "disjoint"]
Granularity = Literal["token", "bin", "sample"]
Selection = Literal["token", "expert"]
Precision = Literal["fp32", "bf16"]
SPREAD_ABOVE = 16_384
"""Rows of the largest table of codes that every rank holds whole, unless something else is asked for."""


class ParallelConfig(BaseModel):
    """How the workers of one run share the model."""

    model_config = ConfigDict(extra="forbid")

    workers: int = Field(1, ge=1, description="Number of workers (ranks), one process and one device each.")
    expert_parallel: int = Field(
        1, ge=1, description="Ranks over which the experts of a layer are spread. Must divide workers and moe.experts."
    )
    experts_across_nodes: bool = Field(
        False, description="Let expert-parallel groups reach across nodes, whose network is slower than a node's links."
    )
    zero_stage: Literal[1, 2] = Field(
        1, description="ZeRO stage: 1 shards the optimizer state over the ranks, 2 also the accumulated gradients."
    )
    precision: Precision = Field(
        "fp32", description="Number format of weights and activations. Master weights and moments are always fp32."
    )
    threads_per_worker: int = Field(1, ge=1, description="CPU threads of each worker's tensor operations.")
    timeout_s: float = Field(
        300.0, gt=0, description="Seconds after which a collective that a peer never joins fails instead of waiting."
    )


class MoEConfig(BaseModel):
    """One mixture-of-experts layer, and the weights of the losses that keep its routing healthy."""

    model_config = ConfigDict(extra="forbid")

    experts: int = Field(16, ge=1, description="Experts of a layer, over all ranks.")
    top_k: int = Field(4, ge=1, description="Experts that serve one decision.")
    hidden: int | None = Field(
        None, ge=1, description="Hidden width of an expert; four times the model width if absent."
    )
    expert_bias: bool = Field(True, description="Whether the layers of an expert add a bias.")
    gate: GateKind = Field(
        "laplace",
        description="How a token is compared with an expert's prototype: dot product (softmax), "
        "negative distance (laplace) or negative squared distance (gaussian).",
    )
    gate_bias: bool = Field(
        False,
        description="Whether a learned number for each expert is added to its logit, as FuseMoE's theory has it (-|W_i "
        "- x| + b_i); of a per-modality router one set for each modality. It bears on the choice and on the weights.",
    )
    router: RouterKind = Field(
        "joint",
        description="joint: one router for all modalities; per_modality: a router each over shared experts; "
        "disjoint: a router and a pool of experts each.",
    )
    granularity: Granularity = Field(
        "token", description="What shares one routing decision: a token, a time bin of a sample, or a whole sample."
    )
    selection: Selection = Field(
        "token",
        description="Who chooses: each token takes its top_k experts, or each expert takes its share (top_k x tokens / "
        "experts) of every sample's tokens. The second needs granularity token and a joint or per_modality router.",
    )
    expert_groups: int = Field(
        1, ge=1, description="Groups of neighbouring experts, e.g. one for each node that holds some. Divides experts."
    )
    groups_per_token: int | None = Field(
        None, ge=1, description="Most groups that one decision may send to; absent: no limit. Not with disjoint pools."
    )
    bias_rate: float = Field(
        0.0,
        ge=0,
        description="Step of a bias on the choice (not on the weights) of experts: raised after every step for those "
        "below the mean load, lowered for those above. Balances without a loss; 0.001 is usual. 0 = none.",
    )
    noise: float = Field(0.0, ge=0, description="Factor on the learned noise of the logits; training only. 0 = none.")
    balance: float = Field(0.01, ge=0, description="Coefficient of the balance loss, CV²(importance) + CV²(load).")
    entropy: float = Field(0.0, ge=0, description="Coefficient of the modality entropy loss (FuseMoE, equation 3).")
    z: float = Field(0.0, ge=0, description="Coefficient of the router z-loss, mean logsumexp(logits)².")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout probability on the layer's output; training only.")
    shared_expert_hidden: int = Field(
        0, ge=0, description="Hidden width of an expert that serves every token beside the routed ones. 0 = none."
    )
    forced_balance: bool = Field(
        False, description="Deal decisions to experts in turn instead of by score. For benchmarks only."
    )

    @model_validator(mode="after")
    def _choice_is_possible(self) -> MoEConfig:
        if self.selection == "expert":
            no = {
                f"granularity={self.granularity}": self.granularity != "token",
                "router=disjoint": self.router == "disjoint",
                "noise": self.noise > 0,
                "bias_rate": self.bias_rate > 0,
                "groups_per_token": self.groups_per_token is not None,
                "forced_balance": self.forced_balance,
            }
            for setting in (name for name, given in no.items() if given):
                raise ValueError(f"moe.selection=expert does not go with moe.{setting}: drop one of the two")
        if self.groups_per_token is not None:
            size = self.experts // self.expert_groups
            if self.experts % self.expert_groups or self.router == "disjoint":
                raise ValueError(
                    "moe.groups_per_token needs equal groups that all modalities share, but "
                    f"moe.experts={self.experts}, moe.expert_groups={self.expert_groups}, moe.router={self.router}: "
                    "choose groups that divide the experts, and a joint or per_modality router"
                )
            if self.groups_per_token * size < self.top_k:
                raise ValueError(
                    f"moe.groups_per_token={self.groups_per_token} groups of {size} experts cannot give a decision "
                    f"moe.top_k={self.top_k} of them: allow more groups or make fewer of them"
                )
        return self
