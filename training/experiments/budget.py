"""What each architecture makes of its training: quality on the validation data against what was read.

Nothing is trained here. The runs of the matrix (`training/configs/<task>_<architecture>.toml`) log as they train; this
reads what there is and says what is missing.
"""

from __future__ import annotations

import math
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from training import logs, pictures, runs
from training.config import Record, TrainedRun
from training.experiments.experiment import Experiment
from training.pictures import ARCHITECTURES, COLOURS, MARKERS, NAMES

_CONFIGS = Path(__file__).parents[1] / "configs"


class Task(Record, frozen=True, kw_only=True):
    """A row of the matrix.

    Attributes:
        name: How its configurations begin.
        title: For people.
        scalar: What the runs log at each validation.
        measure: Its name for people.
        maximise: Whether more is better.
        unit: What a batch is counted in.
        windowed: Whether each row of a batch is a window of `bptt` units.
    """

    name: str
    title: str
    scalar: str
    measure: str
    unit: str
    maximise: bool = False
    windowed: bool = False


class Settings(Record, frozen=True, kw_only=True):
    """How the experiment is run.

    Attributes:
        tasks: Rows of the matrix.
        runs: Where the runs live.
    """

    tasks: tuple[Task, ...] = (
        Task(
            name="next_word",
            title="Next word, WikiText-2",
            scalar="valid/perplexity",
            measure="perplexity",
            unit="words",
            windowed=True,
        ),
        Task(
            name="next_character",
            title="Next character, Shakespeare",
            scalar="valid/nats per character",
            measure="nats per character",
            unit="characters",
            windowed=True,
        ),
        Task(
            name="sentiment",
            title="Sentiment, GoEmotions",
            scalar="valid/macro F1 goemotions-sentiment valid",
            measure="macro F1",
            maximise=True,
            unit="texts",
        ),
        Task(
            name="ner",
            title="Named entities, UNER-EWT",
            scalar="valid/span F1",
            measure="span F1",
            maximise=True,
            unit="words",
        ),
        Task(
            name="forecast",
            title="Forecast, ETTh1",
            scalar="valid/mse",
            measure="MSE",
            unit="windows",
        ),
    )
    runs: str = "runs"


class Curve(Record, frozen=True, kw_only=True):
    """One run.

    Attributes:
        architecture: Which.
        run: Its name.
        read: Units read by each validation.
        values: What it found.
        processor_minutes: What the whole run took; None where the run did not log it.
    """

    architecture: str
    run: str
    read: tuple[int, ...]
    values: tuple[float, ...]
    processor_minutes: float | None = None


class Row(Record, frozen=True, kw_only=True):
    """The runs of one task, and the architectures that have none."""

    task: str
    curves: tuple[Curve, ...]
    missing: tuple[str, ...]


class Findings(Record, frozen=True, kw_only=True):
    """What came out."""

    rows: tuple[Row, ...]


def measure(settings: Settings) -> Findings:
    """Read the logs."""
    rows = []
    for task in settings.tasks:
        found = {name: _curve(task, name, Path(settings.runs)) for name in ARCHITECTURES}
        rows.append(
            Row(
                task=task.name,
                curves=tuple(curve for curve in found.values() if curve is not None),
                missing=tuple(name for name, curve in found.items() if curve is None),
            )
        )
    return Findings(rows=tuple(rows))


def _curve(task: Task, architecture: str, directory: Path) -> Curve | None:
    run = runs.load(_CONFIGS / f"{task.name}_{architecture}.toml")
    assert isinstance(run, TrainedRun)
    scalars = logs.scalars(directory / run.name / str(run.version))
    series = scalars.get(task.scalar, ())
    if not series:
        return None
    minutes = scalars.get(logs.PROCESSOR_MINUTES)
    rows = run.training.batch_size * (run.training.bptt if task.windowed else 1)
    return Curve(
        architecture=architecture,
        run=run.name,
        read=tuple(step * rows for step, _ in series),
        values=tuple(float(f"{value:.6g}") for _, value in series),
        processor_minutes=round(minutes[-1][1], 1) if minutes else None,
    )


def best(task: Task, curve: Curve) -> float:
    """Best value of a run."""
    return max(curve.values) if task.maximise else min(curve.values)


def draw(settings: Settings, findings: Findings) -> Figure:
    """One panel for each task that has a run."""
    drawn = [pair for pair in zip(settings.tasks, findings.rows, strict=True) if pair[1].curves]
    columns = min(3, max(1, len(drawn)))
    rows = max(1, math.ceil(len(drawn) / columns))
    figure, panels = pictures.figure(columns, rows, size=(4.2 * columns, 3.6 * rows))
    for panel, (task, row) in zip(panels, drawn, strict=False):
        _panel(panel, task, row)
    for panel in panels[len(drawn) :]:
        panel.set_visible(False)
    return figure


def _panel(panel: Axes, task: Task, row: Row) -> None:
    for curve in row.curves:
        panel.plot(
            curve.read,
            curve.values,
            color=COLOURS[curve.architecture],
            marker=MARKERS[curve.architecture],
            markersize=3.5,
            label=f"{NAMES[curve.architecture]}: {best(task, curve):.4g}",
        )
    panel.set(title=task.title, xlabel=f"{task.unit} read", ylabel=task.measure)
    panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    # Room for the legend.
    panel.margins(y=0.25)
    panel.legend(frameon=False, fontsize=8, ncols=1 + (len(row.curves) > 2))


def describe(settings: Settings, findings: Findings) -> str:
    """What the picture shows, and what it lacks."""
    lines = [
        "Quality on the validation data over training, one panel for each task with a run; the best value of each "
        "run stands beside its name. Minutes are those of one thread, where the run logged them.",
    ]
    items = []
    for task, row in zip(settings.tasks, findings.rows, strict=True):
        parts = []
        limit = min((curve.read[-1] for curve in row.curves), default=0)
        if any(curve.read[-1] > limit for curve in row.curves):
            parts.append(
                f"within the {limit:,} {task.unit} that all have read {_ranked(task, row, limit)}"
            )
        if row.curves:
            parts.append(f"over whole runs {_ranked(task, row)}")
        if row.missing:
            parts.append("no run of " + ", ".join(NAMES[name] for name in row.missing))
        items.append(f"- {task.title}: {'; '.join(parts)}.")
    return "\n\n".join([*lines, "\n".join(items)])


def _ranked(task: Task, row: Row, limit: int | None = None) -> str:
    """The best value of each run up to an amount read, the best run first."""
    found = []
    for curve in row.curves:
        shown = [
            v for r, v in zip(curve.read, curve.values, strict=True) if limit is None or r <= limit
        ]
        if shown:
            amount = "" if limit else f" ({_amount(task, curve)})"
            value = max(shown) if task.maximise else min(shown)
            found.append((value, f"{NAMES[curve.architecture]} {value:.4g}{amount}"))
    return ", ".join(text for _, text in sorted(found, reverse=task.maximise))


def _amount(task: Task, curve: Curve) -> str:
    """What a run was given."""
    read = f"{curve.read[-1]:,} {task.unit}"
    minutes = curve.processor_minutes
    return read if minutes is None else f"{read}, {minutes:.3g} min"


EXPERIMENT = Experiment(
    name="budget",
    title="Architectures over training",
    settings=Settings(),
    findings=Findings,
    measure=measure,
    draw=draw,
    describe=describe,
)
