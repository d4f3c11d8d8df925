"""The page of results: what was measured, from the files that measuring wrote; no figure is typed in.

Exported models bring their metrics and floors (`provenance` of config.json), experiments their numbers (JSON beside
the pictures). Of a model that is measured and not shipped, config.json alone is kept, beside the experiments.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from service.contract import CONFIG_FILE, Metric, ModelConfig, decode_config
from training.experiments import budget
from training.experiments.catalogue import EXPERIMENTS
from training.experiments.experiment import Experiment, numbers_file, picture_file, read
from training.pictures import ARCHITECTURES, NAMES
from training.targets import TARGETS, Target, better_or_equal

PAGE, RESULTS, UNSHIPPED = "results.md", "results", "unshipped"
_WIDTH = 118


def write(exported: Path, docs: Path) -> Path:
    """Write the page.

    Args:
        exported: Where the models are.
        docs: Where the page goes; the experiments' files are in `RESULTS` below it.

    Returns:
        Path of the page.
    """
    path = docs / PAGE
    path.write_text(page(exported, docs))
    return path


def keep(unshipped: Path, docs: Path) -> None:
    """Keep config.json, and with it the metrics, of every model of a directory that is not to be shipped."""
    kept = docs / RESULTS / UNSHIPPED
    for path in unshipped.glob(f"*/*/{CONFIG_FILE}"):
        content = path.read_bytes()
        kept.mkdir(parents=True, exist_ok=True)
        (kept / f"{decode_config(content).name}.json").write_bytes(content)


def page(exported: Path, docs: Path) -> str:
    """The page as Markdown."""
    shipped = [
        decode_config(path.read_bytes()) for path in sorted(exported.glob(f"*/*/{CONFIG_FILE}"))
    ]
    names = {model.name for model in shipped}
    kept = [
        decode_config(path.read_bytes())
        for path in sorted((docs / RESULTS / UNSHIPPED).glob("*.json"))
        if path.stem not in names
    ]
    models = shipped + kept
    parts = [
        "# Results",
        "Written by `seqtrain results` from the metrics of the exported models and the numbers of the experiments. "
        "A floor is the quality of a method without a neural network.",
        "## Quality of the exported models",
        _quality(models),
        *_unshipped(kept),
        *_missing(models),
        *_variants(shipped),
        "## The matrix of tasks and architectures",
        *_matrix(docs / RESULTS),
        *(part for each in EXPERIMENTS.values() for part in _experiment(each, docs / RESULTS)),
    ]
    return "\n\n".join(_laid_out(part) for part in parts) + "\n"


def _quality(models: list[ModelConfig]) -> str:
    rows = [
        "| task | model | metric | split | value | floor | reach | aim | |",
        "| --- | --- | --- | --- | ---: | --- | ---: | ---: | --- |",
    ]
    for model in models:
        metrics = [m for m in model.provenance.metrics if m.floor is not None or _target(m)]
        rows += [_row(model, metric) for metric in metrics]
    return "\n".join(rows)


def _unshipped(kept: list[ModelConfig]) -> Iterator[str]:
    if kept:
        yield f"Measured on their exported files and not shipped: {', '.join(m.name for m in kept)}."


def _row(model: ModelConfig, metric: Metric) -> str:
    task, target = str(type(model.task).__struct_config__.tag), _target(metric)
    goals = (f"{target.reach:g}", f"{target.aim:g}") if target else ("", "")
    verdicts = [target.verdict(metric.value)] if target else []
    if metric.floor is not None and not better_or_equal(metric.name, metric.value, metric.floor):
        verdicts.append("worse than the floor")
    cells = (
        *(task, model.name, metric.name, metric.split, f"{metric.value:.4g}", _floor(metric)),
        *(*goals, ", ".join(verdicts)),
    )
    return f"| {' | '.join(cells)} |"


def _floor(metric: Metric) -> str:
    if metric.floor is None:
        return "not known"
    return f"{metric.floor:.4g} ({metric.floor_name})"


def _target(metric: Metric) -> Target | None:
    return next((target for target in TARGETS if target.matches(metric)), None)


def _missing(models: list[ModelConfig]) -> Iterator[str]:
    metrics = [metric for model in models for metric in model.provenance.metrics]
    missing = [t.title for t in TARGETS if not any(t.matches(metric) for metric in metrics)]
    if missing:
        yield f"Goals for which no exported model has been measured: {'; '.join(missing)}."


def _variants(shipped: list[ModelConfig]) -> Iterator[str]:
    """What cheaper arithmetic costs and gains, from what each export measured."""
    pairs = [(model, variant) for model in shipped for variant in model.variants]
    if not pairs:
        return
    yield "## Variants in cheaper arithmetic"
    yield (
        "The same weights in another file beside model.onnx, chosen by `SEQSERVE_VARIANT`. Drift: mean absolute "
        "difference from the exact graph's output over a long session, and over its last tenth, each graph with the "
        "state it has computed itself. Faster: processor time of a step, exact over variant, one thread, by sessions "
        "in a batch."
    )
    rows = [
        "| model | variant | metric | exact | variant | drift | at the end | steps | faster | measured on |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | --- | --- |",
    ]
    for model, variant in pairs:
        drift = max(variant.drift, key=lambda part: part.mean)
        faster = ", ".join(f"{part.ratio:.2f} at {part.batch_size}" for part in variant.speed_up)
        places = {part.processor for part in variant.speed_up}
        for exact, found in zip(model.provenance.metrics, variant.metrics, strict=True):
            cells = (
                *(model.name, variant.name, f"{exact.name}, {exact.split}"),
                *(f"{exact.value:.5g}", f"{found.value:.5g}"),
                *(f"{drift.mean:.2g} ({drift.output})", f"{drift.late:.2g}", f"{drift.steps:,}"),
                *(faster or "not measured", ", ".join(sorted(places)) or "–"),
            )
            rows.append(f"| {' | '.join(cells)} |")
    yield "\n".join(rows)


def _matrix(results: Path) -> Iterator[str]:
    experiment = budget.EXPERIMENT
    if not numbers_file(experiment, results).exists():
        yield _unmeasured(experiment)
        return
    _, settings, findings = read(experiment, results)
    yield (
        "Best value on the validation data over the run of each cell, as logged in training; a dash where there is no "
        "run. [How it went](#architectures-over-training) shows the budgets."
    )
    rows = [
        f"| task | measure | {' | '.join(NAMES[name] for name in ARCHITECTURES)} |",
        f"| --- | --- |{' ---: |' * len(ARCHITECTURES)}",
    ]
    for task, row in zip(settings.tasks, findings.rows, strict=True):
        found = {curve.architecture: f"{budget.best(task, curve):.4g}" for curve in row.curves}
        cells = " | ".join(found.get(name, "–") for name in ARCHITECTURES)
        rows.append(f"| {task.title} | {task.measure} | {cells} |")
    yield "\n".join(rows)


def _experiment(experiment: Experiment[Any, Any], results: Path) -> Iterator[str]:
    yield f"## {experiment.title}"
    if not numbers_file(experiment, results).exists():
        yield _unmeasured(experiment)
        return
    result, settings, findings = read(experiment, results)
    picture = picture_file(experiment, results).name
    yield f"![{experiment.title}]({RESULTS}/{picture})"
    yield from experiment.describe(settings, findings).split("\n\n")
    versions = ", ".join(f"{name} {result.versions[name]}" for name in ("torch", "onnxruntime"))
    numbers = numbers_file(experiment, results).name
    yield (
        f"`seqtrain experiment {experiment.name}`: {result.cpu_s:,.0f} s of one thread of {result.cpu}, {versions}; "
        f"[numbers]({RESULTS}/{numbers})."
    )


def _unmeasured(experiment: Experiment[Any, Any]) -> str:
    return f"Not measured yet; run `seqtrain experiment {experiment.name}`."


def _laid_out(part: str) -> str:
    """A paragraph in lines; tables, lists, headings and pictures stay as they are."""
    if part.startswith(("|", "- ", "#", "!")):
        return part
    return textwrap.fill(part, _WIDTH, break_long_words=False, break_on_hyphens=False)
