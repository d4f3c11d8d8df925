from __future__ import annotations

import numpy as np
import pytest

from training.experiments import sentences
from training.experiments.sentences import NOUNS, VERBS, Grammar, Sentence

DISTANCES = (0, *range(3, 41))


def made(count: int, grammar: Grammar = Grammar(), seed: int = 0) -> list[tuple[int, Sentence]]:  # noqa: B008
    random = np.random.default_rng(seed)
    distances = random.choice(DISTANCES, count)
    return [(int(d), sentences.sentence(int(d), grammar, random)) for d in distances]


def subjects_by_parsing(words: tuple[str, ...]) -> list[tuple[int, bool]]:
    """Place and number of each verb, found by a stack: a subject is pushed, a finite verb takes the last one."""
    start = words.index(",") + 1 if "," in words else 0
    waiting = [words[start + 1] in NOUNS[1]]
    found = []
    for i in range(start + 2, len(words)):
        if words[i - 2 : i] == ("that", "the"):
            waiting.append(words[i] in NOUNS[1])
        elif words[i] in VERBS[0] + VERBS[1]:
            assert (words[i] in VERBS[1]) == waiting[-1]
            found.append((i, waiting.pop()))
    assert len(waiting) == 1
    return [*found, (len(words), waiting[0])]


def test_every_verb_is_that_of_its_subject() -> None:
    for _, sentence in made(500):
        assert list(sentence.verbs) == subjects_by_parsing(sentence.words)


def test_subject_and_verb_are_so_far_apart() -> None:
    for distance, sentence in made(500):
        start = sentence.words.index(",") + 1 if "," in sentence.words else 0
        assert sentence.words[start] == "the"
        assert len(sentence.words) - (start + 2) == distance


@pytest.mark.parametrize("distance", [1, 2])
def test_a_distance_that_no_phrase_has_is_refused(distance: int) -> None:
    with pytest.raises(ValueError, match=f"no phrase has {distance} words"):
        sentences.sentence(distance, Grammar(), np.random.default_rng(0))


def test_neither_the_last_noun_nor_the_last_verb_says_the_number() -> None:
    random = np.random.default_rng(0)
    both = [sentences.sentence(20, Grammar(), random) for _ in range(3000)]
    plural = np.array([each.verbs[-1][1] for each in both])
    nouns = [[w for w in each.words if w in NOUNS[0] + NOUNS[1]] for each in both]
    last_noun = np.array([words[-1] in NOUNS[1] for words in nouns])
    # Four standard deviations of a fair coin.
    allowed = 4 * 0.5 / np.sqrt(len(both))
    assert abs(plural.mean() - 0.5) < allowed
    assert abs((last_noun == plural).mean() - 0.5) < allowed
    before = [(each.verbs[-2][1], each.verbs[-1][1]) for each in both if len(each.verbs) > 1]
    same = np.mean([inner == own for inner, own in before])
    assert abs(same - 0.5) < 4 * 0.5 / np.sqrt(len(before))


def test_clauses_stand_no_deeper_than_the_grammar_says() -> None:
    none = made(200, Grammar(depth=0))
    assert all(len(sentence.verbs) == 1 for _, sentence in none)
    assert any(len(sentence.verbs) > 3 for _, sentence in made(200, Grammar(depth=2)))


def test_a_batch_says_at_each_word_what_the_next_one_has_to_be() -> None:
    both = [sentence for _, sentence in made(20)]
    ids, due = sentences.batch(both)
    for row, labels, sentence in zip(ids, due, both, strict=True):
        count = len(sentence.words)
        assert tuple(sentences.VOCABULARY[i] for i in row[:count]) == sentence.words
        assert not row[count:].any()
        expected = {place - 1: int(plural) for place, plural in sentence.verbs}
        assert {i: int(label) for i, label in enumerate(labels) if label >= 0} == expected
