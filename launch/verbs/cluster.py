"""The verb `cluster check`: is a cluster file right, and does a recipe fit on it? Nothing is started or contacted."""

from __future__ import annotations

from typing import Annotated

import typer

from launch.verbs.options import Debug

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Check cluster files before they cost money.")


@app.callback()
def group() -> None:
    """Check cluster files before they cost money."""


@app.command("check")
def check(
    file: Annotated[str, typer.Argument(help="Cluster file: ray up, KubeRay (RayCluster, RayJob) or a Slurm script.")],
    recipe: Annotated[str | None, typer.Argument(help="Recipe that is to run there.")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[SECTION.KEY=VALUE]...")] = None,
    debug: Debug = False,
) -> None:
    """Hold a cluster file to Ray's schema (or KubeRay's fields) and to this project's rules. Leaves with 2 if broken.

    \b
    python -m launch cluster check ray_cluster.yaml
    python -m launch cluster check deploy/kuberay_job.yaml digits parallel.workers=16 parallel.expert_parallel=8
    """
    from launch.cluster_files.lints import find_problems
    from launch.cluster_files.read import read_cluster_file
    from launch.output.tables import people, print_json_line
    from trainer.config.recipe import load_recipe
    from trainer.config.run_config import check_parallel

    described = read_cluster_file(file)
    config = load_recipe(recipe, overrides or []) if recipe else None
    if config is not None:
        check_parallel(config)
    problems = find_problems(described, config)
    groups = ", ".join(f"up to {item.most} {item.name} of {item.gpus} GPUs" for item in described.groups)
    for problem in problems:
        people.print(f"{file}: {problem}", markup=False)
    people.print(
        f"{file}: {described.kind}, {groups or 'no workers'}: {'refused' if problems else 'fine'}", markup=False
    )
    print_json_line({"file": file, "kind": described.kind, "problems": problems})
    if problems:
        raise typer.Exit(2)
