"""Made sentences whose last word must agree in number with a subject that other nouns stand between.

    near the houses , the cat that ate the fish beside the old dogs ...  was | were

Every noun is singular or plural by a fair coin of its own and no other word shows number, so that nothing but the subject says
what comes next: whoever follows the nearest noun, or counts nouns of either kind, is wrong in half of the sentences
with a distractor (counting is right a little more often, since the subject itself is counted).
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

NOUNS = (
    *("bird", "boy", "cat", "dog", "doctor", "farmer", "girl", "horse", "house", "king"),
    *("painter", "river", "sailor", "teacher", "tree", "wolf"),
)
PLURALS = tuple({"wolf": "wolves"}.get(noun, f"{noun}s") for noun in NOUNS)
ADJECTIVES = ("big", "old", "quiet", "red", "small", "young")
PREPOSITIONS = ("behind", "beside", "near", "under", "with")
VERBS = ("ate", "chased", "found", "heard", "liked", "saw")
LABELS = ("was", "were")

PADDING = ""
_OTHERS = ("the", "that", "and", ",")
VOCABULARY = (PADDING, *NOUNS, *PLURALS, *ADJECTIVES, *PREPOSITIONS, *VERBS, *_OTHERS)
_IDS = {word: i for i, word in enumerate(VOCABULARY)}

# A phrase has three words ("near the dogs") to five ("that ate the old fish").
SHORTEST_PHRASE, LONGEST_PHRASE = 3, 5
_OPENING_SHARE = 0.5


class Sentence(msgspec.Struct, frozen=True):
    """A sentence up to its verb.

    Attributes:
        words: All words before the verb.
        label: 0 if the subject is singular (`was`), 1 if it is plural (`were`).
        distance: Words between the subject and the verb.
    """

    words: tuple[str, ...]
    label: int
    distance: int


def sentence(distance: int, random: np.random.Generator) -> Sentence:
    """Make a sentence with a number of words between subject and verb.

    Raises:
        ValueError: No phrase is that short: 1 or 2 words.
    """
    lengths = _phrase_lengths(distance, random)
    words: list[str] = []
    if random.random() < _OPENING_SHARE:
        words += [*_phrase(SHORTEST_PHRASE + int(random.integers(2)), False, random), ","]
    label = int(random.integers(2))
    words += ["the", _choice((NOUNS, PLURALS)[label], random)]
    clause = False
    for length in lengths:
        phrase = _phrase(length, clause, random)
        clause = clause or phrase[0] == "that"
        words += phrase
    return Sentence(tuple(words), label, distance)


def _phrase_lengths(total: int, random: np.random.Generator) -> list[int]:
    """Lengths of phrases that add up to a total, drawn one by one so that the rest can still be filled."""
    if 0 < total < SHORTEST_PHRASE:
        raise ValueError(f"no phrase has {total} words")
    lengths: list[int] = []
    while rest := total - sum(lengths):
        fitting = [
            length
            for length in range(SHORTEST_PHRASE, LONGEST_PHRASE + 1)
            if rest == length or rest - length >= SHORTEST_PHRASE
        ]
        lengths.append(fitting[int(random.integers(len(fitting)))])
    return lengths


def _phrase(length: int, clause: bool, random: np.random.Generator) -> list[str]:
    """A prepositional phrase, a relative clause or, after one, its continuation; each ends in a noun of either number."""
    noun = _choice((NOUNS, PLURALS)[int(random.integers(2))], random)
    preposition = [_choice(PREPOSITIONS, random)]
    relative = ["and" if clause and random.random() < 0.5 else "that", _choice(VERBS, random)]
    adjective = [_choice(ADJECTIVES, random)]
    short, long = [*preposition, "the", noun], [*relative, "the", noun]
    if length == SHORTEST_PHRASE:
        return short
    if length == LONGEST_PHRASE:
        return [*relative, "the", *adjective, noun]
    return long if random.random() < 0.5 else [*preposition, "the", *adjective, noun]


def _choice(words: Sequence[str], random: np.random.Generator) -> str:
    return words[int(random.integers(len(words)))]


def batch(
    sentences: Sequence[Sentence],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Word ids (B, T), padded at the end, the number of words (B,), and the labels (B,)."""
    lengths = np.array([len(s.words) for s in sentences], np.int64)
    ids = np.zeros((len(sentences), int(lengths.max())), np.int64)
    for row, each in zip(ids, sentences, strict=True):
        row[: len(each.words)] = [_IDS[word] for word in each.words]
    return ids, lengths, np.array([s.label for s in sentences], np.int64)
