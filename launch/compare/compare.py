"""The verb `compare`: a table of runs in the terminal, and a report that is one HTML file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data_shards.paths import absolute_path
from launch.errors import UsageError
from launch.output.tables import people, print_json_line, print_table
from trainer.config.paths import DATABASE, absolute_uri, database_uri
from trainer.tracking.history import find_runs

if TYPE_CHECKING:
    from launch.compare.comparison import Comparison
    from launch.compare.pairs import Pair


def compare_runs(
    wanted: Sequence[str], experiment: str | None, metric: str | None, html: str | None, uri: str | None
) -> None:
    """Compare runs; prints tables, then the same as one JSON line. Raises as `find_and_compare`."""
    report = None if html is None else absolute_path(html)
    comparison = find_and_compare(wanted, experiment, metric, uri)
    from launch.compare.comparison import table_rows

    _print(comparison)
    result = {
        "metric": comparison.metric,
        "comparable": comparison.comparable,
        "finding": comparison.finding,
        "variants": table_rows(comparison),
        "pairs": [
            {
                "first": pair.first.label,
                "second": pair.second.label,
                "difference": None if pair.records is None else vars(pair.records),
                "seeds_p": pair.seeds_p,
                "shared_seeds": pair.shared_seeds,
                "verdict": pair.verdict,
            }
            for pair in comparison.pairs
        ],
        "notes": comparison.notes,
        "html": None if report is None else str(report),
    }
    if report is not None:
        write_report(comparison, report)
    print_json_line(result)


def find_and_compare(
    wanted: Sequence[str], experiment: str | None = None, metric: str | None = None, uri: str | None = None
) -> Comparison:
    """The runs of these folders, ids or names, and those of an experiment, compared.

    Raises:
        UsageError: neither runs nor an experiment given. ValueError: a run that cannot be found or compared.
    """
    if not wanted and experiment is None:
        raise UsageError("name the runs to compare (folders, MLflow ids or names), or --experiment NAME")
    from launch.compare.comparison import compare

    return compare(find_runs(absolute_uri(uri) if uri else default_uri(), wanted, experiment), metric)


def write_report(comparison: Comparison, path: Path) -> None:
    """The comparison as one HTML file."""
    from launch.compare.report import page
    from launch.output.html import write_page

    write_page(page(comparison), path)


def default_uri() -> str | None:
    """MLFLOW_TRACKING_URI, else the database that runs started in this folder write to, if it is there."""
    if "MLFLOW_TRACKING_URI" in os.environ:
        return absolute_uri(os.environ["MLFLOW_TRACKING_URI"])
    database = Path.cwd() / DATABASE
    return database_uri(database) if database.exists() else None


def _print(comparison: Comparison) -> None:
    names = comparison.metrics[:2]
    rows = []
    for variant in comparison.variants:
        cells = []
        for name in names:
            middle, spread = variant.spread(name)
            cells.append(f"{middle:.4f}" + (f" ± {spread:.4f}" if spread is not None else ""))
        found = variant.interval(comparison.metric)
        cells.insert(1, f"{found.low:.4f} to {found.high:.4f}" if found else "")
        rows.append((variant.label, len(variant.runs), *cells))
    head = ("variant", "runs", names[0], "95 % over records", *names[1:])
    order = f"best {comparison.metric} first" if comparison.comparable else "which do not all compare, in no order"
    seeds = "; ± over runs of a variant" if any(len(variant.runs) > 1 for variant in comparison.variants) else ""
    print_table(f"{len(comparison.runs)} runs, {order}{seeds}", head, rows)
    if comparison.pairs:
        rows = [_pair_row(pair) for pair in comparison.pairs]
        head = ("pair", "difference, 95 % over records", "p over", "verdict")
        print_table(f"pairs, by {comparison.metric}", head, rows)
    people.print(comparison.finding, markup=False)
    for note in comparison.notes:
        people.print(note, markup=False)


def _pair_row(pair: Pair) -> tuple[str, ...]:
    """Two lines a cell, so that a pair fits into a narrow terminal."""
    names = f"{pair.first.label}\n- {pair.second.label}"
    seeds = "" if pair.seeds_p is None else f"seeds {pair.seeds_p:.3f} ({pair.shared_seeds})"
    found = pair.records
    if found is None:
        return (names, "", seeds, pair.verdict)
    return (
        names,
        f"{found.value:+.4f}\n{found.low:+.4f} to {found.high:+.4f}",
        f"records {found.p:.3f}\n{seeds}",
        pair.verdict,
    )
