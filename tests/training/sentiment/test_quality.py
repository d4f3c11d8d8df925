from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.sentiment import quality


def test_f1_of_a_table_counted_by_hand() -> None:
    due = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]], bool)
    said = np.array([[1, 1, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0]], bool)
    # First label: 1 hit, 1 miss, 1 too many. Second: 1, 1, 1. Third: nothing due, nothing said.
    assert quality.f1(said, due) == pytest.approx([0.5, 0.5, 0.0])
    assert quality.f1(due, due) == pytest.approx([1.0, 1.0, 0.0])


@given(
    st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=25).filter(
        lambda rows: any(due for _, due in rows)
    )
)
def test_no_threshold_is_better_than_the_best(rows: list[tuple[int, bool]]) -> None:
    scores = np.array([[score / 10] for score, _ in rows])
    due = np.array([[flag] for _, flag in rows])
    best = quality.best_thresholds(scores, due)
    reached = quality.f1(scores >= best, due)[0]
    candidates = np.linspace(-0.05, 1.05, 111)
    assert reached == pytest.approx(max(quality.f1(scores >= c, due)[0] for c in candidates))


def test_a_threshold_lies_between_the_scores_that_it_parts() -> None:
    scores, due = np.array([[0.9], [0.6], [0.2]]), np.array([[True], [True], [False]])
    assert quality.best_thresholds(scores, due) == pytest.approx([0.4])


def test_accuracy_compares_only_labels_that_occur() -> None:
    due = np.array([[1, 0, 0], [0, 1, 0]], bool)
    scores = np.array([[0.3, 0.1, 0.9], [0.4, 0.2, 0.9]])
    assert quality.accuracy(scores, due) == 0.5


def test_several_labels_are_measured_by_f1_and_single_ones_by_accuracy() -> None:
    scores = np.array([[0.9, 0.1], [0.6, 0.8]])
    single, several = np.array([[1, 0], [0, 1]], bool), np.array([[1, 0], [1, 1]], bool)
    half = np.array([0.5, 0.5])
    names = [m.name for m in quality.metrics("set", ("a", "b"), scores, several, half)]
    assert names == ["macro F1", "F1 a", "F1 b"]
    (metric,) = quality.metrics("set", ("a", "b"), scores, single, None)
    assert (metric.name, metric.split, metric.value) == ("accuracy", "set valid", 1.0)
