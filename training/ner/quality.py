"""Quality of tagged texts: exact spans of the right kind, as conlleval counts (Tjong Kim Sang, De Meulder 2003)."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

from service.contract import Metric
from service.entities import entity_spans

NAME = "span F1"


def metrics(
    due: Iterable[Iterable[Hashable]], found: Iterable[Iterable[Hashable]], split: str
) -> tuple[Metric, ...]:
    """F1, precision and recall in percent of the entities of some texts.

    Args:
        due: What is an entity, for each text.
        found: What was found, for each text.
        split: Name of the texts.
    """
    right = wanted = given = 0
    for is_due, is_found in zip(due, found, strict=True):
        due_set, found_set = set(is_due), set(is_found)
        right += len(due_set & found_set)
        wanted += len(due_set)
        given += len(found_set)
    precision = right / given if given else 0.0
    recall = right / wanted if wanted else 0.0
    f1 = 2 * right / (wanted + given) if wanted + given else 0.0
    values = {NAME: f1, "span precision": precision, "span recall": recall}
    return tuple(Metric(name=name, split=split, value=100 * v) for name, v in values.items())


def of_tags(
    due: Iterable[Sequence[str]], found: Iterable[Sequence[str]], split: str
) -> tuple[Metric, ...]:
    """See `metrics`, from tags in IOB2 of the words of each text."""
    return metrics(map(entity_spans, due), map(entity_spans, found), split)
