"""Made sentences whose verbs must agree in number with subjects that other words stand between.

    near the houses , the cat that the dogs beside the old king chase and ...  was | were

Every noun is singular or plural by a fair coin of its own. A clause may have a subject of its own, whose verb comes
before that of the sentence ("the dogs ... chase"), so subjects wait for their verbs in a stack and the number of the
last noun or the last verb says nothing about the next verb. No other word shows number.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from training.config import Record

NOUNS = (
    ("bird", "boy", "cat", "dog", "doctor", "farmer", "girl", "horse", "house", "king"),
    ("birds", "boys", "cats", "dogs", "doctors", "farmers", "girls", "horses", "houses", "kings"),
)
# The verb of a clause, in agreement with its subject, and the verb of the sentence.
VERBS = (
    ("chases", "finds", "hears", "likes", "meets", "sees"),
    ("chase", "find", "hear", "like", "meet", "see"),
)
LABELS = ("was", "were")
_ADJECTIVES = ("big", "old", "quiet", "red", "small", "young")
_PREPOSITIONS = ("behind", "beside", "near", "under", "with")
_PAST = ("chased", "found", "heard", "liked", "met", "saw")
_OTHERS = ("the", "that", ",")
VOCABULARY = (
    *("", *NOUNS[0], *NOUNS[1], *VERBS[0], *VERBS[1]),
    *(*_ADJECTIVES, *_PREPOSITIONS, *_PAST, *_OTHERS),
)
_IDS = {word: i for i, word in enumerate(VOCABULARY)}

# Words of the shortest and longest phrase, and of a clause around what stands between its subject and its verb.
SHORTEST, LONGEST = 3, 5
_CLAUSE = 4


class Grammar(Record, frozen=True, kw_only=True):
    """How sentences are made.

    Attributes:
        opening: Share of sentences with a phrase before the subject, so that its place varies.
        clause: Share of the phrases, where one fits, that are a clause with a subject and verb of its own.
        depth: How many clauses may stand inside each other.
    """

    opening: float = 0.5
    clause: float = 0.5
    depth: int = 2


class Sentence(msgspec.Struct, frozen=True):
    """A sentence up to its verb.

    Attributes:
        words: All words before the verb.
        verbs: Place of each verb, the sentence's own last, and whether its subject is plural.
    """

    words: tuple[str, ...]
    verbs: tuple[tuple[int, bool], ...]


def sentence(distance: int, grammar: Grammar, random: np.random.Generator) -> Sentence:
    """Make a sentence with so many words between its subject and its verb.

    Raises:
        ValueError: Nothing is that short: 1 or 2 words.
    """
    if 0 < distance < SHORTEST:
        raise ValueError(f"no phrase has {distance} words")
    writer = _Writer(grammar, random)
    if random.random() < grammar.opening:
        writer.phrase(SHORTEST + int(random.integers(2)), prepositional=True)
        writer.words.append(",")
    writer.words.append("the")
    plural = writer.noun()
    writer.between(distance, depth=0)
    writer.verbs.append((len(writer.words), plural))
    return Sentence(tuple(writer.words), tuple(writer.verbs))


class _Writer:
    def __init__(self, grammar: Grammar, random: np.random.Generator) -> None:
        self.grammar = grammar
        self.random = random
        self.words: list[str] = []
        self.verbs: list[tuple[int, bool]] = []

    def between(self, total: int, depth: int) -> None:
        """Write phrases and clauses of so many words."""
        while total:
            clauses = [_CLAUSE, *range(_CLAUSE + SHORTEST, total + 1)]
            fitting = [n for n in clauses if _fits(n, total)] if depth < self.grammar.depth else []
            if fitting and self.random.random() < self.grammar.clause:
                length = fitting[int(self.random.integers(len(fitting)))]
                self.clause(length, depth + 1)
            else:
                fitting = [n for n in range(SHORTEST, LONGEST + 1) if _fits(n, total)]
                length = fitting[int(self.random.integers(len(fitting)))]
                self.phrase(length, prepositional=self.random.random() < 0.5)
            total -= length

    def clause(self, length: int, depth: int) -> None:
        """`that the dogs [...] chase`: a subject that waits for its verb while the one before it waits."""
        self.words += ["that", "the"]
        plural = self.noun()
        self.between(length - _CLAUSE, depth)
        self.verbs.append((len(self.words), plural))
        self.words.append(self.choice(VERBS[plural]))

    def phrase(self, length: int, *, prepositional: bool) -> None:
        """`near the [old] dogs` or `that saw the [old] dogs`: a noun that no verb agrees with."""
        if length == SHORTEST or (length < LONGEST and prepositional):
            self.words.append(self.choice(_PREPOSITIONS))
            adjective = length > SHORTEST
        else:
            self.words += ["that", self.choice(_PAST)]
            adjective = length == LONGEST
        self.words.append("the")
        if adjective:
            self.words.append(self.choice(_ADJECTIVES))
        self.noun()

    def noun(self) -> bool:
        """Write a noun of either number; whether it is plural."""
        plural = bool(self.random.integers(2))
        self.words.append(self.choice(NOUNS[plural]))
        return plural

    def choice(self, words: Sequence[str]) -> str:
        return words[int(self.random.integers(len(words)))]


def _fits(length: int, total: int) -> bool:
    """Whether what is left after so many words is nothing, or enough for a phrase."""
    return length == total or total - length >= SHORTEST


def batch(
    sentences: Sequence[Sentence],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Word ids (B, T), and for each word what the next one has to be (B, T).

    0 is a singular and 1 a plural verb; -1 is no verb, or padding.
    """
    time = max(len(each.words) for each in sentences)
    ids = np.zeros((len(sentences), time), np.int64)
    due = np.full((len(sentences), time), -1, np.int64)
    for i, each in enumerate(sentences):
        ids[i, : len(each.words)] = [_IDS[word] for word in each.words]
        for place, plural in each.verbs:
            due[i, place - 1] = plural
    return ids, due
