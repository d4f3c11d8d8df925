from __future__ import annotations

import itertools
import os
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.entities import Chain, Span, WordNumbers, entity_spans, places

LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
FORBIDDEN = {(a, b) for a in LABELS for b in LABELS if b[0] == "I" and a[2:] != b[2:]}


def split(text: str) -> list[str]:
    return [text[start:end] for start, end in places(text)]


@pytest.mark.parametrize(
    ("text", "due"),
    [
        ("Ann saw Bob.", "Ann saw Bob ."),
        ("I don't know, it's Smith's.", "I do n't know , it 's Smith 's ."),
        ("You’re O’Brien", "You ’re O’Brien"),
        ("Mr. Smith of the U.S. left.", "Mr. Smith of the U.S. left ."),
        ("J. R. Ewing", "J. R. Ewing"),
        ("(well-known) co-author", "( well - known ) co-author"),
        ("$1,000.50 at 3:30 on 2001-09-11", "$ 1,000.50 at 3:30 on 2001-09-11"),
        ("see http://a.org/b?c=d.", "see http://a.org/b?c=d ."),
        ("mail ann@example.org, now!!!", "mail ann@example.org , now !!!"),
        ("AT&T... ok :)", "AT&T ... ok :)"),
        ("cafe\u0301 in Zu\u0308rich", "cafe\u0301 in Zu\u0308rich"),
        ("東京 und\nKöln\t–\u00a0ja", "東京 und Köln – ja"),
        ("", ""),
        (" \r\n\u2003", ""),
    ],
)
def test_words(text: str, due: str) -> None:
    assert split(text) == due.split()


@given(st.text())
def test_every_character_but_blanks_is_in_one_word(text: str) -> None:
    found = places(text)
    assert all(start < end for start, end in found)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(found))
    covered = [i for start, end in found for i in range(start, end)]
    assert [i for i, c in enumerate(text) if not c.isspace()] == covered


@given(st.lists(st.sampled_from(["Ann", "don't", "U.S.", "a@b.de", "(", ")", "...", "é", "-"])))
def test_how_many_blanks_there_are_does_not_matter(words: list[str]) -> None:
    assert split(" ".join(words)) == split("  \n ".join(words))


