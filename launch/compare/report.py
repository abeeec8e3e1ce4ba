"""A comparison of runs as one HTML page: the finding, tables with intervals, figures."""

from __future__ import annotations

from datetime import UTC, datetime
from html import escape

from launch.compare import figures as figures
from launch.compare.comparison import Comparison
from launch.output.html import contents, html_page, paragraph, picture, section, table
from trainer.tracking.history import TrackedRun


def page(comparison: Comparison) -> str:
    """The HTML text."""
    metric = comparison.metric
    title = f"{len(comparison.runs)} runs by {metric}" + ("" if comparison.comparable else ", which do not all compare")
    head = [
        f"<h1>{escape(title)}</h1>",
        paragraph(f"Made {datetime.now(UTC):%Y-%m-%d %H:%M} UTC. {comparison.finding}"),
        *(paragraph(note, "alarm") for note in comparison.notes),
    ]
    sections = [
        section(
            "Which is better" if comparison.comparable else "What was measured",
            _metrics(comparison),
            picture(figures.forest(comparison), f"{metric} by variant"),
        ),
        section("Whether the difference means anything", _pairs(comparison)),
        section("What differs", _parameters(comparison)),
        section(
            "Learning curves",
            picture(figures.curves(comparison), "training loss and validation by records seen"),
        ),
        section(
            "Calibration",
            picture(
                figures.calibration(comparison),
                _of_first(comparison, "reliability on the test part, all runs and tasks of a variant together"),
            ),
        ),
        section("Which expert serves which modality", *_routing(comparison)),
        section("What absent modalities cost", *_missing(comparison)),
        section("The runs", _runs(comparison)),
    ]
    return html_page(title, [*head, contents(sections), *sections])


def _of_first(comparison: Comparison, what: str) -> str:
    """A caption that says so where not all variants are drawn."""
    most = figures.MOST_CALIBRATED
    return what if len(comparison.variants) <= most else f"{what}, of the first {most} variants"


def _metrics(comparison: Comparison) -> str:
    rows = []
    for variant in comparison.variants:
        cells = []
        for name in comparison.metrics:
            middle, spread = variant.spread(name)
            found = variant.interval(name)
            text = f"{middle:.4f}" + (f" ± {spread:.4f}" if spread is not None else "")
            cells.append(text + (f" ({found.low:.3f} to {found.high:.3f})" if found else ""))
        rows.append((variant.label, len(variant.runs), *cells))
    several = any(len(variant.runs) > 1 for variant in comparison.variants)
    over = " ± standard deviation over the runs of a variant" if several else ""
    note = f"<p>Mean{over} (95 % interval of the mean over draws of the test records).</p>"
    return note + table(("variant", "runs", *comparison.metrics), rows)


def _pairs(comparison: Comparison) -> str:
    if not comparison.pairs:
        return ""
    rows = []
    for pair in comparison.pairs:
        found = pair.records
        between = f"{found.low:+.4f} to {found.high:+.4f}" if found else ""
        seeds = "" if pair.seeds_p is None else f"{pair.seeds_p:.3f} ({pair.shared_seeds} seeds)"
        value = f"{found.value:+.4f}" if found else ""
        p = f"{found.p:.3f}" if found else ""
        rows.append((pair.first.label, pair.second.label, value, between, p, seeds, pair.verdict))
    note = (
        f"<p>Difference in {escape(comparison.metric)}, first minus second: on the same draws of test records "
        f"(interval, p) and by a paired t-test over shared seeds. Pairs tested: {len(rows)}; p is not corrected "
        "for that.</p>"
    )
    return note + table(
        ("first", "second", "difference", "95 % over records", "p, records", "p, seeds", "verdict"), rows
    )


def _parameters(comparison: Comparison) -> str:
    """Only what is not the same everywhere; runs in columns."""
    if len(comparison.runs) < 2:
        return ""
    if not comparison.differing:
        return "<p>Nothing: all parameters that can matter are equal.</p>"
    order = sorted(comparison.runs, key=lambda run: run.started_ms)
    names = [run.name for run in order]
    return table(("parameter", *names), [(key, *row) for key, row in comparison.differing.items()])


def _routing(comparison: Comparison) -> list[str]:
    """A map per variant, for the first few."""
    found = [(variant.label, figures.routing(variant)) for variant in comparison.variants[:6]]
    return [
        picture(figure, f"{label}: share of a modality's tokens that each expert serves") for label, figure in found
    ]


def _missing(comparison: Comparison) -> list[str]:
    figure, rows = figures.missing(comparison)
    if not rows:
        return []
    losses = table(
        ("run", "everything present", "half missing", "lost"), [tuple(row.values()) for row in rows], digits=".4f"
    )
    if figure is None:
        return [losses]
    return [losses, picture(figure, "by share of modalities missing at test time, and without each one")]


def _runs(comparison: Comparison) -> str:
    rows = [_run_row(run) for run in comparison.runs]
    head = ("name", "seed", "status", "commit", "data", "command", "MLflow id")
    return table(head, rows)


def _run_row(run: TrackedRun) -> tuple[str, ...]:
    tags = run.tags
    commit = tags.get("git.commit", "")[:10] + (" with changes" if tags.get("git.dirty") == "true" else "")
    data = f"{run.params.get('dataset.name', '')} {run.params.get('dataset.digest', '')[:12]}"
    return (run.name, run.params.get("training.seed", ""), run.status, commit, data, tags.get("command", ""), run.id)
