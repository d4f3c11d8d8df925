"""The words of the training texts as a `tokenizers` WordLevel file, and texts as ids, as the service reads them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from service.text import known_form

UNKNOWN = "<unk>"
UNKNOWN_ID = 0

Ids = npt.NDArray[np.int64]


def build(texts: Iterable[Sequence[str]], min_count: int) -> Tokenizer:
    """`<unk>`, and every word that is in at least `min_count` texts, the most frequent one first."""
    counts = Counter(word for words in texts for word in dict.fromkeys(words))
    known = [word for word, count in counts.most_common() if count >= min_count and word != UNKNOWN]
    ids = {word: i for i, word in enumerate((UNKNOWN, *known))}
    tokenizer = Tokenizer(WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return tokenizer


def encode(ids: Mapping[str, int], texts: Iterable[Sequence[str]]) -> list[Ids]:
    """Ids (T,) of the words of each text; see `service.text.known_form`."""
    forms: dict[str, int] = {}

    def form(word: str) -> int:
        if word not in forms:
            found = known_form(word, ids)
            forms[word] = UNKNOWN_ID if found is None else found
        return forms[word]

    return [np.array([form(word) for word in words], np.int64) for words in texts]


def padded(rows: Sequence[Ids]) -> tuple[Ids, Ids]:
    """Rows side by side (B, T), `<unk>` after the end of each, and their lengths (B,)."""
    lengths = np.array([len(row) for row in rows], np.int64)
    tokens = np.full((len(rows), lengths.max()), UNKNOWN_ID, np.int64)
    for row, words in zip(tokens, rows, strict=True):
        row[: len(words)] = words
    return tokens, lengths
