"""Words of a text and back, as the word-level language models see them. Used by both halves; no I/O.

WikiText writes punctuation as tokens of its own and joins numbers and hyphens with `@`: `3 @-@ 4`, `1 @,@ 000`,
`2 @.@ 5`. A user writes `3-4`, `1,000`, `2.5`. `words` turns the second into the first and leaves text that is
already in the first form as it is, so that the vocabulary's own corpus tokenises to itself.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping

_NUMBER_COMMA = re.compile(r"(?<=\d),(?=\d)")
_NUMBER_POINT = re.compile(r"(?<=\d)\.(?=\d)")
_HYPHEN = re.compile(r"(?<=\w)-(?=\w)")
_CLITIC = re.compile(r"(?<=\w)('(?:s|m|d|re|ve|ll|t))\b", re.IGNORECASE)
_PUNCTUATION = re.compile(r"([^\w\s@'<>]|'(?!\w))")
_JOINTS = {"@C@": "@,@", "@D@": "@.@", "@H@": "@-@"}
_NO_SPACE_BEFORE = frozenset(".,;:!?)]}%'")
_NO_SPACE_AFTER = frozenset("([{")


def words(text: str, known: Callable[[str], bool]) -> list[str]:
    """Split a text into words of a vocabulary.

    Args:
        text: Any text. A piece between blanks that the vocabulary knows stays whole; a line end is a blank.
        known: Whether a word is in the vocabulary.

    Returns:
        The words, of which some may still be unknown.
    """
    result: list[str] = []
    for piece in text.split():
        if known(piece):
            result.append(piece)
        else:
            result.extend(_split(piece))
    return result


def _split(piece: str) -> list[str]:
    # Joints get a private mark first, so that the punctuation rule does not take them apart again.
    piece = _NUMBER_COMMA.sub(" @C@ ", piece)
    piece = _NUMBER_POINT.sub(" @D@ ", piece)
    piece = _HYPHEN.sub(" @H@ ", piece)
    piece = _CLITIC.sub(r" \1", piece)
    # As `sub(r" \1 ", piece)`, but not through Python for every mark of a text that is all marks.
    piece = " ".join(_PUNCTUATION.split(piece))
    return [_JOINTS.get(word, word) for word in piece.split()]


def separator(previous: str | None, word: str) -> str:
    """The blank, if any, that stands between two words of running text.

    Args:
        previous: The word before, or None at the start of the text.
        word: The word that follows.
    """
    if previous is None or (
        previous.startswith("@") and previous.endswith("@") and len(previous) == 3
    ):
        return ""
    if word.startswith("@") and word.endswith("@") and len(word) == 3:
        return ""
    if word[0] in _NO_SPACE_BEFORE or previous[-1] in _NO_SPACE_AFTER:
        return ""
    return " "


def surface(word: str) -> str:
    """How a word is written in running text: `@-@` is `-`."""
    return word[1] if len(word) == 3 and word[0] == word[2] == "@" else word


def join(tokens: list[str]) -> str:
    """Running text from words; the inverse of `words` up to quotation marks and blanks."""
    text: list[str] = []
    previous: str | None = None
    for word in tokens:
        text.append(separator(previous, word) + surface(word))
        previous = word
    return "".join(text)


# What follows reads any text, as the sentiment models see it: no capitals, smileys and marks kept.

_PLAIN_WORD = re.compile(
    r"""\[[a-z]+\]                              # a placeholder, as [name]
    |<3(?!\d)
    |[:;=]-?(?:[()|]|[dp](?!\w)|[/\\](?!/))   # smileys
    |n't\b|'(?:s|m|d|re|ve|ll|t)\b            # ends of contractions
    |[^\W_]+                                  # letters and digits
    |_+
    |([^\w\s])\1*                             # one mark, as often as it is repeated""",
    re.VERBOSE,
)
_NEGATION = re.compile(r"(?<=\w)n't\b")
_LONG_DRAWN = re.compile(r"([^\d\s])\1{3,}")
# No letter has more, and to put a longer run in order takes the square of its length.
_ACCENTED = re.compile(r"[^\W\d_][\u0300-\u036f]{1,3}")
_APOSTROPHES = str.maketrans("‘’", "''")
_LONGEST_STEM = 30
_SHORTEST_STEM = 4


def composed(text: str) -> str:
    """A text in which letters with an accent of their own are one character, as the models have learnt them."""
    if text.isascii():
        return text
    return _ACCENTED.sub(lambda found: unicodedata.normalize("NFC", found.group()), text)


def plain_words(text: str) -> list[str]:
    """Lower-case words, marks and smileys of any text.

    Contractions are split as in the Penn treebank (`don't` is `do n't`, `it's` is `it 's`), so that a text split that
    way gives its own words. What is repeated more than three times is repeated three times: `sooooo` is `sooo`.
    """
    text = _LONG_DRAWN.sub(r"\1\1\1", composed(text).lower().translate(_APOSTROPHES))
    return [match.group() for match in _PLAIN_WORD.finditer(_NEGATION.sub(" n't", text))]


def known_form(word: str, ids: Mapping[str, int]) -> int | None:
    """Id of a word, or else of its longest known beginning that is at least half of it; None if there is none.

    So an unknown `disappointingly` is read as `disappointing`.
    """
    if word in ids:
        return ids[word]
    if word.isalpha() and len(word) <= _LONGEST_STEM:
        shortest = max(_SHORTEST_STEM, (len(word) + 1) // 2)
        for length in range(len(word) - 1, shortest - 1, -1):
            if (found := ids.get(word[:length])) is not None:
                return found
    return None
