"""How every picture looks: one colour for each architecture, no display needed, the same file from the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

Array = npt.NDArray[Any]

ARCHITECTURES = ("rnn", "gru", "lstm", "transformer")
NAMES = {"rnn": "RNN", "gru": "GRU", "lstm": "LSTM", "transformer": "Transformer"}
# Okabe, Ito: told apart by the colour-blind too.
COLOURS = {"rnn": "#d55e00", "gru": "#e69f00", "lstm": "#0072b2", "transformer": "#009e73"}
GREY = "#777777"
MARKERS = {"rnn": "o", "gru": "^", "lstm": "s", "transformer": "D"}
DPI = 110
_SOURCE = "Source"


def figure(
    columns: int = 1, rows: int = 1, *, size: tuple[float, float]
) -> tuple[Figure, list[Axes]]:
    """An empty picture.

    Args:
        columns: Panels beside each other.
        rows: Panels above each other.
        size: Inches, width by height.

    Returns:
        The picture and its panels, row by row.
    """
    new = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(new)
    panels = new.subplots(rows, columns, squeeze=False)
    for panel in panels.flat:
        panel.grid(alpha=0.3, linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    return new, list(panels.flat)


def save(drawn: Figure, path: Path, source: str) -> Path:
    """Write a PNG file that names what it was drawn from; no date and no version in it."""
    drawn.savefig(path, dpi=DPI, metadata={"Software": None, _SOURCE: source})
    return path


def source(path: Path) -> str:
    """What a PNG file was drawn from, as `save` was told."""
    with Image.open(path) as image:
        return str(image.info.get(_SOURCE, ""))
