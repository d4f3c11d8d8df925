"""Entities of a text, the part both halves share: words and their places, their numbers, and tags decoded. No I/O.

Words are split as in the English Web Treebank: `don't` is `do n't`, `Smith's` is `Smith 's`, a mark is a word, an
address, a number or an abbreviation is one. A text whose words stand between blanks keeps nearly all of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

OUTSIDE = "O"
PADDING_CHARACTER = 0
UNKNOWN_CHARACTER = 1
_FIRST_CHARACTER = 2

_TITLES = "mr|mrs|ms|dr|st|jr|sr|rev|gen|sen|rep|gov|lt|col|sgt|capt|prof"
_FIRMS = "inc|corp|co|ltd|bros|dept"
_MONTHS = "jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec"
_ENDINGS = "com|org|net|edu|gov|co\\.uk|html?|doc|xls|pdf|ppt|jpg|txt"
_PREFIXES = "e|co|non|anti|re|pre|post|semi|multi|ex|pro|over|mid|sub"
# A letter may be followed by an accent of its own.
_LETTER = r"[\w\u0300-\u036f]"
_CLITIC = "s|m|d|re|ve|ll"
_WORD = re.compile(
    rf"""(?:https?://|www\.)\S*[\w/=]
    | [\w.+-]{{1,64}}@[\w-]+(?:\.[\w-]+)+                         # mail
    | [\w-]{{1,64}}(?:\.[\w-]{{1,64}}){{0,8}}\.(?:{_ENDINGS})\b(?:/\S*[\w/])?
    | (?:{_LETTER}\.){{2,}}                                       # U.S.
    | (?:{_TITLES}|{_FIRMS}|{_MONTHS}|vs|etc|ave|ft)\.(?=\s|$|,)
    | \d+(?:[.,:/-]\d+)*(?:st|nd|rd|th|s|am|pm)?(?!\w)            # 1,000 3:30 2001-09-11 5th
    | (?-i:[A-Z])\.(?=\s+(?-i:[A-Z]))                             # initials
    | (?-i:[A-Z]+&[A-Z]+)\b
    | (?:{_PREFIXES})-\w+
    | [@\#]\w+
    | ['’](?:{_CLITIC})\b
    | n['’]t\b
    | {_LETTER}+?(?=n['’]t\b)
    | {_LETTER}+(?:['’](?!(?:{_CLITIC}|t)\b){_LETTER}+)*
    | [:;=8][-o^]?[)(DPpO/\\|\]\[]+(?!\w)                         # smileys
    | <[-_]*[<3]? | [-=]{{1,20}}>
    | [.!?]{{2,}} | ([-_=*~^&+\#<>$/\\|,'"`])\1+                  # a mark as often as it is repeated
    | \S""",
    re.VERBOSE | re.IGNORECASE,
)


def places(text: str) -> list[tuple[int, int]]:
    """First character of each word and the one after its last; all but blanks belongs to one word."""
    return [match.span() for match in _WORD.finditer(text)]


class WordNumbers:
    """Words as the tensors a tagger takes.

    Args:
        ids: Known words.
        unknown: Id of any other word.
        characters: Known characters; the id of the first is 2, since 0 pads and 1 is any other.
        width: C, characters of a word that count: of a longer one the first and the last C / 2.
    """

    def __init__(self, ids: Mapping[str, int], unknown: int, characters: str, width: int) -> None:
        self._ids = ids
        self._unknown = unknown
        self._characters = {c: i for i, c in enumerate(characters, _FIRST_CHARACTER)}
        self._width = width

    def __call__(self, words: Sequence[str]) -> dict[str, Array]:
        """`words` (T,) int64 and `characters` (T, C) int64."""
        characters = np.full((len(words), self._width), PADDING_CHARACTER, np.int64)
        for row, word in zip(characters, words, strict=True):
            if len(word) > self._width:
                word = word[: self._width // 2] + word[-(self._width - self._width // 2) :]
            row[: len(word)] = [self._characters.get(c, UNKNOWN_CHARACTER) for c in word]
        return {"words": np.array([self._id(w) for w in words], np.int64), "characters": characters}

    def _id(self, word: str) -> int:
        # Web text is careless with capitals: a word is known if it is in another case.
        for form in (word, word.lower(), word.lower().capitalize()):
            if (found := self._ids.get(form)) is not None:
                return found
        return self._unknown


class Entity(NamedTuple):
    """An entity among words.

    Attributes:
        kind: Such as `PER`.
        first: Its first word.
        end: The word after its last.
        score: Probability that exactly these words are one entity of that kind.
        continues: Whether it began before the first word of all.
    """

    kind: str
    first: int
    end: int
    score: float
    continues: bool = False


class Chain:
    """Decoder of a linear chain over tags in IOB2.

    A model gives for each word t the probability of its tag given the words so far, p_t(y) = P(y_t | x_1..t). Read
    from the last word back the tags are a Markov chain again:

        P(y_t | y_t+1, x) = p_t(y_t) M(y_t, y_t+1) / sum over j of p_t(j) M(j, y_t+1)

    so the likeliest tags of these words and the probability of each entity are exact, whatever went before the words.

    Args:
        labels: Tags; the first is `O`, the others are `B-` and `I-` with a kind.
        transitions: M (K, K), factor for going from one tag (row) to the next (column); 0 forbids.
    """

    def __init__(self, labels: Sequence[str], transitions: Sequence[Sequence[float]]) -> None:
        self.labels = tuple(labels)
        self.transitions: Array = np.array(transitions, np.float64)

    def tags(self, filtered: Array) -> list[int]:
        """The likeliest tags (T,) together, from p (T, K)."""
        return self._tags(filtered[-1].astype(np.float64), self._backward(filtered))

    def _tags(self, best: Array, backward: Array) -> list[int]:
        following: list[list[int]] = []
        for step in backward[::-1]:
            # Probability of the best way from each tag of the word to the end, but for a common factor.
            ways = step * best
            following.append(ways.argmax(axis=1).tolist())
            best = ways.max(axis=1)
            best /= best.max()
        tags = [int(best.argmax())]
        for choice in reversed(following):
            tags.append(choice[tags[-1]])
        return tags

    def entities(self, filtered: Array) -> list[Entity]:
        """The entities of the likeliest tags, in order, from p (T, K)."""
        backward = self._backward(filtered)
        marginals = [filtered[-1].astype(np.float64)]
        tags = self._tags(marginals[0], backward)
        spans = entity_spans([self.labels[tag] for tag in tags])
        if not spans:
            return []
        for step in backward[::-1]:
            marginals.append(step @ marginals[-1])
        marginals.reverse()
        return [self._entity(span, tags, backward, marginals) for span in spans]

    def _entity(
        self, span: Span, tags: Sequence[int], backward: Array, marginals: Sequence[Array]
    ) -> Entity:
        kind, first, end = span
        last = end - 1
        probability = float(marginals[last][tags[last]])
        if end < len(tags):
            # It must end here: the next word does not continue it.
            inside = self.labels.index(f"I-{kind}")
            probability -= float(backward[last][tags[last], inside] * marginals[end][inside])
        for t in range(first, last):
            probability *= float(backward[t][tags[t], tags[t + 1]])
        continues = self.labels[tags[first]].startswith("I-")
        return Entity(kind, first, end, min(max(probability, 0.0), 1.0), continues)

    def _backward(self, filtered: Array) -> Array:
        """P(y_t | y_t+1, x), (T - 1, K, K) with a row for each y_t; a column of zeros where y_t+1 cannot be."""
        joint = filtered[:-1, :, None].astype(np.float64) * self.transitions
        total = joint.sum(axis=1, keepdims=True)
        backward: Array = np.divide(joint, total, out=np.zeros_like(joint), where=total > 0)
        return backward


class Span(NamedTuple):
    """Words first..end-1 as an entity of a kind."""

    kind: str
    first: int
    end: int


def entity_spans(tags: Sequence[str]) -> list[Span]:
    """Entities of IOB2 tags, in order, as conlleval reads them: an `I-` of a kind that is not open begins one."""
    spans: list[Span] = []
    kind = ""
    first = 0
    for place, tag in enumerate((*tags, OUTSIDE)):
        if kind and tag != f"I-{kind}":
            spans.append(Span(kind, first, place))
            kind = ""
        if not kind and tag != OUTSIDE:
            kind, first = tag[2:], place
    return spans
