"""Pictures of the results: throughput over sessions, latency over load, an overload second by second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

Parts = dict[str, Any]

_SIZE, _DPI = (8, 3.6), 90


def draw(parts: Parts, directory: Path, device: str) -> None:
    """Write `<device>-<what>.png` for what was measured."""
    drawers = {"http": _throughput, "latency": _latency, "overload": _overload}
    for name, drawer in drawers.items():
        if name in parts:
            figure, axes = plt.subplots(1, 2, figsize=_SIZE, layout="constrained")
            drawer(parts[name], axes)
            figure.savefig(directory / f"{device}-{name}.png", dpi=_DPI)
            plt.close(figure)


def _throughput(rows: list[dict[str, Any]], axes: Any) -> None:
    singles = [r for r in rows if r["way"] == "HTTP" and r["steps"] == 1]
    names = list(dict.fromkeys(row["model"] for row in singles))
    for name in names:
        mine = [row for row in singles if row["model"] == name]
        counts = [row["sessions"] for row in mine]
        axes[0].plot(counts, [row["steps_s"] for row in mine], marker="o", label=name)
        axes[1].plot(counts, [row["server_cpu_us"] for row in mine], marker="o", label=name)
    for axis, label in zip(axes, ("steps/s", "µs of CPU a step"), strict=True):
        axis.set(xscale="log", yscale="log", xlabel="sessions, one step a request", ylabel=label)
        axis.grid(alpha=0.3)
    axes[1].legend()


def _latency(rows: list[dict[str, Any]], axes: Any) -> None:
    names = list(dict.fromkeys(row["model"] for row in rows))
    for axis, name in zip(axes, names, strict=False):
        for arrivals, style in (("Poisson", "-"), ("even", ":")):
            mine = [r for r in rows if r["model"] == name and r["arrivals"] == arrivals]
            loads = [100 * row["share"] for row in mine]
            for quantile in ("p50", "p99"):
                axis.plot(
                    loads,
                    [row[f"{quantile}_ms"] for row in mine],
                    style,
                    marker="o",
                    label=f"{quantile}, {arrivals}",
                )
        axis.set(yscale="log", xlabel="% of saturation", ylabel="ms", title=name)
        axis.grid(alpha=0.3)
    axes[0].legend()


def _overload(rows: list[dict[str, Any]], axes: Any) -> None:
    kinds = ("peak", "due", "good")
    for place, row in enumerate(rows):
        label = f"steps a request: {row['steps']}"
        at = [number + 0.4 * place for number in range(len(kinds))]
        axes[0].bar(at, [row[f"{kind}_steps_s"] for kind in kinds], width=0.4, label=label)
        axes[1].plot([size / 2**20 for size in row["resident_bytes"]], label=label)
    axes[0].set(ylabel="steps/s", xticks=range(len(kinds)), xticklabels=("peak", "due", "accepted"))
    axes[1].set(xlabel="s", ylabel="resident memory, MiB", ylim=(0, None))
    axes[1].legend()
