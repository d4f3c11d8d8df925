"""The vocabulary as a `tokenizers` WordLevel file, ids by falling frequency as the adaptive softmax expects.

Both halves of the product read this one file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split, WhitespaceSplit

from training.data.download import DataError
from training.next_word.config import Level

UNKNOWN = "<unk>"


def build(tokens: Sequence[str], level: Level = "word") -> Tokenizer:
    """Every token of a text, the most frequent one first, tokens of equal frequency in order of first use.

    Characters have no `<unk>`: a text with another one cannot be encoded.

    Raises:
        DataError: A text of words has no `<unk>`, so that unknown words could not be told apart.
    """
    counts = Counter(tokens)
    ids = {token: i for i, (token, _) in enumerate(counts.most_common())}
    tokenizer = Tokenizer(WordLevel(ids, unk_token=UNKNOWN))
    if level == "character":
        tokenizer.pre_tokenizer = Split(Regex(r"[\s\S]"), "isolated")
        tokenizer.decoder = Fuse()
        return tokenizer
    if UNKNOWN not in counts:
        raise DataError(f"the training text has no {UNKNOWN}")
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return tokenizer


def encode(tokenizer: Tokenizer, tokens: Sequence[str]) -> torch.Tensor:
    """Ids (N,) int64 of tokens; an unknown one gets the id of `<unk>`.

    Raises:
        DataError: There is an unknown one and no `<unk>`.
    """
    vocabulary = tokenizer.get_vocab()
    unknown = vocabulary.get(UNKNOWN)
    if unknown is None:
        for token in set(tokens) - vocabulary.keys():
            raise DataError(f"{token!r} is in a text but not in the training text")
        unknown = -1
    return torch.tensor([vocabulary.get(token, unknown) for token in tokens])
