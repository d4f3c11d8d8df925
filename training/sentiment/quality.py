"""Measures of labels, and the thresholds that labels which exclude nothing are read off with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from service.contract import Metric

Floats = npt.NDArray[np.floating]
Flags = npt.NDArray[np.bool_]


def f1(predicted: Flags, due: Flags) -> npt.NDArray[np.float64]:
    """F1 of each label, `2 tp / (2 tp + fp + fn)`, 0 where a label is neither due nor predicted; both (N, labels)."""
    hits = (predicted & due).sum(axis=0)
    total = predicted.sum(axis=0) + due.sum(axis=0)
    values: npt.NDArray[np.float64] = 2 * hits / np.maximum(total, 1)
    return values


def best_thresholds(scores: Floats, due: Flags) -> npt.NDArray[np.float64]:
    """Score of each label from which on saying it gives the largest F1; scores and due are (N, labels).

    It lies halfway between the last score that says the label and the next one below.
    """
    return np.array([_best_threshold(s, d) for s, d in zip(scores.T, due.T, strict=True)])


def _best_threshold(scores: Floats, due: Flags) -> float:
    order = np.argsort(-scores, kind="stable")
    falling = scores[order].astype(np.float64)
    said = np.arange(1, len(falling) + 1)
    values = 2 * np.cumsum(due[order]) / (said + due.sum())
    # Texts of one score are said together.
    apart = np.append(falling[:-1] > falling[1:], True)
    best = int(np.argmax(np.where(apart, values, -1)))
    below = falling[best + 1] if best + 1 < len(falling) else falling[best]
    return float((falling[best] + below) / 2)


def accuracy(scores: Floats, due: Flags) -> float:
    """Share of texts whose best label is due, among those labels that are due somewhere; both (N, labels)."""
    asked = due.any(axis=0)
    best = np.where(asked, scores, -np.inf).argmax(axis=1)
    return float(due[np.arange(len(due)), best].mean())


def metrics(
    name: str, labels: Sequence[str], scores: Floats, due: Flags, thresholds: Floats | None
) -> tuple[Metric, ...]:
    """Quality on the validation part of a set.

    Args:
        name: Of the set.
        labels: Name of each column.
        scores: What a model or floor says, (N, labels).
        due: What holds.
        thresholds: Score from which on each label is said; None where each text has one label, the best.

    Returns:
        Macro F1 over the labels and the F1 of each; or accuracy where each text has one label.
    """
    split = f"{name} valid"
    if thresholds is None:
        return (Metric(name="accuracy", split=split, value=accuracy(scores, due)),)
    values = f1(scores >= thresholds, due)
    return (
        Metric(name="macro F1", split=split, value=float(values.mean())),
        *(
            Metric(name=f"F1 {label}", split=split, value=float(value))
            for label, value in zip(labels, values, strict=True)
        ),
    )
