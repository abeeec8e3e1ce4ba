"""All verbs as one command; whatever goes wrong becomes one sentence and an exit code.

Exit codes: 0 done, 1 the run failed, 2 wrong usage or a wrong recipe, 128 + n stopped by signal n after a checkpoint.
"""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from launch.errors import exit_code, one_sentence
from launch.verbs import baseline, checkpoint, cluster, data, jobs, machine, plan, predict, runs, sweep, train

HELP = """Train multimodal mixture-of-experts models on records with missing modalities and irregular times.

Pack data once, look at it, see what simple models reach, train a recipe, evaluate what came out:

\b
    python -m launch pack digits --out data/digits
    python -m launch inspect data/digits
    python -m launch baseline data/digits
    python -m launch train digits
    python -m launch evaluate runs/NAME --drop image

Installed, the same is called `fleximoe`: `fleximoe init FOLDER` drafts a mapping and a recipe from your tables, and
`fleximoe --install-completion` teaches the shell its verbs.

Tables and log lines go to stderr. The last line on stdout is one JSON object, for scripts; `inspect` prints
its tables there, and with --json the object.
"""

app = typer.Typer(
    help=HELP,
    no_args_is_help=True,
    rich_markup_mode=None,
    # A shell completes commands, and `python -m launch` is none.
    add_completion=Path(sys.argv[0]).stem == "fleximoe",
    pretty_exceptions_enable=False,
)
# In the order in which --help shows them.
for verbs in (data, baseline, train, predict, runs, sweep, plan, jobs, machine):
    app.add_typer(verbs.app)
app.add_typer(cluster.app, name="cluster")
app.add_typer(checkpoint.app, name="checkpoint")


def main() -> None:
    """Run a verb and leave with its exit code; errors become one sentence unless --debug is given."""
    debug = "--debug" in sys.argv
    from trainer.worker.console import show_logs

    show_logs(debug=debug)
    try:
        app()
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            raise
        prefix = "" if exit_code(error) > 128 else "error: "  # stopped on request
        print(f"{prefix}{one_sentence(error)}", file=sys.stderr)
        sys.exit(exit_code(error))
