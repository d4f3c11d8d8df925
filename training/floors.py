"""What a model has to beat: the quality of methods without a neural network, kept in a file beside the code.

`seqtrain floors` computes them, which may take minutes, and writes the file; `fit`, `export` and `evaluate` only
read it. A floor is a `Metric` whose value is the figure of the method that `floor_name` names. It holds for the very
data that it was computed from, known by their digests, and for metrics of its own name and split.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from service.contract import Dataset, Metric

FILE = Path(__file__).with_name("floors.json")
# Starts of the names of metrics of which less is better.
LOSSES = ("perplexity", "nats", "MSE", "MAE", "pinball")


class Floors(msgspec.Struct, frozen=True):
    """The floors of a run.

    Attributes:
        datasets: What they were computed from; a model that learnt from more is held against them too.
        metrics: One or more for each metric of the task.
    """

    datasets: tuple[Dataset, ...]
    metrics: tuple[Metric, ...]


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Floors in the file.

    Attributes:
        data: SHA-256 of each file of each data set they were computed from.
        metrics: The floors.
    """

    data: dict[str, dict[str, str]]
    metrics: tuple[Metric, ...]


def save(floors: Floors, path: Path = FILE) -> None:
    """Put floors into the file, in place of older ones of the same data, metric, split and method."""
    data = _data(floors.datasets)
    new = {_key(metric): metric for metric in floors.metrics}
    entries = read(path)
    old = {_key(metric): metric for e in entries if e.data == data for metric in e.metrics}
    merged = {**old, **new}
    kept = [e for e in entries if e.data != data]
    kept.append(Entry(data, tuple(merged[key] for key in sorted(merged))))
    kept.sort(key=lambda entry: msgspec.json.encode(entry.data, order="deterministic"))
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(msgspec.json.format(msgspec.json.encode(kept)) + b"\n")
    os.replace(temporary, path)


def read(path: Path = FILE) -> list[Entry]:
    """All floors of the file; none if there is no file."""
    if not path.exists():
        return []
    return msgspec.json.decode(path.read_bytes(), type=list[Entry])


def best(name: str, split: str, datasets: Iterable[Dataset], path: Path = FILE) -> Metric | None:
    """The hardest floor of a metric on a split, computed from some of these data; None if none is known."""
    data = _data(datasets)
    known = [
        metric
        for entry in read(path)
        for metric in entry.metrics
        if entry.data.items() <= data.items() and (metric.name, metric.split) == (name, split)
    ]
    hardest = min if name.startswith(LOSSES) else max
    return hardest(known, key=lambda metric: metric.value, default=None)


def beside(
    metrics: Iterable[Metric], datasets: Iterable[Dataset], path: Path = FILE
) -> tuple[Metric, ...]:
    """Metrics of a model that learnt from these data, with the hardest floor of each that has none yet."""
    datasets = tuple(datasets)
    return tuple(
        metric if metric.floor is not None else _with_floor(metric, datasets, path)
        for metric in metrics
    )


def in_words(floor: Metric | None) -> str:
    """A floor for people."""
    return "unknown" if floor is None else f"{floor.value:.4g} ({floor.floor_name})"


def _with_floor(metric: Metric, datasets: tuple[Dataset, ...], path: Path) -> Metric:
    floor = best(metric.name, metric.split, datasets, path)
    if floor is None:
        return metric
    return msgspec.structs.replace(metric, floor=floor.value, floor_name=floor.floor_name)


def _data(datasets: Iterable[Dataset]) -> dict[str, dict[str, str]]:
    return {dataset.name: dataset.sha256 for dataset in datasets}


def _key(metric: Metric) -> tuple[str, str, str]:
    return metric.name, metric.split, metric.floor_name
