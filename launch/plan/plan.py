"""The verb `plan`: does a run fit, how long is a step, what does it send. Nothing runs and no accelerator is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_shards import open_data
from launch.errors import UsageError
from launch.output.tables import people, print_json_line, print_table
from launch.plan.cost import CostModel
from launch.plan.layouts import MOST_GPUS, make_plan
from launch.plan.replicated import plan_replicated, show_replicated
from launch.plan.statistics import data_statistics
from trainer.config.paths import absolute_paths
from trainer.config.recipe import load_recipe
from trainer.models.encoders.own.embedded import with_embedded
from trainer.models.job_type import job_type
from trainer.worker.devices import find_device, measured_device


def plan_recipe(
    recipe: str, overrides: Sequence[str], gpus: int | None, gpu: str, schema: str | None, presence: float
) -> None:
    """Print the plan of a recipe; the last line is one JSON object."""
    config = absolute_paths(load_recipe(recipe, overrides), Path.cwd())
    if config.evaluates:
        raise UsageError(f"recipe {recipe} has job: evaluate; plan knows the costs of training")
    try:
        device = measured_device(config.parallel.threads_per_worker) if gpu == "cpu" else find_device(gpu)
    except ValueError as error:
        raise UsageError(f"--gpu: {error}, cpu") from None
    described, statistics, source = data_statistics(config, schema, presence)
    head = {"recipe": recipe, "gpu": device.name, "data": source}
    count = gpus or config.parallel.workers
    job = job_type(config.job)
    parts: Mapping[str, int] = {}
    if schema is None:
        manifest = open_data(config.data)
        parts = manifest.splits[config.data.split]
        config = with_embedded(config, described, manifest.embedded)
    else:
        config = config.model_copy(update={"unnamed": []})  # a preset has nothing to choose by
    config = job.sized(config, described, statistics, parts)
    if job.spreads_experts:
        result = head | make_plan(config, CostModel(config, described, statistics, device), count)
        _show(result)
    else:
        result = head | plan_replicated(job, config, described, statistics, device, count)
        show_replicated(result)
    print_json_line(result)


def _show(result: dict[str, Any]) -> None:
    sizes = [(name.replace("_", " "), value / 2**30) for name, value in result["bytes"].items()]
    print_table("memory of a rank at its fullest moment", ("what", "GiB"), sizes)
    traffic = [
        (kind.replace("_", " "), value / 2**20, result["links"][kind])
        for kind, value in result["traffic_bytes"].items()
    ]
    print_table("sent by a rank in a step", ("what", "MiB", "over"), traffic)
    times = [(name, 1000 * value) for name, value in result["seconds"].items()]
    print_table("predicted time of a step", ("what", "ms"), [*times, ("step", 1000 * result["step_s"])])
    counts = result["parameters"]
    people.print(
        f"{counts['total']:,} parameters ({counts['active']:,} active a token), {result['tokens']:,.0f} tokens and "
        f"{result['flops'] / 1e12:.3g} TFLOP a step, {result['tokens_per_second']:,.0f} tokens/s, "
        f"MFU {result['mfu']:.0%}"
    )
    for line in result["layout"]:
        people.print(line)
    if result["note"]:
        people.print(result["note"])
    for sentence in result["slow"]:
        people.print(sentence)
    if result["records_per_micro_batch"] < 1:
        people.print("fewer records than ranks in a micro-batch: some ranks have nothing to do")
    people.print(_verdict(result))
    people.print(f"modelled, not counted: {', '.join(result['modelled'])}; data: {result['data']}")


def _verdict(result: dict[str, Any]) -> str:
    room = f"{result['bytes']['total'] / 2**30:.3g} of {result['capacity_bytes'] / 2**30:.3g} GiB"
    place = f"{result['gpus']} x {result['gpu']}"
    if result["fits"]:
        return f"fits on {place}: {room}"
    nearest = result["nearest"]
    if nearest is None:
        return f"does not fit on {place} ({room}), nor on any number of them up to {MOST_GPUS:,}"
    words = {
        "parallel.workers": nearest["world"],
        "parallel.expert_parallel": nearest["expert_parallel"],
        "parallel.zero_stage": nearest["zero_stage"],
        "training.accumulation": nearest["accumulation"],
        "training.activation_checkpointing": str(nearest["activation_checkpointing"]).lower(),
    }
    return f"does not fit on {place} ({room}); nearest that does: {' '.join(f'{k}={v}' for k, v in words.items())}"
