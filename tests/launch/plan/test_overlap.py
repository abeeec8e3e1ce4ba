"""What the backward pass hides of sending, by hand; and that limits of a GPU's kernels count in a plan."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.errors import UsageError
from launch.plan.cost import CostModel, Layout
from launch.plan.layouts import make_plan, nearest_fit
from launch.plan.overlap import exposed_seconds
from launch.plan.statistics import stated_statistics
from tests.trainer.tiny import SCHEMA, config
from trainer.worker.devices import find_device


@pytest.mark.parametrize(
    ("backward", "sending", "exposed"),
    [
        ([3, 3, 3], [1, 1, 1], 1),  # the first stage's alone
        ([3, 3, 3], [0, 1, 1], 0),
        ([1, 1, 1], [3, 3, 3], 7),  # sent from 1 on, one after the other, until 10
        ([0, 5, 5, 0], [0, 2, 2, 0], 2),
        # Done at 1 and 2, arrived at 7 and 10; the third has a buffer at 7, not at 3, so the first is done at 17.
        ([10, 1, 1, 1], [1, 1, 3, 6], 5),
    ],
)
def test_exposed(backward: list[float], sending: list[float], exposed: float) -> None:
    assert exposed_seconds(backward, sending) == exposed


def model(tmp_path: Path, gpu: str = "h100", **changes: object) -> CostModel:
    return CostModel(config("nowhere", tmp_path, **changes), SCHEMA, stated_statistics(SCHEMA, 0.5), find_device(gpu))


def test_a_layout_that_kernels_cannot_take_is_refused_and_never_proposed(tmp_path: Path) -> None:
    many = {"model__moe__experts": 2048, "model__moe__hidden": 8, "parallel__precision": "bf16"}
    with pytest.raises(UsageError, match=r"parallel.expert_parallel=2 puts 1,024 experts on a rank"):
        cost = model(tmp_path, parallel__expert_parallel=2, parallel__workers=8, **many)
        make_plan(cost.config, cost, 8)
    cost = model(tmp_path, parallel__expert_parallel=4, parallel__workers=8, **many)
    assert make_plan(cost.config, cost, 8)["fits"]
    asked: list[int] = []
    cost.cost = lambda layout: asked.append(layout.expert_parallel) or CostModel.cost(cost, layout)  # type: ignore
    nearest_fit(cost, Layout(8, 4, 1, 1, False), cost.config)
    assert set(asked) == {4, 8}  # 1 and 2 would put more on a rank
    fp32 = many | {"parallel__precision": "fp32"}
    cost = model(tmp_path, parallel__expert_parallel=2, parallel__workers=8, **fp32)
    assert make_plan(cost.config, cost, 8)["fits"]


def test_too_many_rows_are_refused_and_slow_widths_said(tmp_path: Path) -> None:
    cost = model(tmp_path, parallel__precision="bf16", training__batch_size=10**8, model__moe__hidden=12)
    with pytest.raises(ValueError, match=r"numbers at once, .* raise training.accumulation, or use more ranks"):
        cost.refuse(Layout(1, 1, 1, 1, False))
    assert cost.slow(Layout(1, 1, 1, 1, False)) == [
        "model.moe.hidden=12 is not a multiple of 8, so a GPU computes experts one by one and waits for each: "
        "16 is faster"
    ]


def test_most_of_the_reduction_is_hidden_where_there_is_much_to_compute(tmp_path: Path) -> None:
    wide = {"model__dim": 2048, "model__layers": 12, "model__heads": 16, "model__moe__experts": 64}
    wide |= {"model__moe__hidden": 4096, "parallel__precision": "bf16", "model__text__heads": 16}
    shares = {}
    for world in (64, 1024):
        # 64 records a rank and micro-batch.
        cost = model(tmp_path, training__batch_size=2048 * world, **wide).cost(Layout(world, 8, 1, 1, False))
        took = sum(
            sent / {"link": 450e9, "network": 50e9}[cost.links[kind]]
            for kind, sent in cost.traffic.items()
            if kind.endswith("_reduce")
        )
        shares[world] = cost.seconds["reduce"] / took
        assert 0.1 < cost.mfu < 0.65 and cost.seconds["gather"] > 0
    assert max(shares.values()) < 0.15
