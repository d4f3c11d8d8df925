"""Known words as a `tokenizers` WordLevel file, and known characters as a text: what the service reads too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from service.entities import WordNumbers, with_lists
from training.ner.model import UNKNOWN_ID

UNKNOWN = "<unk>"
# How often a character has to be in the tagged texts to be known.
_MIN_CHARACTER_COUNT = 5
# Ids of characters that stand for none: padding and any other.
RESERVED_CHARACTERS = 2


def tokenizer_of(words: Sequence[str]) -> Tokenizer:
    """A tokenizer that knows `<unk>`, with id 0, and the words, in their order."""
    ids = {word: i for i, word in enumerate((UNKNOWN, *words), UNKNOWN_ID)}
    tokenizer = Tokenizer(WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return tokenizer


def alphabet_of(texts: Iterable[Sequence[str]]) -> str:
    """The characters of the words, the most frequent first."""
    counts = Counter(character for words in texts for word in words for character in word)
    return "".join(c for c, count in counts.most_common() if count >= _MIN_CHARACTER_COUNT)


def numbers_of(
    tokenizer: Tokenizer, lists: Iterable[Iterable[str]], alphabet: str, width: int
) -> WordNumbers:
    """Words as tensors, `width` characters of each; words of lists by one id a list, behind the tokenizer's."""
    return WordNumbers(with_lists(tokenizer.get_vocab(), lists), UNKNOWN_ID, alphabet, width)
