"""A run as one HTML page: what it learned from, how good it is, what that rests on, what it cost, where it is from."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from html import escape
from typing import Any

import fsspec

from data_shards import open_manifest
from data_shards.inspection.summary import summary
from launch.compare.tested import Kept, kept_of
from launch.datasets.page import labels, modalities
from launch.output.html import contents, html_page, paragraph, picture, section, table
from launch.report import figures
from launch.report.chosen import chosen
from launch.report.computed import Computed, compute
from launch.report.kept import STATUS, kept_by, of_folder, said
from launch.report.measured import (
    EXPERT_COLUMNS,
    METRIC_COLUMNS,
    PROMPT_COLUMNS,
    Row,
    calibration_rows,
    cost_rows,
    counts_words,
    expert_rows,
    intervals,
    metric_rows,
    prompt_rows,
)
from trainer.figures.evaluation import missing_figure
from trainer.metrics.main_metric import HIDDEN, by_rate, larger_is_better, primary_metric, task_curves
from trainer.run_folder import (
    CONFIG,
    MISSING_CURVE,
    PROMPT_ENTROPY,
    PROMPT_SITES,
    RECIPE,
    REQUIREMENTS,
    RESULT,
    ROUTING,
    TEMPERATURE,
    read_json,
)
from trainer.tracking.history import TrackedRun

BACKBONES = ("mope.host", "mope.image.source", "mope.text.source")
PACKAGES = ("torch", "deepspeed", "ray", "fleximoe")


def run_page(run_dir: str, sample: int) -> str:
    """The HTML text. Raises UsageError: there is no such run."""
    run = kept_by(run_dir)
    kept = kept_of(run)
    found = intervals(run, kept)
    main = _main(run)
    computed = compute(run_dir, sample)
    sections = [
        section("Data", *_data(run)),
        section("What it consists of", *chosen(read_json(run_dir, RESULT) or {})),
        section("Learning curves", picture(figures.curves(run, main), f"loss and validation while training{_by(run)}")),
        section(
            "Test metrics",
            paragraph(counts_words(run, found, kept)),
            table(METRIC_COLUMNS, metric_rows(run, found), ".4f"),
        ),
        section("Calibration", *_calibration(run, kept, run_dir)),
        section("What absent modalities cost", *_missing(run, run_dir, computed)),
        section("What answers rest on", *_reasons(computed)),
        section("Experts", *_experts(run)),
        section("Prompt experts", *_prompts(run)),
        section("Cost", table(("what", "number", "unit"), cost_rows(run, *_result(run, run_dir)), ",.4g")),
        section("Where it is from", *_lineage(run, run_dir)),
    ]
    head = [f"<h1>Run {escape(run.name)}</h1>", *_finding(run, main, found)]
    return html_page(f"Run {run.name}", [*head, contents(sections), *sections])


def _main(run: TrackedRun) -> str | None:
    for part in ("test", "val"):
        try:
            return primary_metric(part, dict(run.metrics))
        except ValueError:
            continue
    return None


def _by(run: TrackedRun) -> str:
    """By which metric the best step is the best."""
    metric = said(run.params, "training.early_stopping.metric")
    return f"; the best by {metric}" if metric and "best/step" in run.metrics else ""


def _finding(run: TrackedRun, main: str | None, found: Mapping[str, Any]) -> list[str]:
    state = STATUS.get(run.status, "not finished, as far as it has said")
    text = f"Made {datetime.now(UTC):%Y-%m-%d %H:%M} UTC. The run is {state}"
    if main is None or main not in run.metrics:
        return [paragraph(f"{text}; nothing of it has been measured.")]
    better = "more is better" if larger_is_better(main) else "less is better"
    own = found.get(main)
    between = f", 95 % {own.low:.4f} to {own.high:.4f}" if own else ""
    sentence = f"{text}; {main} is {run.metrics[main]:.4f}{between} ({better})."
    alarm = (
        "" if main.startswith("test/") else "It has no test metrics: it has not ended, or its data have no test part."
    )
    return [paragraph(sentence), paragraph(alarm, "alarm")]


def _data(run: TrackedRun) -> list[str]:
    places = {said(run.params, "data.url"): said(run.params, "data.split", "default")}
    if not said(run.params, "data.url"):
        names = {key.split(".")[2] for key in run.params if key.startswith("data.mixture.")}
        prefix = "data.mixture"
        places = {
            said(run.params, f"{prefix}.{name}.url"): said(run.params, f"{prefix}.{name}.split", "default")
            for name in sorted(names)
        }
    alone = len(places) == 1
    return [part for url, split in places.items() for part in _data_set(run, url, split, alone)]


def _data_set(run: TrackedRun, url: str, split: str, alone: bool) -> list[str]:
    trained = said(run.params, "dataset.digest", run.tags.get("dataset.digest", ""))
    try:
        facts = summary(open_manifest(url))
    except (ValueError, OSError) as error:
        return [paragraph(url), paragraph(f"The data cannot be looked at from here: {error}", "alarm")]
    parts = facts["splits"].get(split, {})
    told = f"{facts['name']}, split {split}: {facts['records']:,} records in all, {url}"
    other = alone and trained not in ("", facts["digest"])
    changed = (
        f"The data set there is another one or another version by now (digest {facts['digest'][:12]}) than the run "
        f"learned from ({trained[:12]}): what is shown of data is of that one."
    )
    return [
        paragraph(told),
        paragraph(f"digest {facts['digest']}", "quiet"),
        paragraph(changed, "alarm") if other else "",
        table(("part", "records", "samples"), [(name, own["records"], own["samples"]) for name, own in parts.items()]),
        *modalities(facts),
        *labels(split, parts),
    ]


def _calibration(run: TrackedRun, kept: Kept | None, run_dir: str) -> list[str]:
    temperatures = (of_folder(run, run_dir, TEMPERATURE) or {}).get("temperatures", {})
    rows = calibration_rows(run, kept.tasks if kept else [], temperatures)
    drawn = [picture(figure, about) for about, figure in figures.survival(kept)]
    note = "ece: mean gap between stated and found chances; brier: squared error of chances; less is better."
    return [
        paragraph(note, "quiet") if rows else "",
        table(("task", "ece", "brier", "temperature"), rows, ".4f"),
        picture(figures.reliability(kept), "how often came true what was stated, on the test part"),
        *drawn,
    ]


def _missing(run: TrackedRun, run_dir: str, computed: Computed) -> list[str]:
    """The curve that `evaluate --missing-curve` has left, else one of the sample."""
    curve, words = of_folder(run, run_dir, MISSING_CURVE), "Measured by evaluate --missing-curve on the whole part."
    if curve is None:
        curve, words = computed.sampled.curve if computed.sampled else None, computed.words
    if curve is None:
        nothing = "Nothing in the sample is labelled." if computed.sampled else ""
        return [paragraph(f"{words} {nothing}".strip(), "quiet")]
    rows = [row for task in task_curves(curve) for row in _curve_rows(task)]
    if run.name and not all(task["metric"] in task["whole"] for task in task_curves(curve)):
        return [paragraph(words, "quiet"), table(_CURVE, rows, ".4f")]
    figure = missing_figure({run.name: curve})
    about = "by share of modalities missing, without each one, and with time hidden"
    return [paragraph(words, "quiet"), picture(figure, about), table(_CURVE, rows, ".4f")]


_CURVE = ("metric", "hidden", "share", "mean", "smallest", "largest")


def _curve_rows(task: dict[str, Any]) -> list[Row]:
    metric = task["metric"]
    whole = task["whole"].get(metric)
    rows: list[Row] = [(metric, "nothing", "0%", whole, whole, whole)]
    for what, words in HIDDEN.items():
        rows += [(metric, words, f"{rate:.0%}", *values) for rate, *values in by_rate(task, what) if rate]
    for row in task["without"]:
        value = row["metrics"].get(metric)
        rows.append((metric, f"without {row['modality']}", "100%", value, value, value))
    return rows


def _reasons(computed: Computed) -> list[str]:
    own = computed.sampled
    if own is None:
        return [paragraph(computed.words, "quiet")]
    note = (
        "Each modality is hidden in turn, then each eighth of the observation window; a share is the part of all these "
        "changes of the answer that one of them makes, averaged over the samples that have the modality, and of time "
        "over those whose answer changed at all."
    )
    rows = [
        (task, name, share, samples)
        for task, shares in own.modalities.items()
        for name, (share, samples) in sorted(shares.items(), key=lambda item: -item[1][0])
    ]
    times = [(task, f"{place + 1} of {len(shares)}", share) for task, shares in own.times.items() for place, share in
             enumerate(shares)]  # fmt: skip
    return [
        paragraph(computed.words, "quiet"),
        paragraph(note),
        picture(figures.modality_shares(own.modalities), "modalities by their share"),
        table(("task", "modality", "mean share", "samples with it"), rows, ".3f"),
        picture(figures.time_shares(own.times), "when what matters happens: shares of eighths of the window"),
        table(("task", "eighth of the window", "mean share"), times, ".3f"),
    ]


def _experts(run: TrackedRun) -> list[str]:
    counts = run.json(ROUTING)
    rows = expert_rows(counts)
    note = (
        "Counted in the steps of the last line of the training log; a token makes a choice for each expert it goes to. "
        "Evenness: entropy of a modality's shares of experts; 1 is all alike, 0 a single expert."
    )
    return [
        paragraph(note if rows else "", "quiet"),
        picture(figures.routing(counts), "share of a modality's choices that each expert has"),
        table(EXPERT_COLUMNS, rows, ".3f"),
        picture(figures.experts_over_time(run), "use of experts while training"),
    ]


def _prompts(run: TrackedRun) -> list[str]:
    sites, entropy = run.json(PROMPT_SITES), run.json(PROMPT_ENTROPY)
    if not sites or not entropy:
        return []
    note = (
        "Mean weight of each prompt expert over the test part, at each place that is prompted. Entropy of a record's "
        "weights, the mean over records: 0 a single expert, 1 all alike."
    )
    return [
        paragraph(note, "quiet"),
        picture(figures.prompts(sites, entropy), "mean weight of each prompt expert"),
        table(PROMPT_COLUMNS, prompt_rows(sites, entropy), ".3f"),
    ]


def _result(run: TrackedRun, run_dir: str) -> tuple[dict[str, Any], int | None]:
    """What the run said at its end, and the bytes of the checkpoint that it names."""
    result = read_json(run_dir, RESULT) or {}
    if not result.get("checkpoint"):
        return result, None
    try:
        fs, path = fsspec.url_to_fs(result["checkpoint"])
        return result, int(fs.du(path))
    except (ValueError, OSError):
        return result, None


def _lineage(run: TrackedRun, run_dir: str) -> list[str]:
    result, tags = read_json(run_dir, RESULT) or {}, run.tags
    changes = " with changes" if tags.get("git.dirty") == "true" else ""
    rows = [
        ("folder", run_dir),
        ("data digest", said(run.params, "dataset.digest", tags.get("dataset.digest", ""))),
        ("job", said(run.params, "job")),
        (
            "seeds",
            ", ".join(f"{seed} ({of})" for of in ("training", "data") if (seed := said(run.params, f"{of}.seed"))),
        ),
        ("code", tags["git.commit"] + changes if "git.commit" in tags else ""),
        ("command", tags.get("command", "")),
        ("started", f"{datetime.fromtimestamp(run.started_ms / 1000, UTC):%Y-%m-%d %H:%M} UTC"),
        ("packages", _packages(run)),
        ("best checkpoint", result.get("checkpoint", "")),
        ("best step", f"{run.metrics['best/step']:.0f}{_by(run)}" if "best/step" in run.metrics else ""),
        ("MLflow run", run.id),
        *((f"backbone: {key}", said(run.params, key)) for key in BACKBONES),
        *_backbone(result.get("checkpoint")),
    ]
    recipe = run.artifact(RECIPE)
    text = recipe.read_text(encoding="utf-8") if recipe else ""
    if not text and (config := read_json(run_dir, CONFIG)) is not None:
        text = str(config)
    whole = f"<details><summary>the recipe</summary><pre>{escape(text)}</pre></details>" if text else ""
    return [table(("what", "which"), [row for row in rows if row[1]]), whole]


def _packages(run: TrackedRun) -> str:
    file = run.artifact(REQUIREMENTS)
    lines = file.read_text(encoding="utf-8").splitlines() if file else []
    return ", ".join(line for line in lines if line.split("==")[0] in PACKAGES or line.startswith("# Python"))


def _backbone(checkpoint: str | None) -> list[tuple[str, str]]:
    """What the model was built on, where that is another one's work."""
    if not checkpoint:
        return []
    from trainer.checkpoints.find import open_checkpoint

    try:
        meta = open_checkpoint(checkpoint).meta
    except (ValueError, OSError):
        return []
    rows = [("backbone", _told(meta["backbone"]))] if meta.get("backbone") else []
    asked = meta["config"].get("model", {}).get("encoders", {})
    trained = {name: _trained(asked.get(name, {})) for name in meta.get("encoders") or {}}
    made = {**(meta.get("encoders") or {}), **(meta.get("embedded") or {})}
    return rows + [(f"encoder of {name}", _told({**own, **trained.get(name, {})})) for name, own in made.items()]


def _trained(asked: Mapping[str, Any]) -> dict[str, Any]:
    """What of a pretrained encoder the run has trained, as its recipe has it."""
    how = {"none": "nothing", "lora": f"LoRA of rank {asked.get('rank')}", "all": "all weights"}
    return {"trained": how.get(str(asked.get("train")), asked.get("train"))}


def _told(facts: Mapping[str, Any]) -> str:
    """Facts in one line, those that say nothing left out."""
    kept = {key: ", ".join(map(str, own)) if isinstance(own, list) else own for key, own in facts.items()}
    return "; ".join(f"{key} {own:,}" if isinstance(own, int) else f"{key} {own}" for key, own in kept.items() if own)
