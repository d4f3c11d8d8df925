"""The vocabulary as a `tokenizers` WordLevel file, ids by falling frequency as the adaptive softmax expects.

Both halves of the product read this one file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

UNKNOWN = "<unk>"


def build(tokens: Sequence[str]) -> Tokenizer:
    """Every word of a text, the most frequent one first, words of equal frequency in order of first use.

    Raises:
        ValueError: The text has no `<unk>`, so that unknown words could not be told apart.
    """
    counts = Counter(tokens)
    if UNKNOWN not in counts:
        raise ValueError(f"the training text has no {UNKNOWN}")
    ids = {word: i for i, (word, _) in enumerate(counts.most_common())}
    tokenizer = Tokenizer(WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return tokenizer


def encode(tokenizer: Tokenizer, tokens: Sequence[str]) -> torch.Tensor:
    """Ids (N,) int64 of words; an unknown word gets the id of `<unk>`."""
    vocabulary = tokenizer.get_vocab()
    unknown = vocabulary[UNKNOWN]
    return torch.tensor([vocabulary.get(word, unknown) for word in tokens])
