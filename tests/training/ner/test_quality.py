from __future__ import annotations

import pytest

from training.ner.quality import of_tags


def measured(due: list[str], found: list[str]) -> dict[str, float]:
    metrics = of_tags([t.split() for t in due], [t.split() for t in found], "made")
    assert {metric.split for metric in metrics} == {"made"}
    return {metric.name: metric.value for metric in metrics}


def test_an_entity_counts_when_kind_and_both_ends_are_right() -> None:
    due = ["B-PER I-PER O B-LOC", "B-ORG O O"]
    found = ["B-PER I-PER O B-PER", "B-ORG I-ORG O"]
    # One of three is right: the second has another kind, the third another end.
    assert measured(due, found) == pytest.approx(
        {"span F1": 100 / 3, "span precision": 100 / 3, "span recall": 100 / 3}
    )


def test_precision_and_recall() -> None:
    due = ["B-PER O B-LOC O", "B-ORG O"]
    found = ["B-PER O O B-LOC", "O O"]
    # The same span in another text is another entity.
    assert measured(due, found) == pytest.approx(
        {"span F1": 40, "span precision": 50, "span recall": 100 / 3}
    )


def test_where_there_is_nothing_to_find_or_nothing_is_found_the_figures_are_zero() -> None:
    zero = dict.fromkeys(("span F1", "span precision", "span recall"), 0.0)
    for due, found in (("O", "O"), ("O", "B-PER"), ("B-PER", "O")):
        assert measured([due], [found]) == zero
