"""A sweep as one HTML page: settings against scores, and how good a trial is for what it has seen."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from html import escape

from launch.output.html import contents, html_page, paragraph, picture, section, table
from launch.report import figures
from launch.report.sweep import SweepKept


def sweep_page(sweep: SweepKept) -> str:
    """The HTML text."""
    variants = sweep.variants()
    sections = [
        section("Variants", *_variants(sweep)),
        section("Best by budget", *_budget(sweep)),
        section("Trials", _trials(sweep)),
    ]
    states = Counter(trial.state for trial in sweep.trials)
    told = ", ".join(f"{count} {state}" for state, count in states.items())
    direction = "more" if sweep.larger else "less"
    text = f"Made {datetime.now(UTC):%Y-%m-%d %H:%M} UTC. {len(sweep.trials)} trials: {told}. "
    text += f"Ranked by the best {sweep.metric} of each trial, of which {direction} is better."
    none = "" if variants else "No trial has finished yet, so no variant has a score."
    head = [f"<h1>Sweep {escape(sweep.name)}</h1>", paragraph(text), paragraph(none, "alarm")]
    return html_page(f"Sweep {sweep.name}", [*head, contents(sections), *sections])


def _variants(sweep: SweepKept) -> list[str]:
    variants = sweep.variants()
    figure = figures.parallel_coordinates(
        sweep.keys, [(*values, score) for values, score, _, _ in variants], sweep.metric, 0
    )
    rows = [(*values, score, f"{ended} of {trials}") for values, score, ended, trials in variants]
    note = "The thick line is the first variant of the table; trials of one variant differ in their seeds."
    return [
        paragraph(note if figure else "", "quiet"),
        picture(figure, f"variants: settings, and mean of the best {sweep.metric} over seeds"),
        table((*sweep.keys, f"best {sweep.metric}, mean", "finished"), rows),
    ]


def _budget(sweep: SweepKept) -> list[str]:
    found = sweep.by_budget()
    if not found:
        return []
    last = max(seen for trial in sweep.trials for seen, _ in trial.points)
    line = [(seen, value) for seen, value, _ in found] + [(last, found[-1][1])]
    figure = figures.by_budget(sweep.so_far(), line, sweep.metric)
    note = "Of all trials, those that end early too: the best value that any has reached by so many samples."
    return [
        paragraph(note, "quiet"),
        picture(figure, f"best {sweep.metric} by samples seen"),
        table(("samples seen", f"best {sweep.metric}", "trial"), [(int(seen), *rest) for seen, *rest in found]),
    ]


def _trials(sweep: SweepKept) -> str:
    names = sorted({name for trial in sweep.trials for name in trial.test if not name.endswith("/records")})
    rows = [
        (
            trial.name,
            *(trial.settings.get(key) for key in sweep.keys),
            trial.seed,
            trial.state,
            sweep.best_of(trial.points) if trial.points else None,
            *(trial.test.get(name) for name in names),
        )
        for trial in sweep.trials
    ]
    return table(("trial", *sweep.keys, "seed", "state", f"best {sweep.metric}", *names), rows)
