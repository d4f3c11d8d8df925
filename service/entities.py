"""Entities of a text, the part both halves share: words and their places, their numbers, and tags decoded. No I/O.

Words are split as in the English Web Treebank: `don't` is `do n't`, `Smith's` is `Smith 's`, a mark is a word, an
address, a number or an abbreviation is one. A text whose words stand between blanks keeps nearly all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

OUTSIDE = "O"
PADDING_CHARACTER = 0
UNKNOWN_CHARACTER = 1
_FIRST_CHARACTER = 2
# So many steps take less time one by one than joined.
_FEW_STEPS = 32

_TITLES = "mr|mrs|ms|dr|st|jr|sr|rev|gen|sen|rep|gov|lt|col|sgt|capt|prof"
_FIRMS = "inc|corp|co|ltd|bros|dept"
_MONTHS = "jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec"
_ENDINGS = "com|org|net|edu|gov|co\\.uk|html?|doc|xls|pdf|ppt|jpg|txt"
_PREFIXES = "e|co|non|anti|re|pre|post|semi|multi|ex|pro|over|mid|sub"
# A letter may be followed by an accent of its own.
_LETTER = r"[\w\u0300-\u036f]"
_CLITIC = "s|m|d|re|ve|ll"
_WORD = re.compile(
    rf"""[a-z]+(?=\s)                                              # as below, in less time
    | (?:https?://|www\.)\S*[\w/=]
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


def with_lists(ids: Mapping[str, int], lists: Iterable[Iterable[str]]) -> dict[str, int]:
    """Ids of words, and those that follow for the words of each list that have none yet."""
    known = dict(ids)
    for place, words in enumerate(lists, len(ids)):
        for word in words:
            known.setdefault(word, place)
    return known


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

    def _tags(self, last: Array, backward: Array) -> list[int]:
        with np.errstate(divide="ignore"):
            ways, end = np.log(backward), np.log(last)
        best = _to_the_end(ways, end, np.add, np.maximum)
        ways += best[:, 1:]
        tags = [int(best[:, 0].argmax())]
        for choice in ways.argmax(axis=1).T.tolist():
            tags.append(choice[tags[-1]])
        return tags

    def entities(self, filtered: Array) -> list[Entity]:
        """The entities of the likeliest tags, in order, from p (T, K)."""
        backward, last = self._backward(filtered), filtered[-1].astype(np.float64)
        tags = self._tags(last, backward)
        spans = entity_spans([self.labels[tag] for tag in tags])
        if not spans:
            return []
        marginals = _to_the_end(backward, last, np.multiply, np.add)
        return [self._entity(span, tags, backward, marginals) for span in spans]

    def _entity(self, span: Span, tags: Sequence[int], backward: Array, marginals: Array) -> Entity:
        kind, first, end = span
        last = end - 1
        probability = float(marginals[tags[last], last])
        if end < len(tags):
            # It must end here: the next word does not continue it.
            inside = self.labels.index(f"I-{kind}")
            probability -= float(backward[tags[last], inside, last] * marginals[inside, end])
        for t in range(first, last):
            probability *= float(backward[tags[t], tags[t + 1], t])
        continues = self.labels[tags[first]].startswith("I-")
        return Entity(kind, first, end, min(max(probability, 0.0), 1.0), continues)

    def _backward(self, filtered: Array) -> Array:
        """P(y_t | y_t+1, x), (K, K, T - 1) with a row for each y_t; a column of zeros where y_t+1 cannot be."""
        now = filtered[:-1].T.astype(np.float64)
        backward: Array = now[:, None] * self.transitions[:, :, None]
        total = backward.sum(axis=0)
        total[total == 0] = 1
        backward /= total
        return backward


def _to_the_end(steps: Array, last: Array, combine: np.ufunc, choose: np.ufunc) -> Array:
    """All ways from each tag of each word to the last word as one number, (K, T).

    A long text is halved first, two steps joined to one, so that numpy works on many words at once.

    Args:
        steps: What a step from one tag (row) to the next (column) adds to a way, (K, K, T - 1).
        last: What the last tag adds, (K,).
        combine: Makes one number of two parts of a way.
        choose: Makes one number of two ways.
    """
    count = steps.shape[2]
    result = np.empty((len(last), count + 1))
    result[:, -1] = last
    alone = count
    if count > _FEW_STEPS:
        alone = count % 2
        first, second = steps[:, :, alone::2], steps[:, :, alone + 1 :: 2]
        joined = combine(first[:, :1], second[:1])
        for k in range(1, len(last)):
            choose(joined, combine(first[:, k : k + 1], second[k : k + 1]), out=joined)
        result[:, alone::2] = _to_the_end(joined, last, combine, choose)
        between = combine(second, result[:, alone + 2 :: 2])
        result[:, alone + 1 :: 2] = choose.reduce(between, axis=1)
    for t in reversed(range(alone)):
        choose.reduce(combine(steps[:, :, t], result[:, t + 1]), axis=1, out=result[:, t])
    return result


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
