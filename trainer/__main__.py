"""`torchrun --nproc-per-node N -m trainer RECIPE [section.key=value ...]`: the same training without Ray.

Rank 0 prints the result as the last line on stdout, one JSON object. Exit codes: 0 done, 1 the run failed, 2 a wrong
recipe, or another process has the run of this name; torchrun turns any of the last two into its own 1.
"""

from __future__ import annotations

import argparse
import atexit
import os
import sys
from pathlib import Path
from typing import NoReturn

from data_shards.errors import LeaseHeldError, PathError
from data_shards.lease.record import Parent
from parallel import init_distributed
from trainer.config.errors import RecipeError
from trainer.config.paths import absolute_paths
from trainer.config.recipe import known_recipes, load_recipe
from trainer.config.run_config import RunConfig, check_parallel
from trainer.worker.collectives import broadcast_json
from trainer.worker.console import json_line, show_logs
from trainer.worker.context import Context, SingleContext, StopOnSignal, TorchrunContext
from trainer.worker.provenance import source_tags


def main() -> int:
    """Parse, train, print; returns the exit code."""
    rank = int(os.environ.get("RANK", "0"))
    arguments = _parser().parse_args()
    show_logs(rank, arguments.debug)
    try:
        with StopOnSignal() as stop:
            context = TorchrunContext(stop) if "RANK" in os.environ else SingleContext(stop=stop)
            config = _config(arguments.recipe, arguments.overrides, context)
            from trainer.jobs.job import run  # heavy, and not needed to refuse a wrong recipe

            under = Parent.from_json(arguments.under) if arguments.under else None
            result = run(config, context, source_tags() if rank == 0 else {}, under)
    except Exception as error:
        if arguments.debug:
            raise
        wrong = isinstance(error, RecipeError | PathError | LeaseHeldError)
        if rank == 0 or not wrong:  # every rank finds the same mistake in a recipe
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if wrong else 1
    if rank == 0:
        print(json_line(result), flush=True)
    return 128 + stop.received if result["status"] == "stopped" and stop.received else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="torchrun --nproc-per-node N -m trainer", description=__doc__.split("\n")[0])
    parser.add_argument("recipe", help=f"a YAML file, or one of {', '.join(known_recipes())}")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to the recipe")
    parser.add_argument("--under", help=argparse.SUPPRESS)  # the lease of the sweep that this is a trial of, as JSON
    parser.add_argument("--debug", action="store_true", help="show stack traces")
    return parser


def _config(recipe: str, overrides: list[str], context: Context) -> RunConfig:
    """The recipe for as many workers as were started: the command line has said it, so the recipe need not."""
    config = load_recipe(recipe, [*overrides, f"parallel.workers={context.world}"])
    check_parallel(config)
    if context.world > 1:
        # The default name holds the time of day, and each rank has read its own clock: all take rank 0's.
        init_distributed(context.device, config.parallel.timeout_s)
        config.name = broadcast_json(config.name)
    return absolute_paths(config, Path.cwd())


def end(code: int) -> NoReturn:
    """End this process with an exit code: what is registered for its end is done, the interpreter is not taken down.

    A thread of gloo may still hold the tensor of the last exchange. If it lets go of it while the interpreter ends, it
    is cut off in the middle, C++ aborts the process, and torchrun calls a finished run a failed one. Nothing joins
    these threads: DeepSpeed keeps the process groups.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    end(main())
