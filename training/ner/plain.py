"""Text without tags, for the word vectors."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from service.contract import Dataset
from training.next_word import corpora
from training.next_word.config import DataConfig

# As the tagged texts have them: `1,000` and `2.5` are one word, `-` is one by itself.
_JOINED = {"@,@": ",", "@.@": "."}
_HYPHEN = "@-@"


def wikitext(
    environ: Mapping[str, str] = os.environ,
) -> tuple[Sequence[Sequence[str]], tuple[Dataset]]:
    """Words of each line of the training part of WikiText-2, with its marks of joined words undone."""
    corpus = corpora.load(DataConfig(name="wikitext-2"), environ)
    return lines_of(corpus.train), (corpus.dataset,)


def lines_of(tokens: Sequence[str]) -> list[list[str]]:
    """Lines of a text in which `<eos>` ends each; empty ones are left out."""
    lines: list[list[str]] = [[]]
    joining = ""
    for token in tokens:
        if token == corpora.END_OF_LINE:
            lines.append([])
        elif token in _JOINED and lines[-1]:
            joining = _JOINED[token]
            continue
        elif joining:
            lines[-1][-1] += joining + token
        else:
            lines[-1].append("-" if token == _HYPHEN else token)
        joining = ""
    return [line for line in lines if line]