@pytest.mark.parametrize(
    "part",
    ["a", ".", "a.", "a-", "'", "n't", "@a", "www.", "www.!", "http://", "a@", "1,", ":(", "-=", "é", "<"],
)  # fmt: skip
def test_time_grows_with_the_text_and_not_with_its_square(part: str) -> None:
    start = time.process_time()
    places(part * (100_000 // len(part)))
    assert time.process_time() - start < 5


@pytest.mark.skipif("SEQSERVE_DATA" not in os.environ, reason="needs SEQSERVE_DATA")
def test_words_of_the_treebank_stay_whole() -> None:
    content = Path(os.environ["SEQSERVE_DATA"], "uner-ewt", "valid.conll").read_text("utf-8")
    sentences = [
        [line.split("\t")[0] for line in block.split("\n") if line]
        for block in content.split("\n\n")
        if block.strip()
    ]
    kept = [split(" ".join(words)) == words for words in sentences]
    assert sum(kept) / len(kept) > 0.97


def numbers(words: list[str], width: int = 4) -> tuple[list[int], list[list[int]]]:
    ids = {"<unk>": 0, "ann": 1, "Paris": 2, "UN": 3}
    found = WordNumbers(ids, 0, "abc", width)(words)
    assert {array.dtype for array in found.values()} == {np.dtype(np.int64)}
    return found["words"].tolist(), found["characters"].tolist()


def test_a_word_is_known_in_its_own_case_or_in_another() -> None:
    assert numbers(["ann", "Ann", "ANN", "paris", "PARIS", "UN", "un", "x"])[0] == [
        1, 1, 1, 2, 2, 3, 0, 0,
    ]  # fmt: skip


def test_characters_are_counted_from_two() -> None:
    assert numbers(["ab", "zc", "abcab"])[1] == [[2, 3, 0, 0], [1, 4, 0, 0], [2, 3, 2, 3]]


def test_of_a_long_word_both_ends_count() -> None:
    assert numbers(["abbbbbc"], 5)[1] == [[2, 3, 3, 3, 4]]
    assert numbers(["abbbbbc"], 4)[1] == [[2, 3, 3, 4]]


def chain(seed: int, length: int) -> tuple[Chain, np.ndarray, dict[tuple[int, ...], float]]:
    """A random chain, its filter after words that went before, and P(y | x) of every way to tag the words."""
    random = np.random.default_rng(seed)
    count = len(LABELS)
    factors = np.exp(random.normal(size=(count, count), scale=1.5))
    for a, b in FORBIDDEN:
        factors[LABELS.index(a), LABELS.index(b)] = 0
    emissions = np.exp(random.normal(size=(length, count), scale=1.5))
    start = random.dirichlet(np.ones(count))
    filtered, now = [], start
    for emission in emissions:
        now = now @ factors * emission
        now = now / now.sum()
        filtered.append(now)
    weights = {}
    for tags in itertools.product(range(count), repeat=length):
        weight = (start @ factors)[tags[0]] * emissions[0, tags[0]]
        for t in range(1, length):
            weight *= factors[tags[t - 1], tags[t]] * emissions[t, tags[t]]
        weights[tags] = weight
    total = sum(weights.values())
    found = Chain(LABELS, factors.tolist())
    return found, np.array(filtered), {tags: weight / total for tags, weight in weights.items()}


@pytest.mark.parametrize("length", [1, 2, 4])
@pytest.mark.parametrize("seed", range(8))
def test_tags_are_the_likeliest_of_all(seed: int, length: int) -> None:
    tagger, filtered, probabilities = chain(seed, length)
    found = tuple(tagger.tags(filtered))
    assert probabilities[found] == pytest.approx(max(probabilities.values()))


@pytest.mark.parametrize("length", [1, 2, 4])
@pytest.mark.parametrize("seed", range(8))
def test_a_score_is_the_probability_of_exactly_this_entity(seed: int, length: int) -> None:
    tagger, filtered, probabilities = chain(seed, length)
    best = [LABELS[tag] for tag in tagger.tags(filtered)]
    entities = tagger.entities(filtered)
    assert [entity[:3] for entity in entities] == entity_spans(best)
    for entity in entities:
        words = slice(entity.first, entity.end)
        due = 0.0
        for tags, probability in probabilities.items():
            names = [LABELS[tag] for tag in tags]
            same = names[words] == best[words]
            goes_on = names[entity.end : entity.end + 1] == [f"I-{entity.kind}"]
            due += probability * (same and not goes_on)
        assert entity.score == pytest.approx(due)
        assert entity.continues == best[entity.first].startswith("I-")
        assert not entity.continues or entity.first == 0


def log_likelihood(start: np.ndarray, factors: np.ndarray, emissions: np.ndarray) -> float:
    """Log of the summed weight of all ways to tag the words."""
    total, now = 0.0, start
    for emission in emissions:
        now = now @ factors * emission
        total += float(np.log(now.sum()))
        now = now / now.sum()
    return total


@pytest.mark.parametrize("length", [32, 33, 34, 35, 67, 300])
def test_a_long_text_is_decoded_as_well(length: int) -> None:
    random = np.random.default_rng(length)
    allowed = [[(a, b) not in FORBIDDEN for b in LABELS] for a in LABELS]
    factors = np.where(allowed, np.exp(random.normal(size=(5, 5))), 0)
    emissions, start = np.exp(random.normal(size=(length, 5), scale=2)), np.eye(5)[0]
    filtered, now = np.empty((length, 5)), start
    with np.errstate(divide="ignore"):
        best, log_factors = np.log(start), np.log(factors)
    for t, emission in enumerate(emissions):
        now = now @ factors * emission
        filtered[t] = now = now / now.sum()
        best = (best[:, None] + log_factors).max(axis=0) + np.log(emission)
    tagger = Chain(LABELS, factors.tolist())
    tags = tagger.tags(filtered)
    weight = log_factors[[0, *tags[:-1]], tags].sum() + np.log(emissions[range(length), tags]).sum()
    assert weight == pytest.approx(best.max())
    found = tagger.entities(filtered)
    assert len(found) > length / 10
    total = log_likelihood(start, factors, emissions)
    for kind, first, end, score, _ in found:
        # What is left of the weight where exactly these words are the entity.
        exactly = emissions.copy()
        exactly[first:end] *= np.eye(5)[tags[first:end]]
        exactly[end : end + 1, LABELS.index(f"I-{kind}")] = 0
        due = np.exp(log_likelihood(start, factors, exactly) - total)
        assert score == pytest.approx(due)


def test_forbidden_tags_are_never_found() -> None:
    factors = [[0.0 if (a, b) in FORBIDDEN else 1.0 for b in LABELS] for a in LABELS]
    # Each word for itself would be O, I-PER, which IOB2 forbids.
    filtered = np.array([[0.6, 0.4, 0.0, 0.0, 0.0], [0.1, 0.0, 0.9, 0.0, 0.0]])
    assert Chain(LABELS, factors).entities(filtered)[0][:3] == Span("PER", 0, 2)


@pytest.mark.parametrize(
    ("tags", "due"),
    [
        ("O O", []),
        ("B-PER I-PER O", [("PER", 0, 2)]),
        ("B-PER B-PER", [("PER", 0, 1), ("PER", 1, 2)]),
        ("B-PER I-LOC", [("PER", 0, 1), ("LOC", 1, 2)]),
        ("I-PER I-PER B-LOC", [("PER", 0, 2), ("LOC", 2, 3)]),
        ("O I-PER", [("PER", 1, 2)]),
        ("", []),
    ],
)
def test_spans_as_conlleval_reads_them(tags: str, due: list[tuple[str, int, int]]) -> None:
    assert entity_spans(tags.split()) == due
