"""The verbs `doctor` and `ui`: is everything usable and closed, and where does one look at runs?"""

from __future__ import annotations

from typing import Annotated

import typer

from launch.verbs.options import Debug

app = typer.Typer(rich_markup_mode=None)


@app.command()
def doctor(
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="HOST:PORT of a Ray, or URL of its dashboard (a job looks around inside); default: RAY_ADDRESS, else "
            "RAY_API_SERVER_ADDRESS, else this machine alone.",
        ),
    ] = None,
    storage: Annotated[
        str | None, typer.Option(metavar="URL", help="training.storage of your runs: tried from every node.")
    ] = None,
    mlflow: Annotated[
        str | None, typer.Option(metavar="URI", help="tracking.uri of your runs; default: MLFLOW_TRACKING_URI.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
    debug: Debug = False,
) -> None:
    """Look whether this machine, or a cluster with all its nodes, can train, and whether strangers are kept out.

    Every line says ok, warn or fail, and what to do. Leaves with 1 if anything fails.

    \b
    python -m launch doctor
    python -m launch doctor --cluster http://127.0.0.1:8265 --storage s3://bucket/runs --mlflow http://head:5000
    """
    from launch.doctor.examine import examine_all, wanted
    from launch.doctor.findings import as_json as to_json
    from launch.doctor.findings import show, worst
    from launch.output.tables import print_json_line

    findings = list(examine_all(cluster, wanted(storage, mlflow)))
    if not as_json:
        show(findings)
    print_json_line(to_json(findings))
    if worst(findings) == "fail":
        raise typer.Exit(1)


@app.command()
def ui(
    serve: Annotated[
        bool, typer.Option("--serve", help="Take runs from a cluster: listen on this machine's network address.")
    ] = False,
    store: Annotated[str, typer.Option(help="Folder with mlflow.db and mlartifacts/; made if it is not there.")] = ".",
    host: Annotated[str | None, typer.Option(help="Address to listen on; default: loopback, or the network's.")] = None,
    port: Annotated[int, typer.Option(min=1, max=65535)] = 5000,
    name: Annotated[
        list[str] | None,
        typer.Option(metavar="HOSTNAME", help="Another name under which it is asked for; repeatable."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Show runs in MLflow, or with --serve be the MLflow server of a cluster. Ctrl-C ends it.

    It has no login: whoever reaches it can read and delete runs. Without --serve only this machine does.

    \b
    python -m launch ui
    python -m launch ui --serve --store /shared/mlflow
    python -m launch submit digits tracking.uri=http://HEAD:5000 ...
    """
    from launch.mlflow_ui import Server
    from launch.output.tables import people, print_json_line

    server = Server(store, serve, host, port, name or [])

    def ready() -> None:
        use = f"; runs go there with tracking.uri={server.url}" if serve else ""
        people.print(f"MLflow shows {server.store} at {server.url}{use}", markup=False)
        print_json_line({"url": server.url, "store": str(server.store), "hosts": server.allowed_hosts()})

    raise typer.Exit(server.run(ready))
