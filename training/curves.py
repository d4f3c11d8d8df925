"""The training curve of a model card: loss on the way, and quality at every validation."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from training import logs, pictures
from training.logs import Series
from training.pictures import COLOURS

TRAIN_LOSS, VALID_LOSS = "train/loss", "valid/loss"
_VALID = "valid/"
# Points of the smoothed loss: each is the mean of its share of the run.
_POINTS = 100


def draw(directory: Path) -> bytes:
    """A PNG picture of what a run logged; empty if it logged nothing."""
    scalars = logs.scalars(directory)
    if TRAIN_LOSS not in scalars:
        return b""
    quality = [name for name in scalars if name.startswith(_VALID) and name != VALID_LOSS]
    figure, panels = pictures.figure(2 if quality else 1, size=(12 if quality else 5, 3.4))
    _losses(panels[0], scalars)
    for name, series in ((name, scalars[name]) for name in quality):
        steps, values = zip(*series, strict=True)
        panels[1].plot(steps, values, "o-", markersize=3.5, label=name.removeprefix(_VALID))
    if quality:
        panels[1].set(title="Validation", xlabel="steps")
        panels[1].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    file = io.BytesIO()
    figure.savefig(file, dpi=pictures.DPI, metadata={"Software": None})
    return file.getvalue()


def _losses(panel: Axes, scalars: dict[str, Series]) -> None:
    steps, values = _smoothed(scalars[TRAIN_LOSS])
    panel.plot(steps, values, color=COLOURS["lstm"], label="training")
    if VALID_LOSS in scalars:
        steps, values = np.array(scalars[VALID_LOSS]).T
        panel.plot(steps, values, "o-", color=COLOURS["rnn"], markersize=3.5, label="validation")
    panel.set(title="Loss", xlabel="steps")
    panel.legend(frameon=False, fontsize=8)


def _smoothed(series: Series) -> tuple[pictures.Array, pictures.Array]:
    """Means over equal parts of a run."""
    parts = np.array_split(np.array(series), min(_POINTS, len(series)))
    steps, values = np.array([part.mean(axis=0) for part in parts]).T
    return steps, values
